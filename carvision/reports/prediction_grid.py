"""Draw a grid of photos with their predictions and, if known, true classes: right in green, wrong in red."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from carvision.data.images import BadImage
from carvision.errors import InputError
from carvision.reports.evaluation.layout import create_sheet, write_text
from carvision.reports.photos_on_sheets import read_small, width_px, wrap_label
from carvision.reports.style import FAINT, TEXT, save_figure

RIGHT, WRONG, NOT_KNOWN = "#1a7f37", "#c62828", "#9a9a9a"
BEHIND, BOX_COLOUR = "#f4f4f4", "#00d5ff"
TILE_PX = (220, 165)  # width, height: 4 : 3, as most photos are
GAP_PX, EDGE_PX, HEAD_PX, LINE_PX, FRAME_PX = 16, 14, 40, 17, 4
MAX_COLUMNS = 6
TEXT_SIZE, TEXT_PX = 9, 214  # drawn text can be slightly wider than measured


class Caption(NamedTuple):
    """The prediction of one head. predicted: the class's name, or a number with its head. prob: of the class, None if
    unknown. true: the true class's name, right: whether it was predicted (two classes may share a name); None if the
    truth is unknown."""

    predicted: str
    prob: float | None = None
    true: str | None = None
    right: bool | None = None


Shot = tuple[str, Sequence[float] | None, list[Caption]]  # file, box in pixels or None, one caption per head


def plot_predictions(shots: list[Shot], file: Path) -> None:
    """Write a PNG of the photos in order. Raises InputError if there are none, or the file can't be written."""
    num_columns = min(MAX_COLUMNS, math.ceil(math.sqrt(1.2 * len(shots))))
    plot_rows([shots[start : start + num_columns] for start in range(0, len(shots), num_columns or 1)], file)


def plot_rows(rows: list[list[Shot]], file: Path) -> None:
    """Write a PNG of the photos, in rows that may differ in length. Raises InputError as plot_predictions does."""
    shots = [shot for row in rows for shot in row]
    if not shots:
        raise InputError("--grid: no photo could be used, so there is nothing to draw")
    num_columns = max(map(len, rows))
    texts = [[_lines(captions) for _, _, captions in row] for row in rows]
    heights = [TILE_PX[1] + 8 + LINE_PX * max(len(lines) for lines in row) + GAP_PX for row in texts]
    # A narrow grid leaves room for the legend
    width = max(2 * EDGE_PX + num_columns * (TILE_PX[0] + GAP_PX) - GAP_PX, 2 * EDGE_PX + 480)
    height = HEAD_PX + sum(heights)
    figure, axes = create_sheet(width, height)
    _draw_key(axes, shots)
    top = HEAD_PX
    for row, lines_of_row, row_height in zip(rows, texts, heights, strict=True):
        for column, (shot, lines) in enumerate(zip(row, lines_of_row, strict=True)):
            _draw_shot(axes, shot, lines, EDGE_PX + column * (TILE_PX[0] + GAP_PX), top)
        top += row_height
    try:
        save_figure(figure, file)
    except OSError as error:
        raise InputError(f"--grid: {file} can't be written ({error.strerror or error})") from None


def _draw_key(axes: Axes, shots: list[Shot]) -> None:
    known = [caption for _, _, captions in shots for caption in captions if caption.right is not None]
    parts = [("predicted class and its probability", TEXT)]
    if known:
        parts = [("right", RIGHT), ("wrong: true / predicted", WRONG)]
        if any(caption.right is None for _, _, captions in shots for caption in captions):
            parts.append(("truth not known", NOT_KNOWN))
    left = EDGE_PX
    for text, colour in parts:
        write_text(axes, left, HEAD_PX / 2 - 2, text, va="center", size=11, weight="bold", color=colour)
        left += width_px(text, 11, "bold") + 24


def _draw_shot(axes: Axes, shot: Shot, lines: list[tuple[str, str]], left: float, top: float) -> None:
    file, box, captions = shot
    wide, high = TILE_PX
    judged = [caption.right for caption in captions if caption.right is not None]
    colour = NOT_KNOWN if not judged else RIGHT if all(judged) else WRONG
    inner = (wide - 2 * FRAME_PX, high - 2 * FRAME_PX)
    axes.add_patch(Rectangle((left, top), wide, high, facecolor=colour, linewidth=0, zorder=-2))
    axes.add_patch(Rectangle((left + FRAME_PX, top + FRAME_PX), *inner, facecolor=BEHIND, linewidth=0, zorder=-1))
    try:
        image, (width, height) = read_small(file, inner)
    except BadImage:  # changed since it was predicted
        write_text(axes, left + wide / 2, top + high / 2, "unreadable", ha="center", va="center", color=FAINT)
    else:
        x, y = left + (wide - image.width) // 2, top + (high - image.height) // 2
        axes.imshow(image, extent=(x, x + image.width, y + image.height, y), aspect="auto", interpolation="none")
        if box is not None:
            scale = min(inner[0] / width, inner[1] / height)
            x1, y1, x2, y2 = np.clip(np.asarray(box) * scale, 0, (image.width, image.height) * 2)
            axes.add_patch(Rectangle((x + x1, y + y1), x2 - x1, y2 - y1, fill=False, edgecolor=BOX_COLOUR, linewidth=1))
    for number, (text, text_colour) in enumerate(lines):
        y_text = top + high + 8 + (number + 0.5) * LINE_PX
        write_text(axes, left, y_text, text, va="center", size=TEXT_SIZE, color=text_colour)


def _lines(captions: list[Caption]) -> list[tuple[str, str]]:
    """Return the lines below a photo with their colours: the prediction, or true / predicted if it is wrong."""
    lines = []
    for caption in captions:
        prob = "" if caption.prob is None else f" {100 * caption.prob:.0f} %"
        if caption.right is not False:
            colour = TEXT if caption.right is None else RIGHT
            lines += [(line, colour) for line in wrap_label(caption.predicted, prob, TEXT_PX, TEXT_SIZE)]
            continue
        whole = f"{caption.true} / {caption.predicted}{prob}"
        fits = width_px(whole, TEXT_SIZE) <= TEXT_PX
        texts = (
            [whole]
            if fits
            else [
                *wrap_label(caption.true, " /", TEXT_PX, TEXT_SIZE),
                *wrap_label(caption.predicted, prob, TEXT_PX, TEXT_SIZE),
            ]
        )
        lines += [(line, WRONG) for line in texts]
    return lines
