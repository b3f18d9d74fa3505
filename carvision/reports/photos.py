"""Helpers for sheets of photos: small upright photos, and text of a given width.

Lay out pictures in pixels, so that nothing overlaps.

Draw a grid of photos with their predictions and, if known, true classes: right in green, wrong in red.
"""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path
from PIL import Image

from carvision.data.images import SIDEWAYS, BadImage, check_box, open_image, to_rgb, upright_turn
from carvision.data.packs.read import PackedPhoto
from carvision.errors import InputError
from carvision.reports.plots import DPI, FAINT, TEXT, save_figure

ELLIPSIS, INDENT = "\u2026", "    "


def read_small(
    photo: str | Path | PackedPhoto, room_px: tuple[int, int], box: np.ndarray | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """Read a photo, or its box, upright and scaled to fit into room_px (width, height).

    Also returns the size of the whole upright photo, which boxes refer to. Raises BadImage, also for a box outside the
    photo.
    """
    with open_image(photo) as image:
        try:
            turn = upright_turn(image)
            width, height = image.size[::-1] if turn in SIDEWAYS else image.size
            left, top, right, bottom = 0, 0, width, height
            if box is not None and not np.isnan(box).any():
                check_box(box, width, height)
                left, top, right, bottom = np.clip(box, 0, (width, height, width, height)).tolist()
            wide, high = right - left, bottom - top
            # libjpeg scales while decoding, to at least twice the wanted size
            shrink = max(1, int(min(wide, high) // (2 * max(room_px))))
            image.draft("RGB", (image.width // shrink, image.height // shrink))
            image = to_rgb(image)
            image = image if turn is None else image.transpose(turn)
            scale = min(room_px[0] / wide, room_px[1] / high)
            size = (max(1, round(wide * scale)), max(1, round(high * scale)))
            x, y = image.width / width, image.height / height
            part = (left * x, top * y, min(right * x, image.width), min(bottom * y, image.height))
            return image.resize(size, Image.Resampling.BICUBIC, box=part), (width, height)
        except BadImage:
            raise
        except Exception as error:  # each decoder raises its own types
            raise BadImage(f"can't be decoded ({error})") from None


def width_px(line: str, size: float, weight: str = "normal") -> int:
    """Return the width of a line of text; size in points."""
    font = FontProperties(size=size, weight=weight)
    points, _, _ = text_to_path.get_text_width_height_descent(line, font, ismath=False)
    return math.ceil(points * DPI / 72)


def shorten_to_width(text: str, end: str, room_px: int, size: float) -> str:
    """Return text + end, with the text shortened to fit into room_px; size in points."""
    if width_px(text + end, size) <= room_px:
        return text + end
    while len(text) > 1 and width_px(text + ELLIPSIS + end, size) > room_px:
        text = text[:-1].rstrip()
    return text + ELLIPSIS + end


def wrap_label(name: str, end: str, room_px: int, size: float) -> list[str]:
    """Wrap name + end to one or two lines of room_px; the second is indented and shortened if necessary."""
    words = name.split()
    if width_px(" ".join(words) + end, size) <= room_px:
        return [" ".join(words) + end]
    num = max(1, len(words) - 1)  # words of the first line
    while num > 1 and width_px(" ".join(words[:num]), size) > room_px:
        num -= 1
    first, rest = " ".join(words[:num]), " ".join(words[num:])
    if not rest:
        return [shorten_to_width(first, end, room_px, size)]
    return [shorten_to_width(first, "", room_px, size), shorten_to_width(INDENT + rest, end, room_px, size)]


EDGE_PX = 14
TITLE_PX, LINE_PX = 22, 17  # line heights of titles and of 9 pt text


def create_sheet(width_px: int, height_px: int) -> tuple[Figure, Axes]:
    """Return a figure and its only axes, whose data coordinates are pixels from the top left."""
    figure = Figure(figsize=(width_px / DPI, height_px / DPI), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width_px), ylim=(height_px, 0))
    axes.axis("off")
    return figure, axes


def draw_text(axes: Axes, x: float, y: float, text: str, **style) -> None:
    """Write text literally ("$" starts no formula), in a muted colour unless the style has another."""
    axes.text(x, y, text, **{"color": TEXT, "size": 9, "parse_math": False, **style})


def write_title(axes: Axes, lines: list[str]) -> None:
    for i, line in enumerate(lines):
        draw_text(axes, EDGE_PX, EDGE_PX + i * TITLE_PX, line, va="top", size=12, weight="bold")


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


RIGHT, WRONG, NOT_KNOWN = "#1a7f37", "#c62828", "#9a9a9a"
BEHIND, BOX_COLOUR = "#f4f4f4", "#00d5ff"
TILE_PX = (220, 165)  # width, height: 4 : 3, as most photos are
GAP_PX, GRID_EDGE_PX, HEAD_PX, GRID_LINE_PX, FRAME_PX = 16, 14, 40, 17, 4
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
    heights = [TILE_PX[1] + 8 + GRID_LINE_PX * max(len(lines) for lines in row) + GAP_PX for row in texts]
    # A narrow grid leaves room for the legend
    width = max(2 * GRID_EDGE_PX + num_columns * (TILE_PX[0] + GAP_PX) - GAP_PX, 2 * GRID_EDGE_PX + 480)
    height = HEAD_PX + sum(heights)
    figure, axes = create_sheet(width, height)
    _draw_key(axes, shots)
    top = HEAD_PX
    for row, lines_of_row, row_height in zip(rows, texts, heights, strict=True):
        for column, (shot, lines) in enumerate(zip(row, lines_of_row, strict=True)):
            _draw_shot(axes, shot, lines, GRID_EDGE_PX + column * (TILE_PX[0] + GAP_PX), top)
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
    left = GRID_EDGE_PX
    for text, colour in parts:
        draw_text(axes, left, HEAD_PX / 2 - 2, text, va="center", size=11, weight="bold", color=colour)
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
        draw_text(axes, left + wide / 2, top + high / 2, "unreadable", ha="center", va="center", color=FAINT)
    else:
        x, y = left + (wide - image.width) // 2, top + (high - image.height) // 2
        axes.imshow(image, extent=(x, x + image.width, y + image.height, y), aspect="auto", interpolation="none")
        if box is not None:
            scale = min(inner[0] / width, inner[1] / height)
            x1, y1, x2, y2 = np.clip(np.asarray(box) * scale, 0, (image.width, image.height) * 2)
            axes.add_patch(Rectangle((x + x1, y + y1), x2 - x1, y2 - y1, fill=False, edgecolor=BOX_COLOUR, linewidth=1))
    for number, (text, text_colour) in enumerate(lines):
        y_text = top + high + 8 + (number + 0.5) * GRID_LINE_PX
        draw_text(axes, left, y_text, text, va="center", size=TEXT_SIZE, color=text_colour)


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
