"""Small photos for sheets."""

import numpy as np
import pytest
from PIL import Image

from carvision.data.images import BadImage
from carvision.reports.photos import read_small


def test_small_photos_are_upright_and_cropped(tmp_path):
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, 100:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the white half is below
    file, square = tmp_path / "a.png", (140, 140)
    Image.fromarray(pixels).save(file, exif=exif)
    image, size = read_small(file, square)
    whole = np.asarray(image)
    assert size == (100, 200) and whole.shape == (140, 70, 3) and whole[:60].max() == 0 and whole[80:].min() == 255
    part = np.asarray(read_small(file, square, np.array([0, 110, 100, 160], np.float32))[0])
    assert part.shape == (70, 140, 3) and part.min() == 255
    assert read_small(file, (90, 50))[0].size == (25, 50)
    with pytest.raises(BadImage, match="outside"):
        read_small(file, square, np.array([0, 0, 300, 90], np.float32))
    (tmp_path / "torn.png").write_bytes(file.read_bytes()[:150])
    with pytest.raises(BadImage, match=r"can't be (decoded|opened)"):
        read_small(tmp_path / "torn.png", square)


@pytest.mark.parametrize("size", [(2401, 1403), (49, 1999), (97, 103), (1, 900), (561, 559)])
def test_a_jpeg_decoded_smaller_is_the_same_photo(tmp_path, size):
    """Odd sizes, too, of which the decoder's rough scaling rounds."""
    gradient = np.linspace(0, 255, size[0])[None, :, None] * np.linspace(0.3, 1, size[1])[:, None, None]
    Image.fromarray(gradient.repeat(3, axis=2).astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.png")
    box = np.array([0, 0, *size], np.float32)
    for chosen in (None, box, np.full(4, np.nan, np.float32)):
        small = np.asarray(read_small(tmp_path / "a.jpg", (140, 100), chosen)[0]).astype(int)
        exact = np.asarray(read_small(tmp_path / "a.png", (140, 100), chosen)[0]).astype(int)
        assert small.shape == exact.shape and np.abs(small - exact).max() <= 6
