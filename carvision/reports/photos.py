"""Sheets of photos, laid out in pixels so that nothing overlaps: rows of small photos in frames, with their texts; the
grid of predicted and true classes; and single small photos for a page.
"""

import base64
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from carvision.data.decode import SIDEWAYS, to_rgb, upright_turn
from carvision.data.images import BadImage, check_box, open_image
from carvision.data.packs.read import PackedPhoto
from carvision.errors import InputError
from carvision.reports.plots import DPI, FAINT, TEXT, font_families, quiet_fonts, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ELLIPSIS, INDENT = "\u2026", "    "
EDGE_PX, FRAME_PX = 14, 4
TITLE_PX, LINE_PX = 22, 17  # line heights of titles and of 9 pt text
GAP_PX, BELOW_PX, CAPTION_PX, CAPTION_PT = 8, 6, 15, 8  # between tiles; above, and line height of, captions
RIGHT, WRONG, NOT_KNOWN = "#1a7f37", "#c62828", "#9a9a9a"
BEHIND, UNREADABLE, BOX_COLOUR = "#f4f4f4", "#d0d0d0", "#00d5ff"
# The grid of predictions
TILE_PX = (220, 165)  # width, height: 4 : 3, as most photos are
MAX_COLUMNS = 6
JPEG_QUALITY = 78  # of photos in a page


class Tile(NamedTuple):
    """A photo on a sheet.

    photo: what images.open_image takes, or an image as it is to be drawn. lines: below it, each a text and its colour.
    frame: the colour of its frame, "" for none. crop: the part of it to show, box: one to outline; left, top, right,
    bottom in pixels of the upright photo, NaN or None: the whole, none.
    """

    photo: str | Path | PackedPhoto | Image.Image
    lines: Sequence[tuple[str, str]] = ()
    frame: str = ""
    crop: np.ndarray | None = None
    box: np.ndarray | None = None


class Row(NamedTuple):
    """A row of a sheet. tiles: photos, or a word where there is none, "" for nothing. label: lines at its left, each
    with its weight."""

    tiles: Sequence[Tile | str]
    label: Sequence[tuple[str, str]] = ()


def plot_sheet(
    rows: Sequence[Row],
    file: Path,
    title: str = "",
    legend: Sequence[tuple[str, str]] = (),
    headings: Mapping[int, str] | None = None,
    tile_px: tuple[int, int] = (140, 140),
    apart_px: Mapping[int, int] | None = None,
) -> None:
    """Write a PNG of rows of photos.

    legend: a line of texts with their colours, below the title. headings: {column: text} above it. tile_px: width and
    height of a photo. apart_px: {column: so much more space before it}.
    """
    headings, apart_px = headings or {}, apart_px or {}
    num_columns = max([1, *(len(row.tiles) for row in rows)])
    labels_px = [width_px(text, 9, weight) for row in rows for text, weight in row.label]
    lefts = [EDGE_PX + (max(labels_px) + EDGE_PX if labels_px else 0)]
    for column in range(1, num_columns):
        lefts.append(lefts[-1] + tile_px[0] + GAP_PX + apart_px.get(column, 0))
    legend_px = sum(width_px(text, 11, "bold") + 24 for text, _ in legend)
    width = max(lefts[-1] + tile_px[0], EDGE_PX + legend_px, EDGE_PX + 240) + EDGE_PX
    lines = wrap_text(title, width - 2 * EDGE_PX, 12, "bold") if title else []
    top = EDGE_PX + TITLE_PX * len(lines) + (TITLE_PX if legend else 0) + (LINE_PX if headings else 0) + BELOW_PX
    num_lines = [max([0, *(len(tile.lines) for tile in row.tiles if isinstance(tile, Tile))]) for row in rows]
    heights = [
        max(tile_px[1] + (BELOW_PX + CAPTION_PX * num if num else 0), LINE_PX * len(row.label)) + GAP_PX
        for row, num in zip(rows, num_lines, strict=True)
    ]
    figure, axes = create_sheet(width, top + sum(heights) + EDGE_PX - GAP_PX)
    write_title(axes, lines)
    left = EDGE_PX
    for text, colour in legend:
        middle = EDGE_PX + TITLE_PX * (len(lines) + 0.5) - 2
        draw_text(axes, left, middle, text, va="center", size=11, weight="bold", color=colour)
        left += width_px(text, 11, "bold") + 24
    for column, text in headings.items():
        draw_text(axes, lefts[column], top - BELOW_PX, text, va="baseline", weight="bold", color=FAINT)
    for row, height in zip(rows, heights, strict=True):
        for number, (text, weight) in enumerate(row.label):
            middle = top + tile_px[1] / 2 + (number - (len(row.label) - 1) / 2) * LINE_PX
            draw_text(axes, EDGE_PX, middle, text, va="center", weight=weight)
        for tile, left in zip(row.tiles, lefts, strict=False):
            if isinstance(tile, str):
                draw_text(axes, left, top + tile_px[1] / 2, tile, va="center", color=FAINT)
            else:
                _draw_tile(axes, tile, left, top, tile_px)
        top += height
    save_figure(figure, file)


