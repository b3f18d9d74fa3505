"""Fast decoding returns the same pictures as Pillow's full decoding."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from carvision.data import decode
from carvision.data.decode import WHOLE, decode_image, decode_into, decode_part, empty_images, jpeg_part, wanted_part
from carvision.data.images import BadImage, open_bytes
from carvision.data.loading.dataset import random_windows
from tests.data.test_images import encoded, preprocessing, smooth


def photo(width, height, mode="RGB", seed=0):
    """Create a photo of large shapes in strong colours, with noise."""
    random = np.random.default_rng(seed)
    shapes = Image.fromarray(random.integers(0, 255, (7, 9, 3), np.uint8)).resize((width, height))
    noise = random.integers(-20, 20, (height, width, 3))
    return Image.fromarray((np.asarray(shapes) + noise).clip(0, 255).astype(np.uint8)).convert(mode)


def jpeg(image, form="JPEG", **options):
    return encoded(image, form, **{"quality": 90, **options})


def fast(data, how, window=WHOLE):
    [out] = empty_images(1, how.size_px)
    decode_into(data, how, out, None, window)
    return out.numpy().astype(int)


def full(data, how, window=WHOLE):
    """Decode the whole photo, and resize the same part of it by Pillow."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    eighths, part = wanted_part(*image.size, how, None, window, 0.5, can_scale=data[:2] == b"\xff\xd8")
    corners = [min(value * 8 // eighths, side) for value, side in zip(part, image.size * 2, strict=True)]
    kind = getattr(Image.Resampling, how.interpolation.upper())
    return np.asarray(image.crop(corners).resize((how.size_px, how.size_px), kind)).transpose(2, 0, 1).astype(int)


def windows(num: int, seed: int = 0, scale=(0.1, 1.0)):
    random = np.random.default_rng(seed)
    return random_windows(random.random((num, 4)), scale, (0.75, 1.33)).tolist()


@pytest.mark.parametrize(
    ("size", "interpolation"),
    [((90, 60), "bilinear"), ((200, 301), "bicubic"), ((20, 15), "bicubic"), ((90, 60), "lanczos")],
)
def test_a_jpeg_is_resized_as_pillow_does_it(size, interpolation, monkeypatch):
    monkeypatch.setattr(decode, "decode_part", lambda *_: pytest.fail("left to Pillow"))
    how, data = preprocessing(48, interpolation=interpolation), jpeg(photo(*size), quality=95)
    for window in [WHOLE, *windows(5)]:
        scaled = wanted_part(*size, how, None, window, 0.5, can_scale=True)[0] < 8
        difference = np.abs(fast(data, how, window) - full(data, how, window))
        # Unscaled, only the rounding of two resizings differs; scaled, the decoder's filter does, too
        assert difference.mean() < 4 if scaled else difference.max() <= 2


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode, subsampling", [("RGB", 0), ("RGB", 1), ("RGB", 2), ("L", 0)])
def test_any_part_at_any_scale_has_the_pixels_of_pillow(mode, subsampling, progressive):
    scales = set()
    for size, size_px in (((333, 217), 64), ((1000, 750), 48), ((17, 300), 8)):
        data = jpeg(photo(*size, mode), progressive=progressive, subsampling=subsampling)
        for window in (WHOLE, *windows(5, seed=1)):
            how = preprocessing(size_px)
            found = jpeg_part(memoryview(data), how, None, window, 0.5)
            assert np.array_equal(found, np.asarray(decode_part(open_bytes(data), how, None, window)))
            scales.add(wanted_part(*size, how, None, window, 0.5, can_scale=True)[0])
        # So what model.transform returns of an image equals what was trained on
        assert torch.equal(torch.from_numpy(fast(data, how)), decode_image(open_bytes(data), how).int())
    assert scales == {8, 4, 2, 1}


@pytest.mark.parametrize("progressive", [False, True])
def test_damaged_files_other_formats_and_cmyk_are_left_to_pillow(progressive):
    data = jpeg(photo(320, 240), progressive=progressive)
    others = [jpeg(photo(30, 20), "PNG"), jpeg(photo(30, 20, "CMYK")), b"", b"\xff\xd8\xff", b"\xff\xd8" * 50]
    others += [data[:length] for length in (*range(700, len(data), 997), len(data) - 300, len(data) - 2)]
    if not progressive:
        middle = len(data) // 2
        others.append(data[:middle] + b"\xff\xd0" * 30 + data[middle + 60 :])  # markers that do not belong there
    for other in others:
        assert jpeg_part(other, preprocessing(32), None, (0.0, 0.0, 0.3, 0.05), 0.5) is None, len(other)


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        ("PNG", "P", {}), ("WEBP", "RGB", {"lossless": True}), ("JPEG", "CMYK", {"quality": 95}),
        ("JPEG", "RGB", {"quality": 95, "progressive": True}),
        ("JPEG", "RGB", {"quality": 95, "exif": b"Exif\0\0no TIFF header"}),
        ("JPEG", "RGB", {"quality": 95, "icc_profile": bytes(70_000)}), ("PPM", "RGB", {}),
    ],
)  # fmt: skip
def test_other_formats_and_unusual_jpegs_look_the_same(form, mode, options):
    data, how = encoded(smooth(300, 200).convert(mode), form, **options), preprocessing(32)
    assert np.abs(fast(data, how) - full(data, how)).mean() < 2
    if form == "JPEG":
        assert np.array_equal(fast(data, how), fast(data + bytes(500), how))  # trailing bytes do no harm


@pytest.mark.parametrize("form", ["JPEG", "PNG", "PPM"])
def test_a_truncated_photo_is_refused_even_if_the_wanted_part_is_there(form):
    data = encoded(photo(320, 240), form)
    for share in (0.2, 0.6, 0.95):
        with pytest.raises(BadImage):
            fast(data[: int(share * len(data))], preprocessing(32), (0.0, 0.0, 0.3, 0.05))


def test_real_photos_look_the_same(real_photos):
    """The tolerance that docs/benchmarks/loader.md states."""
    files = sorted((real_photos / "stanford_cars" / "cars_train").glob("*.jpg"))[:60]
    how, means = preprocessing(224), []
    for file, window in zip(files, windows(60, scale=(0.08, 1.0)), strict=False):
        data = file.read_bytes()
        means += [np.abs(fast(data, how, w) - full(data, how, w)).mean() for w in (WHOLE, window)]
    assert np.mean(means) < 0.5 and max(means) < 6
