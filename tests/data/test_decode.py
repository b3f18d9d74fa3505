"""Every format and oddity is decoded to what a person sees, fast or not, or refused with its reason."""

import contextlib
import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageOps

from carvision.data import decode, images
from carvision.data.decode import WHOLE, decode_image, decode_into, decode_part, empty_images, jpeg_part, wanted_part
from carvision.data.health import inspect_photo
from carvision.data.images import BadImage, Preprocessing, open_bytes, open_image
from carvision.data.loading.dataset import random_windows

WIDTH, HEIGHT = 96, 64


def preprocessing(size_px=16, **options):
    return Preprocessing(size_px, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), **options)


def smooth(width=WIDTH, height=HEIGHT):
    """A photo whose sides and corners all differ, so that a turn or a wrong crop shows."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([255 * x, 255 * y, 128 + 100 * np.sin(5 * x * y)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image, form, **options):
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def turned(image, orientation, form):
    """Encode a photo whose EXIF orientation turns it into `image`."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose of the inverse
    stored = image if orientation == 1 else image.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(stored, form, exif=exif, **({"quality": 95} if form == "JPEG" else {}))


def decoded(photo, box=None, how=None, window=WHOLE):
    """Decode a file, or its bytes, as training does, to int (3, size_px, size_px)."""
    how = how or preprocessing()
    [out] = empty_images(1, how.size_px)
    data = photo if isinstance(photo, bytes) else images.read_file(photo)
    decode_into(data, how, out, None if box is None else np.array(box, np.float32), window)
    return out.numpy().astype(int)


def resized(image, box=None):
    """Resize a part of the whole photo by Pillow."""
    part = image.convert("RGB").resize((16, 16), Image.Resampling.BICUBIC, box=box)
    return np.asarray(part).transpose(2, 0, 1).astype(int)


def difference(a, b):
    return np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).mean()


def test_a_file_that_is_no_photo_is_refused_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "with_heic", lambda: ())
    path = tmp_path / "photo.jpg"
    for content, reason in (
        (b"no photo\n", "not a supported image format"),
        (b"\0\0\0\x1cftypheic" + bytes(100), r"HEIC photo; pip install 'carvision\[heic\]'"),
    ):
        path.write_bytes(content)
        with pytest.raises(BadImage, match=reason) as error:
            open_image(path)
        assert str(tmp_path) not in str(error.value)


