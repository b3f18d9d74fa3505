"""Sheets of photos, laid out in pixels so that nothing overlaps: small photos, texts of a given width, frames; and the
grid of predicted and true classes.
"""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path
from PIL import Image

from carvision.data.decode import SIDEWAYS, to_rgb, upright_turn
from carvision.data.images import BadImage, check_box, open_image
from carvision.data.packs.read import PackedPhoto
from carvision.errors import InputError
from carvision.reports.plots import DPI, FAINT, TEXT, save_figure

ELLIPSIS, INDENT = "\u2026", "    "
EDGE_PX, FRAME_PX = 14, 4
TITLE_PX, LINE_PX = 22, 17  # line heights of titles and of 9 pt text
RIGHT, WRONG, NOT_KNOWN = "#1a7f37", "#c62828", "#9a9a9a"
BEHIND, UNREADABLE, BOX_COLOUR = "#f4f4f4", "#d0d0d0", "#00d5ff"
# The grid of predictions
TILE_PX = (220, 165)  # width, height: 4 : 3, as most photos are
GAP_PX, HEAD_PX, BELOW_PX = 16, 40, 8
MAX_COLUMNS = 6
TEXT_SIZE, TEXT_PX = 9, 214  # drawn text can be slightly wider than measured
MIN_WIDTH_PX = 2 * EDGE_PX + 480  # for the legend


def create_sheet(width_px: int, height_px: int) -> tuple[Figure, Axes]:
    """Return a figure and its only axes, whose data coordinates are pixels from the top left."""
    figure = Figure(figsize=(width_px / DPI, height_px / DPI), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width_px), ylim=(height_px, 0))
    axes.axis("off")
    return figure, axes


