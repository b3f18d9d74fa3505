"""Plot the confusion matrix: classes of one parent side by side, coloured by the fraction of the true class."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from scipy.ndimage import maximum_filter

from carvision.reports.evaluation.layout import (
    EDGE_PX,
    LINE_PX,
    TITLE_PX,
    create_sheet,
    shorten_name,
    width_px,
    wrap_text,
    write_text,
    write_title,
)
from carvision.reports.style import FAINT, TEXT, save_figure

MAX_NAMED = 60  # classes up to which every one is named beside the matrix
MATRIX_PX, LARGEST_CELL_PX, NAMED_CELL_PX, NUMBER_CELL_PX = 1000, 56, 17, 30
NAME_PT, PARENT_PT, GAP_PX, LEGEND_PX = 7.5, 8, 8, 64
SMALLEST_WIDTH_PX = 620  # for the legend
SMALLEST_DOT_PX = 3  # smaller mistakes would be invisible
COLOURS = LinearSegmentedColormap.from_list("shares", ["#d3ecc8", "#7cc8bd", "#3a95c5", "#0868ac", "#08366e"])
EMPTY = (0.94, 0.94, 0.94)
NORM = PowerNorm(0.5, 0, 1)  # keeps a few percent visible beside a hundred


@dataclass(frozen=True)
class Label:
    """A name beside the matrix.

    middle: its centre, in pixels from the matrix' top or left. weight: heavier labels are placed first.
    """

    middle: float
    text: str
    weight: int


def plot_confusion(
    cells: pd.DataFrame, names: Sequence[str], parents: Sequence[str], title: str, note: str, file: Path
) -> None:
    """Write a PNG with true classes as rows and predicted ones as columns.

    cells: from `confusions`, with codes in the order of names. parents: of each class, in blocks; "" without parents.
    note: a line below.
    """
    num = len(names)
    cell = max(1, min(LARGEST_CELL_PX, max(MATRIX_PX // num, NAMED_CELL_PX if num <= MAX_NAMED else 1)))
    size = cell * num
    edges = [i for i in range(1, num) if parents[i] != parents[i - 1]]
    shown = _placed(_class_labels(names, cell), NAME_PT)
    named = num <= MAX_NAMED or not any(parents)
    class_px = max(width_px(label.text, NAME_PT) for label in shown) + GAP_PX if named else 0
    blocks = _placed(_block_labels(parents, edges, cell), PARENT_PT) if any(parents) else []
    block_px = max((width_px(label.text, PARENT_PT, "bold") for label in blocks), default=-GAP_PX) + GAP_PX
    left = EDGE_PX + LINE_PX + block_px + class_px
    width = max(left + size + EDGE_PX, SMALLEST_WIDTH_PX)
    lines = wrap_text(title, width - 2 * EDGE_PX, 12, "bold")
    notes = wrap_text(note, width - 2 * EDGE_PX, 9)
    top = EDGE_PX + TITLE_PX * len(lines) + LINE_PX + GAP_PX + block_px + class_px
    figure, axes = create_sheet(width, top + size + LEGEND_PX + LINE_PX * len(notes) + EDGE_PX)
    write_title(axes, lines)
    counts = np.zeros((num, num), dtype=np.int64)
    counts[cells["true"], cells["predicted"]] = cells["photos"]
    axes.imshow(_pixels(counts, cell), extent=(left, left + size, top + size, top), interpolation="none", aspect="auto")
    _draw_lines(axes, [0, *edges, num] if any(parents) else [0, num], left, top, cell, size)
    for labels, away, points, weight in ((shown if named else [], GAP_PX / 2, NAME_PT, "normal"),
                                         (blocks, class_px + GAP_PX / 2, PARENT_PT, "bold")):  # fmt: skip
        style = {"size": points, "weight": weight}
        for label in labels:
            write_text(axes, left - away, top + label.middle, label.text, ha="right", va="center_baseline", **style)
            write_text(axes, left + label.middle, top - away, label.text, ha="center", va="bottom", rotation=90,
                       **style)  # fmt: skip
    write_text(axes, EDGE_PX, top + size / 2, "true", va="center", rotation=90, color=FAINT)
    write_text(axes, left + size / 2, top - block_px - class_px - 4, "predicted", ha="center", va="bottom", color=FAINT)
    if cell >= NUMBER_CELL_PX:
        _write_counts(axes, counts, left, top, cell)
    _draw_legend(axes, EDGE_PX, top + size + 22, bool((counts.sum(axis=1) == 0).any()))
    for i, line in enumerate(notes):
        write_text(axes, EDGE_PX, top + size + LEGEND_PX + i * LINE_PX, line, va="top")
    save_figure(figure, file)


def _class_labels(names: Sequence[str], cell: int) -> list[Label]:
    """Return a label for every class, or for as many evenly spaced ones as fit."""
    step = 1 if len(names) <= MAX_NAMED else -(-_height_px(NAME_PT) // cell)
    return [Label((i + 0.5) * cell, shorten_name(names[i], 44), 1) for i in range(0, len(names), step)]


def _block_labels(parents: Sequence[str], edges: list[int], cell: int) -> list[Label]:
    ends = [0, *edges, len(parents)]
    return [
        Label((first + last) / 2 * cell, shorten_name(parents[first], 24), last - first)
        for first, last in pairwise(ends)
    ]


def _height_px(points: float) -> int:
    return round(1.75 * points)


def _placed(labels: list[Label], points: float) -> list[Label]:
    """Return the labels that don't overlap a heavier one."""
    placed: list[Label] = []
    for label in sorted(labels, key=lambda label: -label.weight):
        if all(abs(label.middle - other.middle) >= _height_px(points) for other in placed):
            placed.append(label)
    return placed


