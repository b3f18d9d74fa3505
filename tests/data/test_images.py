"""Photos as they come: every oddity is either decoded to what a person sees, or refused with its reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from carvision.data.decode import decode_into, empty_images
from carvision.data.images import (
    BadImage,
    Preprocessing,
    check_box,
    decode_array,
    decode_part,
    grey_bits,
    open_bytes,
    open_image,
    to_rgb,
)

WIDTH, HEIGHT = 96, 64


def preprocessing(size_px=16, **options):
    return Preprocessing(size_px, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), **options)


def smooth(width=WIDTH, height=HEIGHT):
    """No two sides or corners of it are alike, so that a turn or a wrong crop shows."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([255 * x, 255 * y, 128 + 100 * np.sin(5 * x * y)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image, form, **options):
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def square_of(path, box=None, **options):
    with open_image(path) as image:
        return decode_array(image, preprocessing(**options), box and np.array(box, np.float32))


def plain_square(image, size_px=16, box=None):
    """What decode_array promises, the long way: no draft, whole photo decoded."""
    part = image.convert("RGB").resize((size_px, size_px), Image.Resampling.BICUBIC, box=box)
    return np.asarray(part).transpose(2, 0, 1).astype(int)


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int)).mean()


# Files that can't be read


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_truncation_shows_in_a_jpeg_decoded_at_an_eighth(progressive, mode):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)).resize((240, 160))
    data = encoded(noise.convert(mode), "JPEG", progressive=progressive)
    missed = []
    for length in [*range(len(data) // 8, len(data), len(data) // 40), *range(len(data) - 5, len(data))]:
        try:
            image = Image.open(io.BytesIO(data[:length]))
            decode_array(image, preprocessing(size_px=1))
            missed.append(length)
        except (BadImage, OSError):
            pass
    assert not missed
    image = Image.open(io.BytesIO(data))
    decode_array(image, preprocessing(size_px=1))
    assert image.size == (30, 20)  # an eighth it was


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"a text that is no photo\n" * 20, "not a photo in any format known"),
        (b"\xff\xd8\xff", "not a photo"),
        (None, "the file is missing"),
    ],
)
def test_file_that_is_no_photo_is_refused_with_its_reason(tmp_path, content, reason):
    path = tmp_path / "photo.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadImage, match=reason):
        open_image(path)


def test_folder_is_no_photo_and_the_reason_has_no_path(tmp_path):
    with pytest.raises(BadImage, match="can't be opened") as error:
        open_image(tmp_path)
    assert str(tmp_path) not in str(error.value)


def test_bomb_is_refused_by_its_header_alone(tmp_path):
    """A PNG that claims 60,000 x 60,000 pixels and has none: a decoder would ask for 10 GB."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(BadImage, match=r"more than 178,956,970 pixels.* bomb"):
        open_image(path)


# Modes


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 255, 256, 300], [32768, 40000, 65279, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    with open_image(tmp_path / "deep.png") as image:
        assert image.mode.startswith("I")
        rgb = np.asarray(to_rgb(image))
    assert rgb.tolist() == [[[v // 256] * 3 for v in row] for row in values.tolist()]


def test_thirty_two_bit_integers_hold_as_many_bits_as_their_values_fill():
    for largest, white in ((65535, 255), (70000, 136), (2**31 - 1, 255), (0, 0)):
        values = np.array([[-5, 0, largest]], np.int32)
        assert np.asarray(to_rgb(Image.fromarray(values)))[..., 0].tolist() == [[0, 0, white]]


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_fewer_bits_than_the_file_has_are_scaled_by_the_fewest_that_hold_the_largest(kind, bits):
    grey = np.arange(256).reshape(16, 16)
    values = (grey << (bits - 8)).astype(kind)
    out = io.BytesIO()
    Image.fromarray(values).save(out, "TIFF")
    found = []
    for data in (out.getvalue(), pgm(values)):
        with open_bytes(data) as image:
            found.append(np.asarray(to_rgb(image))[..., 0])
        square = empty_images(1, 16)[0]
        decode_into(data, preprocessing(16), square)
        assert np.abs(square[0].numpy().astype(int) - found[-1]).max() <= 0
    assert (found[0] == grey).all()
    assert np.abs(found[1].astype(int) - (grey << (bits - 8)) // 256).max() <= 1  # which says that it has 16


def pgm(values: np.ndarray) -> bytes:
    return b"P5 %d %d 65535 " % values.shape[::-1] + values.astype(">u2").tobytes()


@pytest.mark.parametrize(("most", "white"), [(65535, 15), (4095, 255), (300, 255), (None, 255)])
def test_a_tiff_can_say_which_value_is_white(most, white):
    """300 is less than the photo's own largest value, and so no statement about it."""
    out = io.BytesIO()
    values = np.array([[0, 4095]], np.uint16)
    Image.fromarray(values).save(out, "TIFF", tiffinfo={} if most is None else {281: most})
    with open_bytes(out.getvalue()) as image:
        assert np.asarray(to_rgb(image))[0, 1, 0] == white
        assert grey_bits(image, values)[1] == (most in (4095, 65535))


