"""The grid of true and predicted names."""

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from carvision.errors import InputError
from carvision.reports.photos import RIGHT, TEXT_PX, TEXT_SIZE, WRONG, Caption, _lines, plot_predictions, width_px

LONG = "Chevrolet Corvette Ron Fellows Edition Z06 2007"


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / "photo.jpg"
    Image.new("RGB", (400, 300), "#3060c0").save(file)
    return str(file)


def texts_of(monkeypatch, shots, file):
    """What stands in the picture: [(text, colour)]."""
    drawn = []
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig",
        lambda figure, part, **_: (
            part.touch(), drawn.extend((text.get_text(), text.get_color()) for text in figure.axes[0].texts)
        ),
    )  # fmt: skip
    plot_predictions(shots, file)
    return drawn


def test_right_is_green_and_wrong_red_as_true_and_predicted(monkeypatch, photo, tmp_path):
    right, wrong = Caption("Audi", 0.987, "Audi", True), Caption("X5", 0.5, "X5", False)
    drawn = texts_of(monkeypatch, [(photo, None, [right, wrong, Caption("speed 180")])], tmp_path / "g.png")
    assert ("Audi 99 %", RIGHT) in drawn and ("X5 / X5 50 %", WRONG) in drawn
    assert "speed 180" in [text for text, _ in drawn] and "wrong: true / predicted" in [text for text, _ in drawn]
    drawn = texts_of(monkeypatch, [(photo, None, [Caption("Audi", 0.987)])], tmp_path / "g.png")
    assert [text for text, _ in drawn] == ["predicted class and its probability", "Audi 99 %"]


def test_the_frame_tells_right_from_wrong(photo, tmp_path):
    good, bad = Caption("A", 0.9, "A", True), Caption("B", 0.9, "A", False)
    shots = [(photo, (10, 10, 200, 200), captions) for captions in ([good], [bad], [good, bad], [Caption("A", 0.9)])]
    file = tmp_path / "new" / "grid.png"
    plot_predictions([*shots, (str(tmp_path / "gone.jpg"), None, [good])], file)
    pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
    counts = [
        (np.abs(pixels - [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).sum(axis=2) < 6).sum()
        for colour in ("#1a7f37", "#c62828", "#9a9a9a", "#3060c0")
    ]
    frame = 2 * 4 * (220 + 165)
    assert (
        abs(counts[0] - 2 * frame) < 0.4 * frame
        and abs(counts[1] - 2 * frame) < 0.4 * frame
        and counts[2] > 0.9 * frame
    )
    assert counts[3] > 4 * 190 * 140  # the photos themselves


def test_long_names_stay_within_their_photo():
    for predicted in (LONG, "Unbreakable" * 9, f"{LONG} {LONG}"):
        for caption in (Caption(predicted, 1.0), Caption(predicted, 1.0, LONG, False)):
            lines = [text for text, _ in _lines([caption])]
            assert all(width_px(line, TEXT_SIZE) <= TEXT_PX for line in lines), lines
            assert len(lines) <= (4 if caption.true else 2) and lines[-1].endswith(" 100 %")
    two_lines = ["Chevrolet Silverado 1500", "    Hybrid Crew Cab 2012 98 %"]
    assert [text for text, _ in _lines([Caption("Chevrolet Silverado 1500 Hybrid Crew Cab 2012", 0.98)])] == two_lines


def test_nothing_to_draw(tmp_path, photo):
    with pytest.raises(InputError, match="no photo could be used"):
        plot_predictions([], tmp_path / "grid.png")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't be written"):
        plot_predictions([(photo, None, [Caption("A")])], tmp_path / "file" / "grid.png")
