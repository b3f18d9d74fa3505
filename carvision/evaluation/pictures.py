"""The pictures of an evaluation: reliability, accuracy at coverage, confusion matrix, the most confused classes."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from scipy.ndimage import maximum_filter
from torch import Tensor

from carvision.data.images import BadImage
from carvision.evaluation.calibration import COVERAGES, accuracy_by_coverage, calibration_error
from carvision.evaluation.predict import Predictions
from carvision.reports.photos import (
    EDGE_PX,
    LINE_PX,
    TITLE_PX,
    create_sheet,
    draw_photo,
    draw_text,
    draw_unreadable,
    read_small,
    shorten_name,
    width_px,
    wrap_text,
    write_title,
)
from carvision.reports.plots import (
    COLOURS,
    FAINT,
    TEXT,
    create_figure,
    legend_below,
    percent_axis,
    save_figure,
    set_title,
    tidy,
)

log = logging.getLogger(__name__)

# Reliability: bars, the gaps above and below them, the histogram
BAR, ABOVE, BELOW, HISTOGRAM = "#4477aa", "#efbcc2", "#a98db0", "#9db8d2"
# Confusion matrix: classes of one parent side by side, coloured by the fraction of the true class' photos
MAX_NAMED = 60  # classes up to which every one is named beside the matrix
MATRIX_PX, LARGEST_CELL_PX, NAMED_CELL_PX, NUMBER_CELL_PX = 1000, 56, 17, 30
NAME_PT, PARENT_PT, MATRIX_GAP_PX, LEGEND_PX = 7.5, 8, 8, 64
SMALLEST_WIDTH_PX = 620  # for the legend
SMALLEST_DOT_PX = 3  # smaller mistakes would be invisible
SHADES = LinearSegmentedColormap.from_list("shares", ["#d3ecc8", "#7cc8bd", "#3a95c5", "#0868ac", "#08366e"])
EMPTY = (0.94, 0.94, 0.94)
NORM = PowerNorm(0.5, 0, 1)  # keeps a few percent visible beside a hundred
# Most confused classes
NUM_PAIRS = 8  # on the sheet; the CSV table has all
NUM_PHOTOS = 2  # per kind
TILE_PX, GAP_PX, GROUP_PX, LEFT_PX, CAPTION_PX = 140, 6, 18, 250, 20
HEADINGS = ("A, recognised", "A, taken for B", "B, taken for A", "B, recognised")


def plot_reliability(diagrams: dict[str, pd.DataFrame], title: str, file: Path) -> None:
    """Write a PNG of tables of `reliability`, side by side: accuracy by confidence, and a histogram of the photos.

    diagrams: {heading: bins}, uncalibrated and with the temperature.
    """
    figure = create_figure(max(5.6, 4.3 * len(diagrams)), 5.2)
    panels = figure.subplots(2, len(diagrams), height_ratios=(3, 1), squeeze=False, sharex=True)
    for (heading, bins), (diagram, histogram) in zip(diagrams.items(), panels.T, strict=True):
        width = bins["high"] - bins["low"]
        middle, filled = bins["low"] + width / 2, bins["photos"] > 0
        accuracy, confidence = bins["accuracy"][filled], bins["confidence"][filled]
        bars = {"width": width[filled], "edgecolor": "white", "linewidth": 0.8}
        diagram.bar(middle[filled], accuracy, color=BAR, label="accuracy", **bars)
        for colour, gap, label in ((ABOVE, confidence - accuracy, "confidence above it"),
                                   (BELOW, accuracy - confidence, "confidence below it")):  # fmt: skip
            bottom = np.minimum(accuracy, confidence)
            diagram.bar(middle[filled], gap.clip(lower=0), bottom=bottom, color=colour, label=label, **bars)
        diagram.plot((0, 1), (0, 1), color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        diagram.set_title(f"{heading}: ECE {100 * calibration_error(bins):.1f} %", loc="left", size=10, color=TEXT)
        histogram.bar(
            middle, bins["photos"] / max(1, bins["photos"].sum()), color=HISTOGRAM, **{**bars, "width": width}
        )
        histogram.set_xlabel("probability of the most probable class")
        diagram.set(xlim=(0, 1), ylim=(0, 1))
        for axes, grid in ((diagram, "both"), (histogram, "y")):
            percent_axis(axes.xaxis)
            percent_axis(axes.yaxis)
            tidy(axes, grid)
    panels[0, 0].set_ylabel("accuracy")
    panels[1, 0].set_ylabel("photos")
    handles, names = panels[0, 0].get_legend_handles_labels()
    legend_below(figure, handles, names)
    set_title(figure, title)
    save_figure(figure, file)


def plot_coverage(heads: dict[str, tuple[np.ndarray, np.ndarray]], title: str, file: Path) -> None:
    """Write a PNG of the accuracy on the most confident photos, and of the confidence threshold, by their fraction.

    heads: {head: (confidence, right)}, each (N,).
    """
    figure = create_figure(9.0, 3.9)
    panels = figure.subplots(1, 2)
    lowest = 1.0
    for (head, (confidence, right)), colour in zip(heads.items(), itertools.cycle(COLOURS), strict=False):
        accuracy, threshold = accuracy_by_coverage(confidence, right)
        share = np.arange(1, len(accuracy) + 1) / len(accuracy)
        indices = np.ceil(np.array(COVERAGES) * len(share)).astype(int) - 1
        for axes, values in zip(panels, (accuracy, threshold), strict=True):
            axes.plot(share, values, color=colour, linewidth=1.6, label=head, drawstyle="steps-pre")
            axes.plot(share[indices], values[indices], color=colour, marker="o", markersize=4, linestyle="")
        lowest = min(lowest, accuracy.min())
    panels[0].set_ylabel("accuracy")
    panels[0].set_ylim(max(0.0, lowest - 0.05), 1.005)
    panels[1].set_ylabel("lowest probability")
    panels[1].set_ylim(0, 1.02)
    for axes in panels:
        axes.set_xlim(0, 1.01)
        axes.set_xlabel("share of photos, the most confident first")
        percent_axis(axes.xaxis)
        percent_axis(axes.yaxis)
        tidy(axes, "both")
    handles, names = panels[0].get_legend_handles_labels()
    legend_below(figure, handles, names)
    set_title(figure, title)
    save_figure(figure, file)


class Pair(NamedTuple):
    """Two classes, as codes, and how many photos of each are taken for the other."""

    a: int
    b: int
    a_as_b: int
    b_as_a: int


@dataclass(frozen=True)
class Label:
    """A name beside the matrix.

    middle: its centre, in pixels from the matrix' top or left. weight: of two that overlap, the heavier one is shown.
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
    shown = _without_overlaps(_class_labels(names, cell), NAME_PT)
    named = num <= MAX_NAMED or not any(parents)
    class_px = max(width_px(label.text, NAME_PT) for label in shown) + MATRIX_GAP_PX if named else 0
    blocks = _without_overlaps(_block_labels(parents, edges, cell), PARENT_PT) if any(parents) else []
    block_px = (
        max((width_px(label.text, PARENT_PT, "bold") for label in blocks), default=-MATRIX_GAP_PX) + MATRIX_GAP_PX
    )
    left = EDGE_PX + LINE_PX + block_px + class_px
    width = max(left + size + EDGE_PX, SMALLEST_WIDTH_PX)
    lines = wrap_text(title, width - 2 * EDGE_PX, 12, "bold")
    notes = wrap_text(note, width - 2 * EDGE_PX, 9)
    top = EDGE_PX + TITLE_PX * len(lines) + LINE_PX + MATRIX_GAP_PX + block_px + class_px
    figure, axes = create_sheet(width, top + size + LEGEND_PX + LINE_PX * len(notes) + EDGE_PX)
    write_title(axes, lines)
    counts = np.zeros((num, num), dtype=np.int64)
    counts[cells["true"], cells["predicted"]] = cells["photos"]
    axes.imshow(_pixels(counts, cell), extent=(left, left + size, top + size, top), interpolation="none", aspect="auto")
    _draw_lines(axes, [0, *edges, num] if any(parents) else [0, num], left, top, cell, size)
    for labels, away, points, weight in ((shown if named else [], MATRIX_GAP_PX / 2, NAME_PT, "normal"),
                                         (blocks, class_px + MATRIX_GAP_PX / 2, PARENT_PT, "bold")):  # fmt: skip
        style = {"size": points, "weight": weight}
        for label in labels:
            draw_text(axes, left - away, top + label.middle, label.text, ha="right", va="center_baseline", **style)
            draw_text(axes, left + label.middle, top - away, label.text, ha="center", va="bottom", rotation=90,
                       **style)  # fmt: skip
    draw_text(axes, EDGE_PX, top + size / 2, "true", va="center", rotation=90, color=FAINT)
    draw_text(axes, left + size / 2, top - block_px - class_px - 4, "predicted", ha="center", va="bottom", color=FAINT)
    if cell >= NUMBER_CELL_PX:
        _write_counts(axes, counts, left, top, cell)
    _draw_legend(axes, EDGE_PX, top + size + 22, bool((counts.sum(axis=1) == 0).any()))
    for i, line in enumerate(notes):
        draw_text(axes, EDGE_PX, top + size + LEGEND_PX + i * LINE_PX, line, va="top")
    save_figure(figure, file)


