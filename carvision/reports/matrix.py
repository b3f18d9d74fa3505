"""Draw a matrix as a heat map, laid out in pixels so that its names never overlap, however many and long they are."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from carvision.reports.photos import (
    EDGE_PX,
    LINE_PX,
    TITLE_PX,
    create_sheet,
    draw_text,
    shorten_name,
    width_px,
    wrap_text,
    write_title,
)
from carvision.reports.plots import FAINT, TEXT, save_figure
from carvision.reports.tables import BEST, OVERALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_NAMED = 60  # rows up to which every one is named
NAME_PT, BLOCK_PT, GAP_PX, LEGEND_PX, NUMBER_CELL_PX = 7.5, 8, 8, 64, 30
MIN_WIDTH_PX, SCALE_PX = 620, (220, 10)  # of the whole, for the legend; of the colour scale
FRAMES = {BEST: 1.0, OVERALL: 2.6}  # line widths
BLUES, ORANGES = ("d3ecc8", "7cc8bd", "3a95c5", "0868ac", "08366e"), ("feedde", "fdbe85", "fd8d3c", "e6550d", "a63603")


class Side(NamedTuple):
    """The rows or the columns. what: they are; names: of each; blocks: of each the group to which it belongs, or ""."""

    what: str
    names: Sequence[str]
    blocks: Sequence[str]

    def edges(self) -> list[int]:
        """Return where blocks begin, but for the first."""
        return [i for i in range(1, len(self.blocks)) if self.blocks[i] != self.blocks[i - 1]]


class Scale(NamedTuple):
    """The colour scale. ramp: float (N, 3), its colours; ticks: {position 0..1 on it: text}; what: it shows."""

    ramp: np.ndarray
    ticks: dict[float, str]
    what: str


def shade(shares: np.ndarray, ramp: Sequence[str] = BLUES) -> np.ndarray:
    """Return the colours of values in 0..1, float (..., 3) in 0..1: between those of the ramp, in hexadecimal."""
    known = np.array([list(bytes.fromhex(colour)) for colour in ramp]) / 255
    return np.stack([np.interp(shares, np.linspace(0, 1, len(ramp)), channel) for channel in known.T], axis=-1)


class Label(NamedTuple):
    """A name beside the matrix.

    middle: its centre, in pixels from the matrix' top or left. weight: of two that overlap, the heavier one is shown.
    """

    middle: float
    text: str
    weight: int


def plot_matrix(
    colours: np.ndarray,
    rows: Side,
    columns: Side,
    scale: Scale,
    cell_px: tuple[int, int],
    texts: Sequence[Sequence[str]],
    title: str,
    note: str,
    file: Path,
    marks: Sequence[Sequence[str]] = (),
) -> None:
    """Write a PNG. colours: float (rows, columns, 3) in 0..1. cell_px: width and height of a cell.

    texts: of the cells, shown if these are high enough. note: lines below. marks: "best" and "overall" are framed.
    """
    cell_width, cell_height = cell_px
    width, height = cell_width * len(columns.names), cell_height * len(rows.names)
    row_names, row_blocks = _labels(rows, cell_height)
    column_names, column_blocks = _labels(columns, cell_width)
    is_flat = 0 < _most_px(column_names, NAME_PT) < cell_width - GAP_PX  # short names are not turned
    names_px, blocks_px = _room_px(row_names, NAME_PT), _room_px(row_blocks, BLOCK_PT, "bold")
    head_px = LINE_PX if is_flat else _room_px(column_names, NAME_PT)
    is_turned, what_px = width_px(rows.what, 9) <= height, width_px(columns.what, 9)
    left = EDGE_PX + LINE_PX + blocks_px + names_px
    left = left if is_turned else max(left, EDGE_PX + width_px(rows.what, 9) + GAP_PX)
    whole = max(left + max(width, what_px) + EDGE_PX, MIN_WIDTH_PX)
    lines, notes = wrap_text(title, whole - 2 * EDGE_PX, 12, "bold"), wrap_text(note, whole - 2 * EDGE_PX, 9)
    above = head_px + _room_px(column_blocks, BLOCK_PT, "bold")
    top = EDGE_PX + TITLE_PX * len(lines) + LINE_PX + GAP_PX + above
    figure, axes = create_sheet(whole, top + height + LEGEND_PX + LINE_PX * len(notes) + EDGE_PX)
    write_title(axes, lines)
    pixels = (255 * colours).astype(np.uint8).repeat(cell_height, axis=0).repeat(cell_width, axis=1)
    axes.imshow(pixels, extent=(left, left + width, top + height, top), interpolation="none", aspect="auto")
    strong = len(rows.edges()) < MAX_NAMED
    style = {"colors": FAINT if strong else "#c8c8c8", "linewidths": 0.7 if strong else 0.4}
    axes.hlines(top + np.array([0, *rows.edges(), len(rows.names)]) * cell_height, left, left + width, **style)
    axes.vlines(left + np.array([0, *columns.edges(), len(columns.names)]) * cell_width, top, top + height, **style)
    for labels, away, points, weight in ((row_names, 0, NAME_PT, "normal"), (row_blocks, names_px, BLOCK_PT, "bold")):
        for label in labels:
            draw_text(axes, left - away - GAP_PX / 2, top + label.middle, label.text, ha="right", va="center_baseline",
                      size=points, weight=weight)  # fmt: skip
    for labels, away, points, weight, turn in ((column_names, 0, NAME_PT, "normal", 0 if is_flat else 90),
                                               (column_blocks, head_px, BLOCK_PT, "bold", 90)):  # fmt: skip
        for label in labels:
            draw_text(axes, left + label.middle, top - away - GAP_PX / 2, label.text, ha="center", va="bottom",
                      size=points, weight=weight, rotation=turn)  # fmt: skip
    if is_turned:
        draw_text(axes, EDGE_PX, top + height / 2, rows.what, va="center", rotation=90, color=FAINT)
    else:
        draw_text(axes, EDGE_PX, top - GAP_PX / 2, rows.what, va="bottom", color=FAINT)
    middle = left + max(width, what_px) / 2
    draw_text(axes, middle, top - above - 4, columns.what, ha="center", va="bottom", color=FAINT)
    if cell_height >= NUMBER_CELL_PX:
        _write_texts(axes, texts, colours, marks, left, top, cell_px)
    _draw_scale(axes, scale, EDGE_PX, top + height + 22)
    for i, line in enumerate(notes):
        draw_text(axes, EDGE_PX, top + height + LEGEND_PX + i * LINE_PX, line, va="top")
    save_figure(figure, file)


def _labels(side: Side, cell_px: int) -> tuple[list[Label], list[Label]]:
    """Return the names and the blocks of a side as far as they don't overlap; with many rows in blocks, no names."""
    num, ends = len(side.names), [0, *side.edges(), len(side.names)]
    names, blocks = [], []
    if num <= MAX_NAMED or not any(side.blocks):
        step = 1 if num <= MAX_NAMED else -(-_height_px(NAME_PT) // cell_px)
        names = [Label((i + 0.5) * cell_px, shorten_name(side.names[i], 44), 1) for i in range(0, num, step)]
    if any(side.blocks):
        blocks = [
            Label((first + last) / 2 * cell_px, shorten_name(side.blocks[first], 24), last - first)
            for first, last in itertools.pairwise(ends)
        ]
    return _without_overlaps(names, NAME_PT), _without_overlaps(blocks, BLOCK_PT)


def _without_overlaps(labels: list[Label], points: float) -> list[Label]:
    """Return the labels that don't overlap a heavier one."""
    shown: list[Label] = []
    for label in sorted(labels, key=lambda label: -label.weight):
        if all(abs(label.middle - other.middle) >= _height_px(points) for other in shown):
            shown.append(label)
    return shown


def _height_px(points: float) -> int:
    """Return the height that a line of this font size needs."""
    return round(1.75 * points)


def _most_px(labels: list[Label], points: float, weight: str = "normal") -> int:
    return max((width_px(label.text, points, weight) for label in labels), default=0)


def _room_px(labels: list[Label], points: float, weight: str = "normal") -> int:
    return _most_px(labels, points, weight) + GAP_PX if labels else 0


def _write_texts(
    axes: "Axes",
    texts: Sequence[Sequence[str]],
    colours: np.ndarray,
    marks: Sequence[Sequence[str]],
    left: int,
    top: int,
    cell_px: tuple[int, int],
) -> None:
    """Write the cells' texts, light on dark colours, and frame the marked cells."""
    from matplotlib.patches import Rectangle

    longest = max((len(text) for row in texts for text in row), default=1)
    points = min(9.0, 0.9 * cell_px[0] / (max(1, longest) * 0.62 * 1.53))
    is_dark = colours @ (0.3, 0.59, 0.11) < 0.58
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            x, y, mark = left + j * cell_px[0], top + i * cell_px[1], marks[i][j] if marks else ""
            looks = {"color": "white" if is_dark[i, j] else TEXT, "weight": "bold" if mark else "normal"}
            middle = x + cell_px[0] / 2, y + cell_px[1] / 2
            draw_text(axes, *middle, text, ha="center", va="center_baseline", size=points, **looks)
            if mark:
                frame = {"fill": False, "edgecolor": "#111111", "linewidth": FRAMES[mark]}
                axes.add_patch(Rectangle((x + 3, y + 3), cell_px[0] - 6, cell_px[1] - 6, **frame))


def _draw_scale(axes: "Axes", scale: Scale, left: int, top: int) -> None:
    length, height = SCALE_PX
    left += width_px(scale.ticks[min(scale.ticks)], 8) // 2  # so that the first of the texts has room
    extent = (left, left + length, top + height, top)
    axes.imshow(scale.ramp[None, :, :3], extent=extent, interpolation="none", aspect="auto")
    for position, text in scale.ticks.items():
        x = left + length * position
        axes.vlines(x, top + height, top + height + 3, colors=FAINT, linewidths=0.7)
        draw_text(axes, x, top + height + 5, text, ha="center", va="top", size=8)
    draw_text(axes, left + length + 16, top + height / 2, scale.what, va="center_baseline", size=8)
