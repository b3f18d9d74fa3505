"""Photos on sheets: small ones, texts of a given width, and the grid of predicted and true names."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from PIL import Image

from carvision.data.images import BadImage
from carvision.errors import InputError
from carvision.reports import photos
from carvision.reports.photos import Caption, plot_predictions, read_small, width_px, wrap_text


def texts_of(figure) -> list[str]:
    """Return the texts of a sheet, none of which lies on another or reaches out of the picture."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [text for axes in figure.axes for text in axes.texts if text.get_text() and text.get_visible()]
    boxes = np.array([text.get_window_extent(renderer).extents for text in texts]).reshape(-1, 4)
    assert (boxes[:, :2] > -1).all() and (boxes[:, 2:] < figure.get_size_inches() * figure.dpi + 1).all()
    first, last = np.maximum(boxes[:, None, :2], boxes[:, :2]), np.minimum(boxes[:, None, 2:], boxes[:, 2:])
    both = np.argwhere(np.triu((last - first > 1).all(axis=2), 1))
    assert not len(both), [texts[i].get_text() for i in both[0]]
    return [text.get_text() for text in texts]


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
    with pytest.raises(BadImage, match="outside"):
        read_small(file, square, np.array([0, 0, 300, 90], np.float32))
    (tmp_path / "torn.png").write_bytes(file.read_bytes()[:150])
    with pytest.raises(BadImage, match=r"can't be (decoded|opened)"):
        read_small(tmp_path / "torn.png", square)


@pytest.mark.parametrize("size", [(2401, 1403), (97, 103), (1, 900)])  # odd: the decoder's scaling rounds
def test_a_jpeg_decoded_at_a_smaller_scale_is_the_same_photo(tmp_path, size):
    gradient = np.linspace(0, 255, size[0])[None, :, None] * np.linspace(0.3, 1, size[1])[:, None, None]
    Image.fromarray(gradient.repeat(3, axis=2).astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.png")
    for box in (np.array([0, 0, *size], np.float32), np.full(4, np.nan, np.float32)):
        small, exact = (np.asarray(read_small(tmp_path / f"a.{x}", (140, 100), box)[0], int) for x in ("jpg", "png"))
        assert small.shape == exact.shape and np.abs(small - exact).max() <= 6


@pytest.fixture
def photo(tmp_path) -> str:
    Image.new("RGB", (400, 300), "#3060c0").save(tmp_path / "photo.jpg")
    return str(tmp_path / "photo.jpg")


def test_frames_and_texts_show_what_is_right(photo, tmp_path, figures):
    with pytest.raises(InputError, match="no photo could be used"):
        plot_predictions([], tmp_path / "grid.png")
    good, bad, number = Caption("A", 0.987, "A", True), Caption("B", 0.9, "A", False), Caption("speed 180")
    shots = [(photo, (10, 10, 200, 200), captions) for captions in ([good], [bad], [good, bad], [number])]
    plot_predictions([*shots, (str(tmp_path / "gone.jpg"), None, [good])], tmp_path / "new" / "grid.png")
    (axes,) = figures[0].axes
    frames = [to_hex(patch.get_facecolor()) for patch in axes.patches if patch.zorder == -2]
    assert frames == [photos.RIGHT, photos.WRONG, photos.WRONG, photos.NOT_KNOWN, photos.RIGHT]
    drawn = {text.get_text(): text.get_color() for text in axes.texts}
    assert drawn["A 99 %"] == photos.RIGHT and drawn["A / B 90 %"] == photos.WRONG
    assert {"speed 180", "wrong: true / predicted", "unreadable"} <= set(drawn)
    pixels = np.asarray(Image.open(tmp_path / "new" / "grid.png").convert("RGB")).astype(int)
    assert (np.abs(pixels - (0x30, 0x60, 0xC0)).sum(axis=2) < 6).sum() > 4 * 190 * 140  # the photos themselves


def test_long_names_stay_within_their_photo(photo, tmp_path, figures):
    long = "Chevrolet Corvette Ron Fellows Edition Z06 2007"
    lines = wrap_text(f"{long} " * 3, 200, 9, "bold")
    assert max(width_px(line, 9, "bold") for line in lines) <= 200 and " ".join(lines).split() == long.split() * 3
    for predicted in (long, "Unbreakable" * 9, f"{long} {long}"):
        for caption in (Caption(predicted, 1.0), Caption(predicted, 1.0, long, False)):
            plot_predictions([(photo, None, [caption])], tmp_path / "grid.png")
            lines = texts_of(figures[-1])[2 if caption.true else 1 :]
            assert all(width_px(line, photos.CAPTION_PT) <= photos.TILE_PX[0] for line in lines), lines
            assert len(lines) <= (4 if caption.true else 2) and lines[-1].endswith(" 100 %")