def _class_labels(names: Sequence[str], cell: int) -> list[Label]:
    """Return a label for every class, or for as many evenly spaced ones as fit."""
    step = 1 if len(names) <= MAX_NAMED else -(-_height_px(NAME_PT) // cell)
    return [Label((i + 0.5) * cell, shorten_name(names[i], 44), 1) for i in range(0, len(names), step)]


def _block_labels(parents: Sequence[str], edges: list[int], cell: int) -> list[Label]:
    """Return a label for each block of classes of one parent."""
    ends = [0, *edges, len(parents)]
    return [
        Label((first + last) / 2 * cell, shorten_name(parents[first], 24), last - first)
        for first, last in itertools.pairwise(ends)
    ]


def _height_px(points: float) -> int:
    """Return the height that a line of this font size needs."""
    return round(1.75 * points)


def _without_overlaps(labels: list[Label], points: float) -> list[Label]:
    """Return the labels that don't overlap a heavier one."""
    shown: list[Label] = []
    for label in sorted(labels, key=lambda label: -label.weight):
        if all(abs(label.middle - other.middle) >= _height_px(points) for other in shown):
            shown.append(label)
    return shown


def _pixels(counts: np.ndarray, cell: int) -> np.ndarray:
    """Return the matrix as an image, uint8 (size, size, 3)."""
    photos = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(photos, 1)
    if cell < SMALLEST_DOT_PX:
        shares = maximum_filter(shares, SMALLEST_DOT_PX)
    colours = SHADES(NORM(shares))[..., :3]
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
        draw_text(axes, left + (column + 0.5) * cell, top + (row + 0.5) * cell, f"{counts[row, column]:,}",
                   ha="center", va="center_baseline", size=points, color="white" if dark else TEXT)  # fmt: skip


def _draw_legend(axes: Axes, left: int, top: int, with_empty: bool) -> None:
    """Draw the colour scale of the matrix."""
    length, height = 220, 10
    ramp = SHADES(NORM(np.linspace(0, 1, length) ** 2))[None, :, :3]  # square root, so that small fractions have room
    axes.imshow(ramp, extent=(left, left + length, top + height, top), interpolation="none", aspect="auto")
    for share in (0.01, 0.1, 0.25, 0.5, 1.0):
        x = left + length * share**0.5
        axes.vlines(x, top + height, top + height + 3, colors=FAINT, linewidths=0.7)
        draw_text(axes, x, top + height + 5, f"{100 * share:.0f}", ha="center", va="top", size=8)
    text = "% of the true class' photos" + ("; grey: a class without photos" if with_empty else "")
    draw_text(axes, left + length + 16, top + height / 2, text, va="center_baseline", size=8)


def plot_pairs(
    pairs: pd.DataFrame,
    predictions: Predictions,
    head: str,
    names: Sequence[str],
    predicted: Tensor,
    title: str,
    crop_to_box: bool,
    file: Path,
) -> None:
    """Write a PNG with one row for each of the first pairs of `confused_pairs`.

    Shows the two most confident photos of each kind, with the probabilities of both classes. predicted int64 (N,).
    """
    pairs = pairs.iloc[:NUM_PAIRS]
    group_px = NUM_PHOTOS * (TILE_PX + GAP_PX) + GROUP_PX
    width = EDGE_PX + LEFT_PX + len(HEADINGS) * group_px - GROUP_PX - GAP_PX + EDGE_PX
    lines = wrap_text(title, width - 2 * EDGE_PX, 12, "bold")
    head_px = EDGE_PX + TITLE_PX * len(lines) + 2 * LINE_PX
    row_px = TILE_PX + CAPTION_PX + 14
    figure, axes = create_sheet(width, head_px + row_px * max(1, len(pairs)) + EDGE_PX)
    write_title(axes, lines)
    if not len(pairs):
        draw_text(axes, EDGE_PX, head_px, "No photo is mistaken for another class.", va="top", size=10)
        save_figure(figure, file)
        return
    for group, heading in enumerate(HEADINGS):
        left = EDGE_PX + LEFT_PX + group * group_px
        draw_text(axes, left, head_px - 8, heading, va="baseline", weight="bold", color=FAINT)
    probs, known = predictions.probs(head).numpy(), predictions.known(head)
    targets = predictions.targets[head]
    photos = np.bincount(targets[known].numpy(), minlength=len(names))
    for row, pair in enumerate(Pair(*counts) for counts in pairs[list(Pair._fields)].to_numpy().tolist()):
        top = head_px + row * row_px
        _describe_pair(axes, pair, names, photos, top)
        for group, (true, guess) in enumerate(((pair.a, pair.a), (pair.a, pair.b), (pair.b, pair.a), (pair.b, pair.b))):
            chosen = np.flatnonzero((known & (targets == true) & (predicted == guess)).numpy())
            most_confident = chosen[np.argsort(-probs[chosen, guess], kind="stable")][:NUM_PHOTOS]
            left = EDGE_PX + LEFT_PX + group * group_px
            if not len(most_confident):
                draw_text(axes, left, top + TILE_PX / 2, "none", va="center", color=FAINT)
            for column, photo in enumerate(most_confident):
                tile_left = left + column * (TILE_PX + GAP_PX)
                _draw_tile(axes, predictions, photo, crop_to_box, tile_left, top)
                caption = f"A {100 * probs[photo, pair.a]:.0f} %, B {100 * probs[photo, pair.b]:.0f} %"
                draw_text(axes, tile_left, top + TILE_PX + 4, caption, va="top", size=8)
    save_figure(figure, file)


def _describe_pair(axes: Axes, pair: Pair, names: Sequence[str], photos: np.ndarray, top: int) -> None:
    """Write the names and counts of a pair at the left of its row."""
    for letter, code, other, mistaken in (("A", pair.a, "B", pair.a_as_b), ("B", pair.b, "A", pair.b_as_a)):
        for line in wrap_text(f"{letter}: {names[code]}", LEFT_PX - 24, 9, "bold", max_lines=2):
            draw_text(axes, EDGE_PX, top, line, va="top", weight="bold")
            top += LINE_PX
        draw_text(axes, EDGE_PX, top, f"{mistaken:,} of {photos[code]:,} taken for {other}", va="top")
        top += LINE_PX + 12


def _draw_tile(axes: Axes, predictions: Predictions, photo: int, crop: bool, left: int, top: int) -> None:
    box = predictions.boxes[photo] if crop and predictions.boxes is not None else None
    opened = predictions.photo(photo)
    try:
        image, _ = read_small(opened, (TILE_PX, TILE_PX), box)
    except BadImage as reason:
        log.warning("%s: %s; its tile on the sheet is grey", opened, reason)
        draw_unreadable(axes, left, top, (TILE_PX, TILE_PX))
    else:
        draw_photo(axes, image, left, top, (TILE_PX, TILE_PX))
