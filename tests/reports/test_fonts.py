"""Pictures have the letters of installed fonts, and one line says which font to install where letters lack."""

import logging
import warnings

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.font_manager import fontManager
from PIL import Image

from carvision.reports import plots
from carvision.reports.photos import width_px

NAME = "Test Gothic"


def write_font(file, width: int = 2000) -> str:
    """Write a font that has only 日 and 本: filled squares, a full em high and wide where width is 1000."""
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord("日"): "square", ord("本"): "square"})
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, width), (width, width), (width, 0)):
        pen.lineTo(corner)
    pen.closePath()
    builder.setupGlyf({name: pen.glyph() for name in (".notdef", "square")})
    builder.setupHorizontalMetrics(dict.fromkeys((".notdef", "square"), (width, 0)))
    builder.setupHorizontalHeader(ascent=width, descent=0)
    builder.setupNameTable({"familyName": NAME, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(file)
    return str(file)


@pytest.fixture
def installed(monkeypatch):
    """Return a function that makes these files the only installed fonts, beside those that matplotlib brings."""

    def forget():
        for cached in (plots._installed_fonts, plots._installed_family, fontManager._findfont_cached):
            cached.cache_clear()
        plots._named_packages.clear()

    def install(*files: str) -> None:
        own = [entry for entry in fontManager.ttflist if "mpl-data" in str(entry.fname)]
        monkeypatch.setattr(fontManager, "ttflist", own)
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: list(files))
        forget()

    yield install
    monkeypatch.undo()
    forget()


def draw(file) -> Image.Image:
    figure, panels = plots.create_panels(1, 1, 4, 3)
    panels[0, 0].set_yticks([0, 1], ["日", "a"])
    plots.draw_line(panels[0, 0], [0, 1], [0, 1], "#4477aa", "日本")
    plots.finish(figure, "Ünïcode 日本", file)
    return Image.open(file)


def test_letters_come_from_an_installed_font(installed, tmp_path, caplog):
    installed()
    with warnings.catch_warnings(action="error"):
        without = draw(tmp_path / "without.png")
    [line] = caplog.messages  # one for all letters, and none of matplotlib's
    assert line.startswith("pictures: no installed font has the letters 日, ") and "install fonts-noto-cjk " in line
    caplog.clear()
    narrow = width_px("日本", 9)
    installed(write_font(tmp_path / "test.ttf"))
    assert plots.font_families("日本 Ü")[1:] == [NAME] and plots.font_families("Ünï") == plots.font_families("")
    with warnings.catch_warnings(action="error"):
        drawn = draw(tmp_path / "with.png")
    assert caplog.messages == [] and width_px("日本", 9) > narrow  # measured as drawn
    assert drawn.tobytes() != without.tobytes()


def test_a_line_for_each_package_of_fonts_once(installed, caplog):
    installed()
    with caplog.at_level(logging.WARNING):
        for text in ("日", "本 한", "ह", "\ufe0f\u200d\n"):
            plots.font_families(text)
    assert [message.partition("install ")[2].split()[0] for message in caplog.messages] == [
        "fonts-noto-cjk", "fonts-noto-core"
    ]  # fmt: skip


def test_a_damaged_font_is_passed_over(installed, tmp_path):
    (tmp_path / "bad.ttf").write_bytes(b"no font")
    installed(str(tmp_path / "bad.ttf"), write_font(tmp_path / "test.ttf"))
    assert plots.font_families("日")[1:] == [NAME]


def test_a_title_of_wide_letters_stays_within_the_picture(installed, tmp_path):
    installed(write_font(tmp_path / "test.ttf", width=1000))
    for title in ("日" * 90, "a long title of words " * 5):
        figure, _ = plots.create_panels(1, 1, 5, 3)
        plots.finish(figure, title, tmp_path / "title.png")
        assert figure._suptitle.get_window_extent().x1 < figure.bbox.x1