def _pixels(counts: np.ndarray, cell: int) -> np.ndarray:
    """Return the matrix as an image, uint8 (size, size, 3)."""
    photos = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(photos, 1)
    if cell < SMALLEST_DOT_PX:
        shares = maximum_filter(shares, SMALLEST_DOT_PX)
    colours = COLOURS(NORM(shares))[..., :3]
    colours[shares == 0] = 1  # white means none: the lowest colour of the map keeps single mistakes visible
    colours[(photos[:, 0] == 0)[:, None] & (shares == 0)] = EMPTY
    return np.repeat(np.repeat((255 * colours).astype(np.uint8), cell, axis=0), cell, axis=1)


def _draw_lines(axes: Axes, edges: list[int], left: int, top: int, cell: int, size: int) -> None:
    strong = len(edges) < 60
    style = {"colors": FAINT if strong else "#c8c8c8", "linewidths": 0.7 if strong else 0.4}
    offsets = np.array(edges) * cell
    axes.hlines(top + offsets, left, left + size, **style)
    axes.vlines(left + offsets, top, top + size, **style)


def _write_counts(axes: Axes, counts: np.ndarray, left: int, top: int, cell: int) -> None:
    photos = np.maximum(counts.sum(axis=1), 1)
    longest = max(len(f"{count:,}") for count in counts.flat)
    points = min(9.0, 0.9 * cell / (longest * 0.62 * 1.53))
    for row, column in zip(*np.nonzero(counts), strict=True):
        dark = NORM(counts[row, column] / photos[row]) > 0.45
        write_text(axes, left + (column + 0.5) * cell, top + (row + 0.5) * cell, f"{counts[row, column]:,}",
                   ha="center", va="center_baseline", size=points, color="white" if dark else TEXT)  # fmt: skip


def _draw_legend(axes: Axes, left: int, top: int, with_empty: bool) -> None:
    """Draw the colour scale."""
    length, height = 220, 10
    ramp = COLOURS(NORM(np.linspace(0, 1, length) ** 2))[None, :, :3]  # square root, so that small fractions have room
    axes.imshow(ramp, extent=(left, left + length, top + height, top), interpolation="none", aspect="auto")
    for share in (0.01, 0.1, 0.25, 0.5, 1.0):
        x = left + length * share**0.5
        axes.vlines(x, top + height, top + height + 3, colors=FAINT, linewidths=0.7)
        write_text(axes, x, top + height + 5, f"{100 * share:.0f}", ha="center", va="top", size=8)
    text = "% of the true class' photos" + ("; grey: a class without photos" if with_empty else "")
    write_text(axes, left + length + 16, top + height / 2, text, va="center_baseline", size=8)