def test_pipes_devices_and_folders_are_refused_without_waiting(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jpg")
    monkeypatch.setattr(Image, "open", lambda *args, **options: pytest.fail("it would be waited for"))
    for path in (tmp_path / "pipe.jpg", os.devnull, tmp_path):
        with pytest.raises(BadImage, match=r"can't be opened .is no regular file") as error:
            open_image(path)
        assert str(path) not in str(error.value)


def test_a_file_that_is_a_program_is_not_run(tmp_path, monkeypatch):
    """Encapsulated PostScript, whatever its name, is decoded by Ghostscript, which runs it."""
    program, path = tmp_path / "gs", tmp_path / "evil.jpg"
    program.write_text(f"#!/bin/sh\necho ran >> {tmp_path / 'executed'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow looks for it once
    path.write_bytes(encoded(smooth(), "EPS"))
    with pytest.raises(BadImage, match="not a supported image format"):
        decoded(path)
    with Image.open(path) as image, pytest.raises(BadImage, match=r"is EPS, .* run external programs"):
        decode_part(image, preprocessing())
    assert not (tmp_path / "executed").exists()
    with contextlib.suppress(OSError), Image.open(path) as image:
        image.load()
    assert (tmp_path / "executed").exists()  # the file is a real one


def claiming(form: str, side: int) -> bytes:
    """Encode a photo of 16 x 16 pixels, in some hundred bytes, whose header claims side x side."""
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    data = bytearray(encoded(Image.fromarray(pixels), form))
    frame = data.find(b"\xff\xc0") + 5
    starts = {"JPEG": (">HH", frame), "PNG": (">II", 16), "GIF": ("<HH", 6), "WEBP": ("<HH", 26), "BMP": ("<ii", 18)}
    kind, start = starts[form]
    struct.pack_into(kind, data, start, side, side)
    if form == "PNG":
        struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_a_small_file_that_claims_many_pixels_is_damaged(tmp_path, form):
    (tmp_path / "small").write_bytes(data := claiming(form, 13_000))
    for read in (open_bytes, decoded):
        with pytest.raises(BadImage, match=r"too few bytes \(\S+\) for the 13000 x 13000 pixels"):
            read(data)
    assert inspect_photo(tmp_path / "small", None).problem == "too few bytes"


@pytest.mark.parametrize("form", [*images.FORMATS, *images.with_heic(), "MPO"])
def test_each_format_is_recognised_by_its_content(tmp_path, form):
    """MPO: a camera's pair of pictures in one file."""
    path = tmp_path / "photo.jpg"
    options = {"save_all": True, "append_images": [smooth()], "quality": 95} if form == "MPO" else {}
    path.write_bytes(encoded(smooth(), form, **options))
    with open_image(path) as image:
        assert image.format == form
    assert difference(decoded(path), resized(smooth())) < (2 if form == "MPO" else 8)  # GIF has 256 colours


def test_sixteen_bits_are_scaled_not_clipped_and_thirty_two_by_as_many_as_their_values_use():
    values = np.array([[0, 255, 256, 300], [32768, 40000, 65279, 65535]], np.uint16)
    with open_bytes(encoded(Image.fromarray(values), "PNG")) as image:
        assert np.asarray(decode.to_rgb(image))[..., 1].tolist() == (values // 256).tolist()
    for largest, white in ((65535, 255), (70000, 136), (2**31 - 1, 255), (0, 0)):
        values = np.array([[-5, 0, largest]], np.int32)
        assert np.asarray(decode.to_rgb(Image.fromarray(values)))[..., 0].tolist() == [[0, 0, white]]
    with pytest.raises(BadImage, match="floating-point"):
        decode_image(Image.fromarray(np.zeros((4, 4), np.float32)), preprocessing())


@pytest.mark.parametrize(("kind", "bits"), [(np.uint16, 12), (np.int32, 12), (np.uint16, 8)])
def test_fewer_bits_than_stored_are_scaled_by_the_fewest_that_hold_the_largest_value(kind, bits):
    grey = np.arange(256).reshape(16, 16)
    values = (grey << (bits - 8)).astype(kind)
    found, pgm = [], b"P5 %d %d 65535 " % values.shape[::-1] + values.astype(">u2").tobytes()
    for data in (encoded(Image.fromarray(values), "TIFF"), pgm):
        with open_bytes(data) as image:
            found.append(np.asarray(decode.to_rgb(image))[..., 0])
        assert (decoded(data)[0] == found[-1]).all()
    assert (found[0] == grey).all()
    assert np.abs(found[1].astype(int) - (grey << (bits - 8)) // 256).max() <= 1  # the PGM states that it has 16


def test_transparency_is_laid_on_white():
    image = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    image.paste((0, 100, 0, 255), (0, 0, 8, 16))
    image.paste((0, 0, 0, 128), (8, 8, 16, 16))
    for form in ("PNG", "WEBP"):
        pixels = decoded(encoded(image, form, lossless=True))
        assert pixels[:, 4, 2].tolist() == [0, 100, 0] and pixels[:, 2, 13].tolist() == [255, 255, 255]
        assert np.abs(pixels[:, 13, 13] - 127).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("form", "mode"), [("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("TIFF", "L")])
def test_exif_orientations_give_the_same_upright_photo_and_box(orientation, form, mode):
    image = smooth().convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.new("L", image.size, 255))
    data = turned(image, orientation, form)
    by_pillow = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert by_pillow.size == (WIDTH, HEIGHT) and difference(resized(by_pillow), resized(image)) < 2
    for box in (None, np.array((48, 8, 92, 30), np.float32)):
        for found in (decoded(data, box), decode_image(open_bytes(data), preprocessing(), box)):
            assert difference(found, resized(image, box=None if box is None else tuple(box))) < 2


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of the damage
def test_damaged_exif_and_unknown_orientations_turn_nothing(form):
    for value in (0, 9, 77):
        exif = Image.Exif()
        exif[0x0112] = value
        assert difference(decoded(encoded(smooth(), form, exif=exif)), resized(smooth())) < 4
    for exif in (b"Exif\0\0no TIFF header", b"Exif\0\0II*\0\xff\xff\0\0", b""):
        data = encoded(smooth(), form, exif=exif)
        for found in (decoded(data), decode_image(open_bytes(data), preprocessing())):
            assert difference(found, resized(smooth())) < 4


def test_a_wrong_box_is_refused():
    for box, reason in (
        ((10, 10, 150, 60), "box 10 10 150 60 reaches outside the photo of 96 x 64 pixels"),
        ((96, 0, 98, 64), "lies outside"), ((50, 10, 20, 60), "box 50 10 20 60 has no area"),
    ):  # fmt: skip
        with pytest.raises(BadImage, match=reason):
            decoded(encoded(smooth(), "JPEG"), box)


def test_window_and_shift_select_a_part_of_the_box():
    box, window = np.array([20, 10, 80, 50], np.float32), (0.5, 0.25, 1.0, 0.75)
    found = decode_part(smooth(), preprocessing(), box, window)
    assert difference(found, smooth().crop((50, 20, 80, 40))) == 0
    for resize, shift, left, right in (
        ("crop", 0.0, 0, 64), ("crop", 0.5, 16, 80), ("crop", 1.0, 32, 96), ("squash", 1.0, 0, 96)
    ):  # fmt: skip
        found = decode_part(smooth(), preprocessing(resize=resize), shift=shift)
        assert difference(found, smooth().crop((left, 0, right, 64))) == 0
    beyond = np.array([48, 0, 98, 64], np.float32)  # by rounding: the photo is 96 px wide
    _, part = wanted_part(96, 64, preprocessing(resize="crop"), beyond, WHOLE, 0.0, can_scale=False)
    assert part == (48, 0, 96, 48)


def test_the_smallest_scale_is_chosen_that_leaves_as_many_pixels_as_the_network_sees():
    for side, eighths in {99: 8, 100: 4, 199: 4, 200: 2, 399: 2, 400: 1, 4000: 1}.items():
        found = wanted_part(side, 2 * side, preprocessing(50), None, WHOLE, 0.5, can_scale=True)
        assert found[0] == eighths, side


def photo(width, height, mode="RGB", seed=0):
    """Create a photo of large shapes in strong colours, with noise."""
    random = np.random.default_rng(seed)
    shapes = Image.fromarray(random.integers(0, 255, (7, 9, 3), np.uint8)).resize((width, height))
    noise = random.integers(-20, 20, (height, width, 3))
    return Image.fromarray((np.asarray(shapes) + noise).clip(0, 255).astype(np.uint8)).convert(mode)


def full(data, how, window=WHOLE):
    """Decode the whole photo, and resize the same part of it by Pillow."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    eighths, part = wanted_part(*image.size, how, None, window, 0.5, can_scale=data[:2] == b"\xff\xd8")
    corners = [min(value * 8 // eighths, side) for value, side in zip(part, image.size * 2, strict=True)]
    kind = getattr(Image.Resampling, how.interpolation.upper())
    return np.asarray(image.crop(corners).resize((how.size_px, how.size_px), kind)).transpose(2, 0, 1).astype(int)


def windows(num: int, seed: int = 0):
    return random_windows(np.random.default_rng(seed).random((num, 4)), (0.1, 1.0), (0.75, 1.33)).tolist()


@pytest.mark.parametrize("size, kind", [((90, 60), "bilinear"), ((200, 301), "bicubic"), ((20, 15), "lanczos")])
def test_a_jpeg_is_resized_as_pillow_does_it(size, kind, monkeypatch):
    monkeypatch.setattr(decode, "decode_part", lambda *_: pytest.fail("left to Pillow"))
    how, data = preprocessing(48, interpolation=kind), encoded(photo(*size), "JPEG", quality=95)
    for window in [WHOLE, *windows(5)]:
        scaled = wanted_part(*size, how, None, window, 0.5, can_scale=True)[0] < 8
        apart = np.abs(decoded(data, how=how, window=window) - full(data, how, window))
        # Unscaled, only the rounding of two resizings differs; scaled, the decoder's filter does, too
        assert apart.mean() < 4 if scaled else apart.max() <= 2


def test_a_jpeg_that_was_decoded_before_is_the_same_photo():
    data = encoded(smooth(960, 640), "JPEG", quality=95)
    box = np.array([480, 160, 960, 640], np.float32)
    image = open_bytes(data)
    image.load()
    for part in (box, box, None):  # it may be used again
        again = decode_image(image, preprocessing(), part)
        assert np.abs(again.numpy().astype(int) - decoded(data, part)).max() <= 8


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode, subsampling", [("RGB", 0), ("RGB", 1), ("RGB", 2), ("L", 0)])
def test_any_part_at_any_scale_has_the_pixels_of_pillow(mode, subsampling, progressive):
    scales, profile = set(), bytes(0 if progressive else 70_000)
    for size, size_px in (((333, 217), 64), ((1000, 750), 48), ((17, 300), 8)):
        options = {"progressive": progressive, "subsampling": subsampling, "icc_profile": profile}
        data = encoded(photo(*size, mode), "JPEG", quality=90, **options) + bytes(500)  # trailing bytes do no harm
        for window in (WHOLE, *windows(5, seed=1)):
            how = preprocessing(size_px)
            found = jpeg_part(memoryview(data), how, None, window, 0.5)
            assert np.array_equal(found, np.asarray(decode_part(open_bytes(data), how, None, window)))
            scales.add(wanted_part(*size, how, None, window, 0.5, can_scale=True)[0])
        # So what model.transform returns of an image equals what was trained on
        assert torch.equal(torch.from_numpy(decoded(data, how=how)), decode_image(open_bytes(data), how).int())
    assert scales == {8, 4, 2, 1}


@pytest.mark.parametrize("progressive", [False, True])
def test_damaged_files_other_formats_and_cmyk_are_left_to_pillow(progressive):
    data = encoded(photo(320, 240), "JPEG", quality=90, progressive=progressive)
    others = [encoded(photo(30, 20), "PNG"), encoded(photo(30, 20, "CMYK"), "JPEG"), b"", b"\xff\xd8" * 50]
    others += [data[:length] for length in (*range(700, len(data), 997), len(data) - 300, len(data) - 2)]
    if not progressive:
        middle = len(data) // 2
        others.append(data[:middle] + b"\xff\xd0" * 30 + data[middle + 60 :])  # markers that do not belong there
    for other in others:
        assert jpeg_part(other, preprocessing(32), None, (0.0, 0.0, 0.3, 0.05), 0.5) is None, len(other)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "PPM"])
def test_a_truncated_photo_is_refused_even_if_the_wanted_part_is_there(form):
    data = encoded(photo(320, 240), form)
    for share in (0.2, 0.6, 0.95):
        with pytest.raises(BadImage):
            decoded(data[: int(share * len(data))], window=(0.0, 0.0, 0.3, 0.05))