def test_floating_point_photo_is_refused():
    with pytest.raises(BadImage, match="floating-point"):
        decode_array(Image.fromarray(np.zeros((4, 4), np.float32)), preprocessing())


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_transparent_palette_entry_becomes_white(tmp_path, transparency):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.paste(0, (0, 0, 4, 8))
    image.save(tmp_path / "palette.png", transparency=transparency)
    pixels = square_of(tmp_path / "palette.png", size_px=8)
    assert pixels[:, 4, 0].tolist() == [10, 20, 30]
    assert pixels[:, 4, 7].tolist() == [255, 255, 255]


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_transparency_is_laid_on_white(tmp_path, form):
    image = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    image.paste((0, 100, 0, 255), (0, 0, 8, 16))
    image.paste((0, 0, 0, 128), (8, 8, 16, 16))
    (tmp_path / "photo").write_bytes(encoded(image, form, lossless=True))
    pixels = square_of(tmp_path / "photo").astype(int)
    assert pixels[:, 4, 2].tolist() == [0, 100, 0]
    assert pixels[:, 2, 13].tolist() == [255, 255, 255]
    assert np.abs(pixels[:, 13, 13] - 127).max() <= 1


# Turned photos


def turned(image, orientation, form):
    """The bytes of a photo that is `image` when it is stood upright by its EXIF orientation."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose of the inverse
    stored = image if orientation == 1 else image.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(stored, form, exif=exif, **({"quality": 95} if form == "JPEG" else {}))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("form", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("TIFF", "RGB"), ("TIFF", "L")]
)
def test_exif_orientations_give_the_same_upright_photo(orientation, form, mode):
    image = smooth().convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.new("L", image.size, 255))
    data = turned(image, orientation, form)
    found = decode_array(Image.open(io.BytesIO(data)), preprocessing())
    assert found.shape == (3, 16, 16) and difference(found, plain_square(image)) < 2
    by_pillow = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert by_pillow.size == (WIDTH, HEIGHT)
    assert difference(found, plain_square(by_pillow)) < 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_box_is_meant_for_the_upright_photo(orientation, form):
    box = (48, 8, 92, 30)
    image = Image.open(io.BytesIO(turned(smooth(), orientation, form)))
    found = decode_array(image, preprocessing(), np.array(box, np.float32))
    assert difference(found, plain_square(smooth(), box=box)) < 2


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0no TIFF header", b"Exif\0\0II*\0\xff\xff\0\0", b""])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of the damage
def test_damaged_exif_spoils_no_photo(form, exif):
    data = encoded(smooth(), form, exif=exif)
    assert difference(decode_array(Image.open(io.BytesIO(data)), preprocessing()), plain_square(smooth())) < 4


@pytest.mark.parametrize("value", [0, 9, 77])
def test_orientation_that_does_not_exist_turns_nothing(value):
    exif = Image.Exif()
    exif[0x0112] = value
    image = Image.open(io.BytesIO(encoded(smooth(), "JPEG", exif=exif)))
    assert difference(decode_array(image, preprocessing()), plain_square(smooth())) < 2


# Boxes


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((10, 10, 150, 60), "box 10 10 150 60 reaches outside the photo of 96 x 64 pixels"),
        ((10, -9, 50, 60), "outside"),
        ((96, 0, 98, 64), "lies outside"),
        ((50, 10, 20, 60), "box 50 10 20 60 has no area"),
        ((10, 60, 20, 60), "has no area"),
    ],
)
def test_wrong_box_is_refused(tmp_path, box, reason):
    smooth().save(tmp_path / "photo.jpg")
    with pytest.raises(BadImage, match=reason):
        square_of(tmp_path / "photo.jpg", box=box)
    with pytest.raises(BadImage, match=reason):
        check_box(np.array(box), WIDTH, HEIGHT)


@pytest.mark.parametrize("box", [(-1, -2, 97, 65.5), (0, 0, 98, 64), [np.nan] * 4])
def test_box_slightly_over_the_edge_is_clipped_and_none_is_the_whole_photo(box):
    whole = decode_array(smooth(), preprocessing(), None)
    assert (decode_array(smooth(), preprocessing(), np.array(box, np.float32)) == whole).all()


def test_two_percent_of_a_large_photo_may_be_over():
    check_box(np.array([0, 0, 1015, 500]), 1000, 500)
    with pytest.raises(BadImage):
        check_box(np.array([0, 0, 1025, 500]), 1000, 500)


# Resizing


@pytest.mark.parametrize(("size", "box"), [((900, 600), None), ((1001, 777), (103, 57, 951, 733))])
def test_scaled_jpeg_decoding_is_close_to_the_plain_way(size, box):
    data = encoded(smooth(*size), "JPEG", quality=95)
    image = Image.open(io.BytesIO(data))
    found = decode_array(image, preprocessing(size_px=64), None if box is None else np.array(box, np.float32))
    assert image.size[0] < size[0] / 2  # it was scaled while decoding
    # of 255; sides that no 8 divides are stretched by up to 7 pixels
    assert difference(found, plain_square(Image.open(io.BytesIO(data)), 64, box)) < 1.5


def test_jpeg_is_never_decoded_smaller_than_wanted():
    image = Image.open(io.BytesIO(encoded(smooth(900, 600), "JPEG")))
    decode_array(image, preprocessing(size_px=64), np.array([400, 200, 520, 320], np.float32))
    assert image.size == (900, 600)  # 120 pixels of the box for 64: half would be too few


def test_window_is_a_part_of_the_box():
    box, window = np.array([20, 10, 80, 50], np.float32), (0.5, 0.25, 1.0, 0.75)
    found = decode_part(smooth(), preprocessing(), box, window)
    assert difference(np.asarray(found), np.asarray(smooth().crop((50, 20, 80, 40)))) == 0


@pytest.mark.parametrize(
    ("resize", "shift", "left", "right"),
    [("crop", 0.0, 0, 64), ("crop", 0.5, 16, 80), ("crop", 1.0, 32, 96), ("squash", 1.0, 0, 96)],
)
def test_crop_takes_a_square_at_the_shift_and_squash_everything(resize, shift, left, right):
    found = decode_part(smooth(), preprocessing(resize=resize), shift=shift)
    assert difference(np.asarray(found), np.asarray(smooth().crop((left, 0, right, 64)))) == 0


def test_square_is_uint8_channels_first_and_contiguous():
    found = decode_array(Image.new("RGB", (30, 20), (10, 20, 30)), preprocessing(size_px=8))
    assert found.shape == (3, 8, 8) and found.dtype == np.uint8 and found.flags.c_contiguous
    assert found[:, 3, 3].tolist() == [10, 20, 30]
