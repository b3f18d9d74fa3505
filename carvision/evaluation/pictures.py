"""The pictures of an evaluation: reliability, accuracy at coverage, confusion matrix, the most confused classes."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from carvision.evaluation.calibration import COVERAGES, accuracy_by_coverage, calibration_error
from carvision.evaluation.predict import Predictions
from carvision.reports import plots
from carvision.reports.matrix import MAX_NAMED, SCALE_PX, Scale, Side, plot_matrix, shade
from carvision.reports.photos import Row, Tile, plot_sheet, wrap_text

# Reliability: bars, the gaps above and below them, the histogram
BAR, ABOVE, BELOW, HISTOGRAM = "#4477aa", "#efbcc2", "#a98db0", "#9db8d2"
# Confusion matrix: classes of one parent side by side, coloured by the fraction of the true class' photos
MATRIX_PX, LARGEST_CELL_PX, NAMED_CELL_PX = 1000, 56, 17
SMALLEST_DOT_PX = 3  # smaller mistakes would be invisible
EMPTY = 0.94  # grey
TICKS = (0.01, 0.1, 0.25, 0.5, 1.0)
# Most confused classes
NUM_PAIRS = 8  # on the sheet; the CSV table has all
NUM_PHOTOS = 2  # per kind
LEFT_PX, GROUP_PX = 226, 18
HEADINGS = ("A, recognised", "A, taken for B", "B, taken for A", "B, recognised")


def plot_reliability(diagrams: dict[str, pd.DataFrame], title: str, file: Path) -> None:
    """Write a PNG of tables of `reliability`, side by side: accuracy by confidence, and a histogram of the photos.

    diagrams: {heading: bins}, uncalibrated and with the temperature.
    """
    size = max(5.6, 4.3 * len(diagrams)), 5.2
    figure, panels = plots.create_panels(2, len(diagrams), *size, height_ratios=(3, 1), sharex=True)
    for (heading, bins), (diagram, histogram) in zip(diagrams.items(), panels.T, strict=True):
        edges = [*bins["low"], bins["high"].iloc[-1]]
        accuracy, confidence = bins["accuracy"].fillna(0), bins["confidence"].fillna(0)  # of a bin without photos
        lower = np.minimum(accuracy, confidence)
        plots.draw_histogram(diagram, edges, accuracy, BAR, "accuracy")
        plots.draw_histogram(diagram, edges, (confidence - accuracy).clip(lower=0), ABOVE, "confidence above it", lower)
        plots.draw_histogram(diagram, edges, (accuracy - confidence).clip(lower=0), BELOW, "confidence below it", lower)
        plots.draw_line(diagram, (0, 1), (0, 1), plots.FAINT, dashed=True, linewidth=1)
        plots.draw_histogram(histogram, edges, bins["photos"] / max(1, bins["photos"].sum()), HISTOGRAM)
        plots.label_axes(diagram, f"{heading}: ECE {100 * calibration_error(bins):.1f} %", grid="both", percent="xy")
        plots.label_axes(histogram, x="probability of the most probable class", percent="xy")
        diagram.set(xlim=(0, 1), ylim=(0, 1))
    panels[0, 0].set_ylabel("accuracy")
    panels[1, 0].set_ylabel("photos")
    plots.finish(figure, title, file)


def plot_coverage(heads: dict[str, tuple[np.ndarray, np.ndarray]], title: str, file: Path) -> None:
    """Write a PNG of the accuracy on the most confident photos, and of the confidence threshold, by their fraction.

    heads: {head: (confidence, right)}, each (N,).
    """
    figure, [panels] = plots.create_panels(1, 2, 9.0, 3.9)
    lowest = 1.0
    for (head, (confidence, right)), colour in zip(heads.items(), itertools.cycle(plots.COLOURS), strict=False):
        accuracy, threshold = accuracy_by_coverage(confidence, right)
        share = np.arange(1, len(accuracy) + 1) / len(accuracy)
        indices = np.ceil(np.array(COVERAGES) * len(share)).astype(int) - 1
        for axes, values in zip(panels, (accuracy, threshold), strict=True):
            plots.draw_line(axes, share, values, colour, head, drawstyle="steps-pre")
            plots.draw_points(axes, share[indices], values[indices], colour, markersize=4)
        lowest = min(lowest, accuracy.min())
    for axes, what, limits in zip(panels, ("accuracy", "lowest probability"),
                                  ((max(0.0, lowest - 0.05), 1.005), (0, 1.02)), strict=True):  # fmt: skip
        plots.label_axes(axes, "", "share of photos, the most confident first", what, "both", percent="xy")
        axes.set(xlim=(0, 1.01), ylim=limits)
    plots.finish(figure, title, file)


def plot_confusion(
    cells: pd.DataFrame, names: Sequence[str], parents: Sequence[str], title: str, note: str, file: Path
) -> None:
    """Write a PNG with true classes as rows and predicted ones as columns.

    cells: from `confusions`, with codes in the order of names. parents: of each class, in blocks; "" without parents.
    note: a line below.
    """
    num = len(names)
    cell = max(1, min(LARGEST_CELL_PX, max(MATRIX_PX // num, NAMED_CELL_PX if num <= MAX_NAMED else 1)))
    counts = np.zeros((num, num), dtype=np.int64)
    counts[cells["true"], cells["predicted"]] = cells["photos"]
    ticks = {share**0.5: f"{100 * share:.0f}" for share in TICKS}
    what = "% of the true class' photos" + "; grey: a class without photos" * bool((counts.sum(axis=1) == 0).any())
    texts = [[f"{count:,}" if count else "" for count in row] for row in counts.tolist()] if num <= MAX_NAMED else []
    plot_matrix(
        cell_colours(counts, spread=cell < SMALLEST_DOT_PX), Side("true", names, parents),
        Side("predicted", names, parents), Scale(shade(np.linspace(0, 1, SCALE_PX[0])), ticks, what), (cell, cell),
        texts, title, note, file,
    )  # fmt: skip


def cell_colours(counts: np.ndarray, spread: bool) -> np.ndarray:
    """Return the colours of the matrix, float (classes, classes, 3), by the share of the true class' photos.

    Its square root, which keeps a few percent visible beside a hundred. spread: to the neighbours of a cell, too, or a
    cell of a pixel would be invisible.
    """
    from scipy.ndimage import maximum_filter

    photos = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(photos, 1)
    if spread:
        shares = maximum_filter(shares, SMALLEST_DOT_PX)
    colours = shade(np.sqrt(shares))
    colours[shares == 0] = 1  # white means none: the lowest colour of the scale keeps single mistakes visible
    colours[(photos[:, 0] == 0)[:, None] & (shares == 0)] = EMPTY
    return colours


def plot_pairs(
    pairs: pd.DataFrame,
    predictions: Predictions,
    head: str,
    names: Sequence[str],
    predicted: Tensor,
    title: str,
    file: Path,
) -> None:
    """Write a PNG with one row for each of the first pairs of `confused_pairs`.

    Shows the two most confident photos of each kind, with the probabilities of both classes. predicted int64 (N,).
    """
    probs, known, boxes = predictions.probs(head).numpy(), predictions.known(head), predictions.boxes
    targets = predictions.targets[head]
    photos = np.bincount(targets[known].numpy(), minlength=len(names))
    rows = []
    for a, b, a_as_b, b_as_a in pairs[["a", "b", "a_as_b", "b_as_a"]].iloc[:NUM_PAIRS].to_numpy().tolist():
        tiles: list[Tile | str] = []
        for true, guess in itertools.product((a, b), (a, b)):
            chosen = np.flatnonzero((known & (targets == true) & (predicted == guess)).numpy())
            of_kind: list[Tile | str] = [
                Tile(
                    predictions.photo(photo),
                    [(f"A {100 * probs[photo, a]:.0f} %, B {100 * probs[photo, b]:.0f} %", plots.TEXT)],
                    crop=None if boxes is None else boxes[photo],
                )
                for photo in chosen[np.argsort(-probs[chosen, guess], kind="stable")][:NUM_PHOTOS]
            ]
            of_kind = of_kind or ["none"]
            tiles += of_kind + [""] * (NUM_PHOTOS - len(of_kind))
        lines = []
        for letter, code, other, mistaken in (("A", a, "B", a_as_b), ("B", b, "A", b_as_a)):
            name = wrap_text(f"{letter}: {names[code]}", LEFT_PX, 9, "bold", max_lines=2)
            lines += [(line, "bold") for line in name]
            lines.append((f"{mistaken:,} of {photos[code]:,} taken for {other}", "normal"))
        rows.append(Row(tiles, lines))
    if not rows:
        plot_sheet([Row([], [("No photo is mistaken for another class.", "normal")])], file, title)
        return
    starts = range(0, len(HEADINGS) * NUM_PHOTOS, NUM_PHOTOS)
    headings = dict(zip(starts, HEADINGS, strict=True))
    plot_sheet(rows, file, title, headings=headings, apart_px=dict.fromkeys(starts[1:], GROUP_PX))