def _draw_tile(axes: "Axes", tile: Tile, left: float, top: float, tile_px: tuple[int, int]) -> None:
    """Draw a photo in its frame, and its texts; a photo that can't be read is grey."""
    from matplotlib.patches import Rectangle

    for number, (text, colour) in enumerate(tile.lines):
        middle = top + tile_px[1] + BELOW_PX + (number + 0.5) * CAPTION_PX
        draw_text(axes, left, middle, text, va="center", size=CAPTION_PT, color=colour)
    room = tile_px
    if tile.frame:
        axes.add_patch(Rectangle((left, top), *tile_px, facecolor=tile.frame, linewidth=0, zorder=-2))
        left, top, room = left + FRAME_PX, top + FRAME_PX, (tile_px[0] - 2 * FRAME_PX, tile_px[1] - 2 * FRAME_PX)
    try:
        if isinstance(tile.photo, Image.Image):
            image, (width, _) = tile.photo, tile.photo.size
        else:
            image, (width, _) = read_small(tile.photo, room, tile.crop)
    except BadImage:
        axes.add_patch(Rectangle((left, top), *room, facecolor=UNREADABLE, linewidth=0, zorder=-1))
        draw_text(axes, left + room[0] / 2, top + room[1] / 2, "unreadable", ha="center", va="center")
        return
    axes.add_patch(Rectangle((left, top), *room, facecolor=BEHIND, linewidth=0, zorder=-1))  # images have zorder 0
    left, top = left + (room[0] - image.width) // 2, top + (room[1] - image.height) // 2
    axes.imshow(image, extent=(left, left + image.width, top + image.height, top), aspect="auto", interpolation="none")
    if tile.box is not None and not np.isnan(tile.box).any():
        x1, y1, x2, y2 = np.clip(tile.box * (image.width / width), 0, (image.width, image.height) * 2)
        outline = {"fill": False, "edgecolor": BOX_COLOUR, "linewidth": 1.2}
        axes.add_patch(Rectangle((left + x1, top + y1), x2 - x1, y2 - y1, **outline))


