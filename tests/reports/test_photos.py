"""Photos on sheets: small ones, texts of a given width, and the grid of predicted and true names."""

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image, ImageColor

from carvision.data.images import BadImage
from carvision.errors import InputError
from carvision.reports.photos import (
    RIGHT,
    TEXT_PX,
    TEXT_SIZE,
    WRONG,
    Caption,
    plot_predictions,
    read_small,
    width_px,
    wrap_text,
)


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


@pytest.mark.parametrize("size", [(2401, 1403), (49, 1999), (97, 103), (1, 900)])  # odd: the decoder's scaling rounds
def test_a_jpeg_decoded_at_a_smaller_scale_is_the_same_photo(tmp_path, size):
    gradient = np.linspace(0, 255, size[0])[None, :, None] * np.linspace(0.3, 1, size[1])[:, None, None]
    Image.fromarray(gradient.repeat(3, axis=2).astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.png")
    for box in (None, np.array([0, 0, *size], np.float32), np.full(4, np.nan, np.float32)):
        small = np.asarray(read_small(tmp_path / "a.jpg", (140, 100), box)[0]).astype(int)
        exact = np.asarray(read_small(tmp_path / "a.png", (140, 100), box)[0]).astype(int)
        assert small.shape == exact.shape and np.abs(small - exact).max() <= 6


def test_wrapped_lines_fit_and_lose_nothing():
    text = "Rolls-Royce Phantom Drophead Coupe Convertible 2012 and others " * 3
    lines = wrap_text(text, 200, 9, "bold")
    assert max(width_px(line, 9, "bold") for line in lines) <= 200 and " ".join(lines).split() == text.split()


@pytest.fixture
def photo(tmp_path) -> str:
    Image.new("RGB", (400, 300), "#3060c0").save(tmp_path / "photo.jpg")
    return str(tmp_path / "photo.jpg")


def test_the_colour_of_the_frame_shows_whether_all_heads_are_right(photo, tmp_path):
    good, bad = Caption("A", 0.9, "A", True), Caption("B", 0.9, "A", False)
    shots = [(photo, (10, 10, 200, 200), captions) for captions in ([good], [bad], [good, bad], [Caption("A", 0.9)])]
    plot_predictions([*shots, (str(tmp_path / "gone.jpg"), None, [good])], tmp_path / "new" / "grid.png")
    pixels = np.asarray(Image.open(tmp_path / "new" / "grid.png").convert("RGB")).astype(int)
    right, wrong, unknown, blue = (
        (np.abs(pixels - ImageColor.getrgb(colour)).sum(axis=2) < 6).sum()
        for colour in ("#1a7f37", "#c62828", "#9a9a9a", "#3060c0")
    )
    frame = 2 * 4 * (220 + 165)
    assert abs(right - 2 * frame) < 0.4 * frame and abs(wrong - 2 * frame) < 0.4 * frame and unknown > 0.9 * frame
    assert blue > 4 * 190 * 140  # the photos themselves


def test_right_is_green_wrong_is_red_and_long_names_stay_within_their_photo(photo, tmp_path, monkeypatch):
    figures, save = [], matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
    )

    def texts_of(*captions: Caption) -> list[tuple[str, str]]:
        """Return the texts of a grid and their colours; the legend is first."""
        plot_predictions([(photo, None, list(captions))], tmp_path / "grid.png")
        return [(text.get_text(), text.get_color()) for text in figures[-1].axes[0].texts]

    drawn = texts_of(Caption("Audi", 0.987, "Audi", True), Caption("X5", 0.5, "X5", False), Caption("speed 180"))
    assert {("Audi 99 %", RIGHT), ("X5 / X5 50 %", WRONG)} <= set(drawn)
    assert {"speed 180", "wrong: true / predicted"} <= {text for text, _ in drawn}
    long = "Chevrolet Corvette Ron Fellows Edition Z06 2007"
    for predicted in (long, "Unbreakable" * 9, f"{long} {long}"):
        for caption in (Caption(predicted, 1.0), Caption(predicted, 1.0, long, False)):
            lines = [text for text, _ in texts_of(caption)[2 if caption.true else 1 :]]
            assert all(width_px(line, TEXT_SIZE) <= TEXT_PX for line in lines), lines
            assert len(lines) <= (4 if caption.true else 2) and lines[-1].endswith(" 100 %")


def test_nothing_to_draw_and_a_file_that_can_not_be_written_are_errors(tmp_path, photo):
    with pytest.raises(InputError, match="no photo could be used"):
        plot_predictions([], tmp_path / "grid.png")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't be written"):
        plot_predictions([(photo, None, [Caption("A")])], tmp_path / "file" / "grid.png")
