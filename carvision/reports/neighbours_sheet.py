"""Draw queries with their nearest photos: those of the query's class in a green frame, others in a red one."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from carvision.data.images import BadImage
from carvision.data.shards import PackedPhoto
from carvision.reports.evaluation.layout import create_sheet, write_text
from carvision.reports.photos_on_sheets import read_small, width_px, wrap_label
from carvision.reports.prediction_grid import BEHIND, NOT_KNOWN, RIGHT, WRONG
from carvision.reports.style import FAINT, TEXT, save_figure

TILE_PX = (150, 112)  # width, height: 4 : 3, as most photos are
GAP_PX, EDGE_PX, HEAD_PX, LINE_PX, FRAME_PX = 12, 14, 40, 16, 4
APART_PX = 26  # between a query and its neighbours
TEXT_SIZE = 8


class Tile(NamedTuple):
    """A photo on the sheet. photo: what images.open_image takes. box: the part of it to show, or None. name: of its
    class. score: similarity or distance to the query, None for a query. right: whether its class is the query's; None
    if unknown."""

    photo: str | Path | PackedPhoto
    box: Sequence[float] | None
    name: str
    score: float | None = None
    right: bool | None = None


def plot_neighbours(rows: list[tuple[Tile, list[Tile]]], measure: str, file: Path) -> None:
    """Write a PNG with one row per query and its neighbours, the nearest first. measure: name of their scores."""
    most = max(len(neighbours) for _, neighbours in rows)
    pitch, row_height = TILE_PX[0] + GAP_PX, TILE_PX[1] + 6 + 3 * LINE_PX + GAP_PX
    width = max(2 * EDGE_PX + (1 + most) * pitch + APART_PX, 640)  # leaves room for the legend
    figure, axes = create_sheet(width, HEAD_PX + len(rows) * row_height)
    left = EDGE_PX
    known = any(tile.right is not None for _, neighbours in rows for tile in neighbours)
    parts = [("query", TEXT), (f"nearest photos, with their {measure}", TEXT)]
    parts += [("same class", RIGHT), ("another class", WRONG)] if known else []
    for text, colour in parts:
        write_text(axes, left, HEAD_PX / 2 - 2, text, va="center", size=11, weight="bold", color=colour)
        left += max(width_px(text, 11, "bold") + 24, pitch + APART_PX if text == "query" else 0)
    for number, (query, neighbours) in enumerate(rows):
        top = HEAD_PX + number * row_height
        _draw(axes, query, EDGE_PX, top)
        for rank, tile in enumerate(neighbours, start=1):
            _draw(axes, tile, EDGE_PX + rank * pitch + APART_PX, top)
    save_figure(figure, file)


def _draw(axes: Axes, tile: Tile, left: float, top: float) -> None:
    wide, high = TILE_PX
    colour = {None: NOT_KNOWN, True: RIGHT, False: WRONG}[tile.right]
    room = (wide - 2 * FRAME_PX, high - 2 * FRAME_PX)
    axes.add_patch(Rectangle((left, top), wide, high, facecolor=colour, linewidth=0, zorder=-2))
    axes.add_patch(Rectangle((left + FRAME_PX, top + FRAME_PX), *room, facecolor=BEHIND, linewidth=0, zorder=-1))
    try:
        image, _ = read_small(tile.photo, room, tile.box)
    except BadImage:  # changed since it was embedded
        write_text(axes, left + wide / 2, top + high / 2, "unreadable", ha="center", va="center", color=FAINT)
    else:
        x, y = left + (wide - image.width) // 2, top + (high - image.height) // 2
        axes.imshow(image, extent=(x, x + image.width, y + image.height, y), aspect="auto", interpolation="none")
    lines = wrap_label(tile.name, "", wide, TEXT_SIZE)
    lines += [f"{tile.score:.3f}"] if tile.score is not None else []
    for number, line in enumerate(lines):
        y_text = top + high + 6 + (number + 0.5) * LINE_PX
        write_text(axes, left, y_text, line, va="center", size=TEXT_SIZE, color=TEXT if tile.right is None else colour)