def create_sheet(width_px: int, height_px: int) -> tuple["Figure", "Axes"]:
    """Return a figure and its only axes, whose data coordinates are pixels from the top left."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_px / DPI, height_px / DPI), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width_px), ylim=(height_px, 0))
    axes.axis("off")
    return figure, axes


def draw_text(axes: "Axes", x: float, y: float, text: str, **style: Any) -> None:
    """Write text literally ("$" starts no formula), in a muted colour unless the style has another."""
    looks: dict[str, Any] = {"color": TEXT, "size": 9, "parse_math": False, **style}
    axes.text(x, y, text, **looks)


def write_title(axes: "Axes", lines: list[str]) -> None:
    """Write the lines of a title at the top left, in bold."""
    for i, line in enumerate(lines):
        draw_text(axes, EDGE_PX, EDGE_PX + i * TITLE_PX, line, va="top", size=12, weight="bold")


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
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=font_families(line), size=size, weight=weight)
    with nullcontext() if line.isascii() else quiet_fonts():
        points, _, _ = text_to_path.get_text_width_height_descent(line, font, ismath=False)
    return math.ceil(points * DPI / 72)


def wrap_label(name: str, end: str, room_px: int) -> list[str]:
    """Wrap a caption, name + end, to one or two lines of room_px; of a name that is too long, the rest is left out."""
    line = " ".join(name.split()) + end
    if width_px(line, CAPTION_PT) <= room_px:
        return [line]
    first, *rest = wrap_text(name, room_px - width_px(INDENT + end, CAPTION_PT), CAPTION_PT, max_lines=2)
    lines = [first, *(INDENT + line for line in rest)]
    return [*lines[:-1], lines[-1] + end]


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
    rights = [caption.right for row in rows for _, _, captions in row for caption in captions]
    if not any(rows):
        raise InputError("--grid: no photo could be used, so there is nothing to draw")
    legend = [("predicted class and its probability", TEXT)]
    if any(right is not None for right in rights):
        legend = [("right", RIGHT), ("wrong: true / predicted", WRONG)]
        legend += [("truth not known", NOT_KNOWN)] if None in rights else []
    try:
        plot_sheet([Row([_tile_of(*shot) for shot in row]) for row in rows], file, legend=legend, tile_px=TILE_PX)
    except OSError as error:
        raise InputError(f"--grid: {file} can't be written ({error.strerror or error})") from None


def _tile_of(file: str, box: Sequence[float] | None, captions: list[Caption]) -> Tile:
    judged = [caption.right for caption in captions if caption.right is not None]
    colour = NOT_KNOWN if not judged else RIGHT if all(judged) else WRONG
    return Tile(file, _lines(captions), colour, box=None if box is None else np.asarray(box))


def _lines(captions: list[Caption]) -> list[tuple[str, str]]:
    """Return the lines below a photo with their colours: the prediction, or true / predicted if it is wrong."""
    lines, room = [], TILE_PX[0] - 6  # drawn text can be slightly wider than measured
    for caption in captions:
        prob = "" if caption.prob is None else f" {100 * caption.prob:.0f} %"
        predicted = wrap_label(caption.predicted, prob, room)
        if caption.right is not False:
            lines += [(line, TEXT if caption.right is None else RIGHT) for line in predicted]
            continue
        true = caption.true or ""
        whole = f"{true} / {caption.predicted}{prob}"
        fits = width_px(whole, CAPTION_PT) <= room
        texts = [whole] if fits else [*wrap_label(true, " /", room), *predicted]
        lines += [(line, WRONG) for line in texts]
    return lines


def data_uri(image: Image.Image, quality: int = JPEG_QUALITY) -> str:
    """Return an image as a JPEG in a data URI."""
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def small_photo(
    photo: str | Path | PackedPhoto, size_px: int, box: Sequence[float] | np.ndarray | None = None
) -> Image.Image | None:
    """Return a photo, or its part inside a box, scaled to at most size_px on each side; None if it can't be read."""
    crop = None if box is None or np.isnan(box).any() else np.asarray(box, np.float32)
    try:
        return read_small(photo, (size_px, size_px), crop)[0]
    except BadImage:
        return None


def thumbnail(
    photo: str | Path | PackedPhoto, size_px: int, box: np.ndarray | None = None, quality: int = JPEG_QUALITY
) -> str:
    """Return a photo as a data URI, "" if it can't be read. The arguments are small_photo's."""
    image = small_photo(photo, size_px, box)
    return "" if image is None else data_uri(image, quality)
