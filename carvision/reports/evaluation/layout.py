"""Lay out pictures in pixels, so that nothing overlaps."""

import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from carvision.reports.photos_on_sheets import width_px
from carvision.reports.style import DPI, TEXT

EDGE_PX = 14
TITLE_PX, LINE_PX = 22, 17  # line heights of titles and of 9 pt text


def create_sheet(width_px: int, height_px: int) -> tuple[Figure, Axes]:
    """Return a figure and its only axes, whose data coordinates are pixels from the top left."""
    figure = Figure(figsize=(width_px / DPI, height_px / DPI), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width_px), ylim=(height_px, 0))
    axes.axis("off")
    return figure, axes


def write_text(axes: Axes, x: float, y: float, text: str, **style) -> None:
    """Write text literally ("$" starts no formula), in a muted colour unless the style has another."""
    axes.text(x, y, text, **{"color": TEXT, "size": 9, "parse_math": False, **style})


def write_title(axes: Axes, lines: list[str]) -> None:
    for i, line in enumerate(lines):
        write_text(axes, EDGE_PX, EDGE_PX + i * TITLE_PX, line, va="top", size=12, weight="bold")


def shorten_name(name: str, length: int) -> str:
    """Shorten to at most `length` characters."""
    name = " ".join(name.split())
    return name if len(name) <= length else name[: length - 1] + "\u2026"


def wrap_text(text: str, room_px: int, size: float, weight: str = "normal", max_lines: int | None = None) -> list[str]:
    """Wrap to lines no wider than room_px; words that are too long are broken."""
    letters = max(4, int(room_px / max(1, width_px(text, size, weight)) * len(text)))
    while True:
        lines = textwrap.wrap(text, letters, max_lines=max_lines, placeholder=" \u2026") or [""]
        if letters <= 4 or max(width_px(line, size, weight) for line in lines) <= room_px:
            return lines
        letters -= 1