def draw_text(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Write text literally ("$" starts no formula), in a muted colour unless the style has another."""
    looks: dict[str, Any] = {"color": TEXT, "size": 9, "parse_math": False, **style}
    axes.text(x, y, text, **looks)


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


def draw_photo(
    axes: Axes, image: Image.Image, left: float, top: float, room_px: tuple[int, int]
) -> tuple[float, float]:
    """Draw an image in the middle of a tile of room_px (width, height); return the image's left and top, in pixels."""
    axes.add_patch(Rectangle((left, top), *room_px, facecolor=BEHIND, linewidth=0, zorder=-1))  # images have zorder 0
    left, top = left + (room_px[0] - image.width) // 2, top + (room_px[1] - image.height) // 2
    axes.imshow(image, extent=(left, left + image.width, top + image.height, top), aspect="auto", interpolation="none")
    return left, top


def draw_framed(
    axes: Axes,
    photo: str | Path | PackedPhoto,
    colour: str,
    left: float,
    top: float,
    tile_px: tuple[int, int],
    crop: np.ndarray | None = None,
    box: np.ndarray | None = None,
) -> None:
    """Draw a photo in a coloured frame; tile_px: width and height of both.

    crop: the part of the photo to show, box: one to outline; left, top, right, bottom in pixels of the whole photo.
    """
    room = (tile_px[0] - 2 * FRAME_PX, tile_px[1] - 2 * FRAME_PX)
    axes.add_patch(Rectangle((left, top), *tile_px, facecolor=colour, linewidth=0, zorder=-2))
    try:
        image, (width, height) = read_small(photo, room, crop)
    except BadImage:  # the file has changed since the network read it
        axes.add_patch(Rectangle((left + FRAME_PX, top + FRAME_PX), *room, facecolor=BEHIND, linewidth=0, zorder=-1))
        middle = (left + tile_px[0] / 2, top + tile_px[1] / 2)
        draw_text(axes, *middle, "unreadable", ha="center", va="center", color=FAINT)
        return
    x, y = draw_photo(axes, image, left + FRAME_PX, top + FRAME_PX, room)
    if box is not None:
        scale = min(room[0] / width, room[1] / height)
        x1, y1, x2, y2 = np.clip(box * scale, 0, (image.width, image.height) * 2)
        axes.add_patch(Rectangle((x + x1, y + y1), x2 - x1, y2 - y1, fill=False, edgecolor=BOX_COLOUR, linewidth=1))


def draw_unreadable(axes: Axes, left: float, top: float, room_px: tuple[int, int]) -> None:
    """Draw a grey tile for a photo that can't be read."""
    axes.add_patch(Rectangle((left, top), *room_px, facecolor=UNREADABLE))
    draw_text(axes, left + room_px[0] / 2, top + room_px[1] / 2, "unreadable", ha="center", va="center")


def write_title(axes: Axes, lines: list[str]) -> None:
    """Write the lines of a title at the top left, in bold."""
    for i, line in enumerate(lines):
        draw_text(axes, EDGE_PX, EDGE_PX + i * TITLE_PX, line, va="top", size=12, weight="bold")


def shorten_name(name: str, length: int) -> str:
    """Shorten to at most `length` characters."""
    name = " ".join(name.split())
    return name if len(name) <= length else name[: length - 1] + ELLIPSIS


def wrap_text(text: str, room_px: int, size: float, weight: str = "normal", max_lines: int | None = None) -> list[str]:
    """Wrap to lines no wider than room_px; words that are too long are broken."""
    letters = max(4, int(room_px / max(1, width_px(text, size, weight)) * len(text)))
    while True:
        lines = textwrap.wrap(text, letters, max_lines=max_lines, placeholder=f" {ELLIPSIS}") or [""]
        if letters <= 4 or max(width_px(line, size, weight) for line in lines) <= room_px:
            return lines
        letters -= 1


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


class Caption(NamedTuple):
    """The prediction of one head.

    predicted: the class's name, or a number with its head. prob: of the class, None if unknown. true: the true class's
    name, right: whether it was predicted (two classes may share a name); None if the truth is unknown.
    """

    predicted: str
    prob: float | None = None
    true: str | None = None
    right: bool | None = None


Shot = tuple[str, Sequence[float] | None, list[Caption]]  # file, box in pixels or None, one caption per head


def plot_predictions(shots: list[Shot], file: Path) -> None:
    """Write a PNG of photos in order with their predictions: right ones in green, wrong ones in red.

    Raises InputError if there are none, or the file can't be written.
    """
    num_columns = min(MAX_COLUMNS, math.ceil(math.sqrt(1.2 * len(shots))))
    plot_rows([shots[start : start + num_columns] for start in range(0, len(shots), num_columns or 1)], file)


def plot_rows(rows: list[list[Shot]], file: Path) -> None:
    """Write the PNG of plot_predictions with the photos in rows that may differ in length; raises as it does."""
    shots = [shot for row in rows for shot in row]
    if not shots:
        raise InputError("--grid: no photo could be used, so there is nothing to draw")
    num_columns = max(map(len, rows))
    texts = [[_lines(captions) for _, _, captions in row] for row in rows]
    heights = [TILE_PX[1] + BELOW_PX + LINE_PX * max(len(lines) for lines in row) + GAP_PX for row in texts]
    width = max(2 * EDGE_PX + num_columns * (TILE_PX[0] + GAP_PX) - GAP_PX, MIN_WIDTH_PX)
    figure, axes = create_sheet(width, HEAD_PX + sum(heights))
    _draw_legend(axes, shots)
    top = HEAD_PX
    for row, lines_of_row, row_height in zip(rows, texts, heights, strict=True):
        for column, (shot, lines) in enumerate(zip(row, lines_of_row, strict=True)):
            _draw_shot(axes, shot, lines, EDGE_PX + column * (TILE_PX[0] + GAP_PX), top)
        top += row_height
    try:
        save_figure(figure, file)
    except OSError as error:
        raise InputError(f"--grid: {file} can't be written ({error.strerror or error})") from None


def _draw_legend(axes: Axes, shots: list[Shot]) -> None:
    rights = [caption.right for _, _, captions in shots for caption in captions]
    parts = [("predicted class and its probability", TEXT)]
    if any(right is not None for right in rights):
        parts = [("right", RIGHT), ("wrong: true / predicted", WRONG)]
        parts += [("truth not known", NOT_KNOWN)] if None in rights else []
    left = EDGE_PX
    for text, colour in parts:
        draw_text(axes, left, HEAD_PX / 2 - 2, text, va="center", size=11, weight="bold", color=colour)
        left += width_px(text, 11, "bold") + 24


def _draw_shot(axes: Axes, shot: Shot, lines: list[tuple[str, str]], left: float, top: float) -> None:
    file, box, captions = shot
    judged = [caption.right for caption in captions if caption.right is not None]
    colour = NOT_KNOWN if not judged else RIGHT if all(judged) else WRONG
    draw_framed(axes, file, colour, left, top, TILE_PX, box=None if box is None else np.asarray(box))
    for number, (text, text_colour) in enumerate(lines):
        y = top + TILE_PX[1] + BELOW_PX + (number + 0.5) * LINE_PX
        draw_text(axes, left, y, text, va="center", size=TEXT_SIZE, color=text_colour)


def _lines(captions: list[Caption]) -> list[tuple[str, str]]:
    """Return the lines below a photo with their colours: the prediction, or true / predicted if it is wrong."""
    lines = []
    for caption in captions:
        prob = "" if caption.prob is None else f" {100 * caption.prob:.0f} %"
        predicted = wrap_label(caption.predicted, prob, TEXT_PX, TEXT_SIZE)
        if caption.right is not False:
            lines += [(line, TEXT if caption.right is None else RIGHT) for line in predicted]
            continue
        true = caption.true or ""
        whole = f"{true} / {caption.predicted}{prob}"
        fits = width_px(whole, TEXT_SIZE) <= TEXT_PX
        texts = [whole] if fits else [*wrap_label(true, " /", TEXT_PX, TEXT_SIZE), *predicted]
        lines += [(line, WRONG) for line in texts]
    return lines
