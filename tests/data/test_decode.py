"""The fast way from bytes to the square shows the same picture as the plain way."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from carvision.data import decode as squares
from carvision.data.decode import decode_image, decode_into, empty_images, load_decoder
from carvision.data.images import BadImage, Preprocessing, decode_part, open_bytes, wanted_part
from carvision.data.loading.dataset import random_window
from tests.data.test_images import encoded, smooth, turned
from tests.data.test_jpeg_part import jpeg, photo

WHOLE = (0.0, 0.0, 1.0, 1.0)


def preprocessing(size_px=32, interpolation="bicubic", resize="squash"):
    return Preprocessing(size_px, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), interpolation, resize)


def fast(data, way, box=None, window=WHOLE, shift=0.5):
    [out] = empty_images(1, way.size_px)
    decode_into(data, way, out, box, window, shift)
    return out.numpy().astype(int)


def plain(data, way, box=None, window=WHOLE, shift=0.5):
    """The same part of the photo, decoded in full and resized by Pillow."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    eighths, part = wanted_part(*image.size, way, box, window, shift, can_scale=data[:2] == b"\xff\xd8")
    corners = [min(value * 8 // eighths, side) for value, side in zip(part, image.size * 2, strict=True)]
    kind = getattr(Image.Resampling, way.interpolation.upper())
    return np.asarray(image.crop(corners).resize((way.size_px, way.size_px), kind)).transpose(2, 0, 1).astype(int)


@pytest.fixture
def no_pillow(monkeypatch):
    """A photo that goes the plain way fails."""
    if load_decoder() is None:
        pytest.skip("no decoder but Pillow is here")

    def refuse(*_):
        raise AssertionError("went the plain way")

    monkeypatch.setattr(squares, "decode_part", refuse)


@pytest.mark.usefixtures("no_pillow")
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(90, 60), (200, 301), (20, 15)])
def test_a_jpeg_is_resized_as_pillow_does_it(size, interpolation):
    way = preprocessing(48, interpolation)
    random = np.random.default_rng(0)
    data = jpeg(photo(*size), quality=95)
    for window in [WHOLE, *(random_window(random, (0.1, 1.0), (0.75, 1.33)) for _ in range(5))]:
        scaled = wanted_part(*size, way, None, window, 0.5, can_scale=True)[0] < 8
        difference = np.abs(fast(data, way, None, window) - plain(data, way, None, window))
        # Not scaled, only the rounding of two resizings differs; scaled, the decoder's filter is another one
        assert difference.mean() < 4 if scaled else difference.max() <= 2


@pytest.mark.usefixtures("no_pillow")
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("box", [None, (48, 8, 92, 30)])
@pytest.mark.parametrize("size_px", [8, 32])
def test_a_turned_jpeg_stands_upright(orientation, box, size_px):
    way = preprocessing(size_px)
    data = turned(smooth(), orientation, "JPEG")
    box = box and np.array(box, np.float32)
    window = (0.1, 0.3, 0.8, 0.9)
    assert np.abs(fast(data, way, box, window) - plain(data, way, box, window)).mean() < 2


@pytest.mark.parametrize("decode", [decode_part, squares.decode_part])
def test_pillow_and_the_fast_decoder_give_the_same_pixels(decode):
    for size in ((333, 217), (1000, 750)):
        data, way = jpeg(photo(*size)), preprocessing(64)
        random = np.random.default_rng(1)
        for _ in range(5):
            window = random_window(random, (0.1, 1.0), (0.75, 1.33))
            found = squares.jpeg_part(data, way, None, window, 0.5)
            if found is not None:
                assert np.array_equal(found, np.asarray(decode(open_bytes(data), way, None, window)))


def test_what_model_transform_gives_of_an_image_is_what_was_trained_on():
    data, way = jpeg(photo(500, 375)), preprocessing(64)
    [out] = empty_images(1, 64)
    decode_into(data, way, out)
    assert torch.equal(out, decode_image(open_bytes(data), way))


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        ("PNG", "RGB", {}),
        ("PNG", "P", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("BMP", "RGB", {}),
        ("TIFF", "L", {}),
        ("JPEG", "CMYK", {"quality": 95}),
        ("JPEG", "L", {"quality": 95}),
        ("JPEG", "RGB", {"quality": 95, "progressive": True}),
        ("JPEG", "RGB", {"quality": 95, "exif": b"Exif\0\0no TIFF header"}),
        ("JPEG", "RGB", {"quality": 95, "icc_profile": bytes(70_000)}),
        ("PPM", "RGB", {}),
    ],
)
def test_other_formats_and_odd_jpegs(form, mode, options):
    data, way = encoded(smooth(300, 200).convert(mode), form, **options), preprocessing()
    assert np.abs(fast(data, way) - plain(data, way)).mean() < 2


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "PPM", "WEBP"])
def test_a_photo_that_is_cut_off_is_refused_though_the_part_is_there(form, share):
    data = encoded(photo(320, 240), form)
    with pytest.raises(BadImage):
        fast(data[: int(share * len(data))], preprocessing(), None, (0.0, 0.0, 0.3, 0.05))


def test_trailing_bytes_spoil_nothing():
    data, way = jpeg(photo(200, 150)), preprocessing()
    assert np.array_equal(fast(data, way), fast(data + bytes(500), way))


@pytest.mark.usefixtures("no_pillow")
def test_raw_pixels_are_looked_at_where_they_lie():
    image = photo(100, 80)
    data = bytearray(encoded(image, "PPM"))
    part = squares.raw_part(data, preprocessing(), None, (0.1, 0.2, 0.5, 0.6), 0.5)
    assert np.array_equal(part, np.asarray(image.crop((10, 16, 50, 48))))
    data[-(100 * 80 * 3) + (16 * 100 + 10) * 3] ^= 255  # of its first pixel, the red
    assert part[0, 0, 0] == 255 - np.asarray(image)[16, 10, 0]


def test_a_bomb_is_refused_before_it_is_decoded():
    data = bytearray(jpeg(photo(16, 16)))
    place = data.index(b"\xff\xc0") + 5  # height and width of the frame
    data[place : place + 4] = b"\xff\xdc\xff\xdc"
    with pytest.raises(BadImage, match=r"65500 x 65500 pixels|more than 178,956,970"):
        fast(bytes(data), preprocessing())


def test_a_photo_is_decoded_once_a_batch(tmp_path, monkeypatch):
    decoder = load_decoder()
    if decoder is None:
        pytest.skip("no decoder but Pillow is here")
    calls = []
    part = type(decoder).part
    monkeypatch.setattr(type(decoder), "part", lambda self, *rest: calls.append(rest[1:]) or part(self, *rest))
    fast(jpeg(photo(640, 480)), preprocessing(), None, (0.0, 0.0, 0.5, 0.5))
    assert calls == [(2, (0, 0, 80, 60))]  # at a quarter, and no pixel outside the part


def test_real_photos_look_the_same(real_photos):
    """The tolerance that docs/benchmarks/loader.md states."""
    files = sorted((real_photos / "stanford_cars" / "cars_train").glob("*.jpg"))[:60]
    random = np.random.default_rng(0)
    way = preprocessing(224)
    means = []
    for file in files:
        data = file.read_bytes()
        window = random_window(random, (0.08, 1.0), (0.75, 1.33))
        means += [np.abs(fast(data, way, None, part) - plain(data, way, None, part)).mean() for part in (WHOLE, window)]
    assert np.mean(means) < 0.5 and max(means) < 6
