"""Draw the most confused classes: mistaken photos beside right ones of both classes."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from carvision.data.images import BadImage
from carvision.evaluation.predictions import Predictions
from carvision.reports.evaluation.layout import (
    EDGE_PX,
    LINE_PX,
    TITLE_PX,
    create_sheet,
    wrap_text,
    write_text,
    write_title,
)
from carvision.reports.photos_on_sheets import read_small
from carvision.reports.style import FAINT, TEXT, save_figure

log = logging.getLogger(__name__)

NUM_PAIRS = 8  # on the sheet; the CSV table has all
NUM_PHOTOS = 2  # per kind
TILE_PX, GAP_PX, GROUP_PX, LEFT_PX, CAPTION_PX = 140, 6, 18, 250, 20
BEHIND, UNREADABLE = "#f4f4f4", "#d0d0d0"
HEADINGS = ("A, recognised", "A, taken for B", "B, taken for A", "B, recognised")


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
        write_text(axes, EDGE_PX, head_px, "No photo is mistaken for another class.", va="top", size=10)
        save_figure(figure, file)
        return
    for group, heading in enumerate(HEADINGS):
        left = EDGE_PX + LEFT_PX + group * group_px
        write_text(axes, left, head_px - 8, heading, va="baseline", weight="bold", color=FAINT)
    probs = predictions.probs(head)
    known, targets = predictions.known(head), predictions.targets[head]
    photos = np.bincount(targets[known].numpy(), minlength=len(names))
    for row, pair in enumerate(pairs.itertuples()):
        top = head_px + row * row_px
        _describe(axes, pair, names, photos, top)
        for group, (true, guess) in enumerate(((pair.a, pair.a), (pair.a, pair.b), (pair.b, pair.a), (pair.b, pair.b))):
            chosen = np.flatnonzero((known & (targets == true) & (predicted == guess)).numpy())
            most_confident = chosen[np.argsort(-probs[chosen, guess].numpy(), kind="stable")][:NUM_PHOTOS]
            left = EDGE_PX + LEFT_PX + group * group_px
            if not len(most_confident):
                write_text(axes, left, top + TILE_PX / 2, "none", va="center", color=FAINT)
            for column, photo in enumerate(most_confident):
                tile_left = left + column * (TILE_PX + GAP_PX)
                _draw_tile(axes, predictions, photo, crop_to_box, tile_left, top)
                caption = f"A {100 * probs[photo, pair.a]:.0f} %, B {100 * probs[photo, pair.b]:.0f} %"
                write_text(axes, tile_left, top + TILE_PX + 4, caption, va="top", size=8)
    save_figure(figure, file)


def _describe(axes: Axes, pair, names: Sequence[str], photos: np.ndarray, top: int) -> None:
    """Write names and counts at the left of the row."""
    for letter, code, other, mistaken in (("A", pair.a, "B", pair.a_as_b), ("B", pair.b, "A", pair.b_as_a)):
        for line in wrap_text(f"{letter}: {names[code]}", LEFT_PX - 24, 9, "bold", max_lines=2):
            write_text(axes, EDGE_PX, top, line, va="top", weight="bold")
            top += LINE_PX
        write_text(axes, EDGE_PX, top, f"{mistaken:,} of {photos[code]:,} taken for {other}", va="top")
        top += LINE_PX + 12


def _draw_tile(axes: Axes, predictions: Predictions, photo: int, crop: bool, left: int, top: int) -> None:
    box = predictions.boxes[photo] if crop and predictions.boxes is not None else None
    opened = predictions.photo(photo)
    try:
        image, _ = read_small(opened, (TILE_PX, TILE_PX), box)
    except BadImage as reason:
        log.warning("%s: %s; its tile on the sheet is grey", opened, reason)
        axes.add_patch(Rectangle((left, top), TILE_PX, TILE_PX, facecolor=UNREADABLE))
        write_text(axes, left + TILE_PX / 2, top + TILE_PX / 2, "unreadable", ha="center", va="center", color=TEXT)
        return
    axes.add_patch(Rectangle((left, top), TILE_PX, TILE_PX, facecolor=BEHIND, zorder=-1))  # images have zorder 0
    left, top = left + (TILE_PX - image.width) // 2, top + (TILE_PX - image.height) // 2
    axes.imshow(image, extent=(left, left + image.width, top + image.height, top), aspect="auto", interpolation="none")
