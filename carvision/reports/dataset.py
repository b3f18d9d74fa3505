"""Plot a data set: photos per class, and sheets of sample photos."""

import logging
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from carvision.data.images import BadImage, check_box
from carvision.data.table import BOX, Table
from carvision.reports.evaluation.layout import create_sheet, shorten_name, write_text
from carvision.reports.photos_on_sheets import read_small, width_px
from carvision.reports.style import FAINT, SPLIT_COLOURS, TEXT, create_figure, save_figure, set_title, tidy

log = logging.getLogger(__name__)

MAX_BARS = 60  # classes drawn as bars with names; more are drawn as a curve
MAX_ROWS = 60  # classes on a sheet of samples: 60 rows are 9,000 pixels high
TILE_PX, GAP_PX, HEAD_PX = 140, 8, 40
BEHIND, UNREADABLE, BOX_COLOUR = "#f4f4f4", "#d0d0d0", "#00d5ff"


def plot_class_counts(counts: pd.DataFrame, title: str, file: Path) -> None:
    """Write a PNG of `carvision.data.health.class_counts`, with stacked splits.

    Up to 60 classes: one bar per class, the largest first. More: the curve over the sorted classes, and below it a
    histogram of the class sizes.
    """
    splits = [name for name in SPLIT_COLOURS if name in counts]
    order = np.argsort(-counts["total"].to_numpy(), kind="stable")
    counts = counts.iloc[order].reset_index(drop=True)
    figure = _bars(counts, splits) if len(counts) <= MAX_BARS else _curve_and_histogram(counts, splits)
    set_title(figure, f"{title}: {counts['total'].sum():,} photos of {len(counts):,} classes")
    save_figure(figure, file)


def _bars(counts: pd.DataFrame, splits: list[str]) -> Figure:
    names = [shorten_name(name, 48) for name in counts["name"]]
    figure = create_figure(8.5, 1.3 + 0.22 * len(counts))
    axes = figure.add_subplot()
    y_positions = np.arange(len(counts))
    start = np.zeros(len(counts))
    for split in splits:
        axes.barh(y_positions, counts[split], left=start, height=0.78, color=SPLIT_COLOURS[split], label=split)
        start += counts[split]
    for y, total in enumerate(counts["total"]):
        axes.annotate(f"{total:,}", (total, y), (4, 0), textcoords="offset points", va="center", size=8, color=FAINT)
    axes.set_yticks(y_positions, names, parse_math=False)
    axes.set_ylim(len(counts) - 0.4, -0.6)  # the largest on top
    axes.set_xlabel("photos")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.margins(x=0.08)
    tidy(axes, grid="x")
    _legend(figure, axes, splits)
    return figure


def _curve_and_histogram(counts: pd.DataFrame, splits: list[str]) -> Figure:
    figure = create_figure(9.5, 7)
    curve, histogram = figure.subplots(2, 1, height_ratios=(3, 2))
    total = counts["total"].to_numpy()
    edges = np.arange(len(counts) + 1) + 0.5
    floor = np.zeros(len(counts))
    for split in splits:
        top = floor + counts[split]
        curve.stairs(top, edges, baseline=floor, fill=True, color=SPLIT_COLOURS[split], label=split, linewidth=0)
        floor = top
    curve.set(xlabel="class, sorted by its photos", ylabel="photos", xlim=(edges[0], edges[-1]), ylim=(0, None))
    median = np.median(total)
    curve.axhline(median, color=TEXT, linewidth=0.8, linestyle=(0, (4, 3)))
    curve.annotate(
        f"median {median:,.0f}", (1, median), (-4, 4), ("axes fraction", "data"), "offset points",
        ha="right", size=9, color=TEXT,
    )  # fmt: skip
    first, last = (shorten_name(counts["name"].iloc[i], 48) for i in (0, -1))
    curve.set_title(
        f"largest: {first} ({total[0]:,}); smallest: {last} ({total[-1]:,})",
        loc="left", size=9, color=FAINT, parse_math=False,
    )  # fmt: skip
    histogram.hist(total, bins=_bins(total), color=FAINT, edgecolor="white", linewidth=0.6)
    histogram.set(xlabel="photos in a class", ylabel="classes")
    for axes in (curve, histogram):
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        tidy(axes, grid="y")
    _legend(figure, curve, splits)
    return figure


def _bins(total: np.ndarray) -> np.ndarray:
    """Return the edges of at most 40 bins of equal integer width, so that each covers equally many possible counts."""
    low, high = int(total.min()), int(total.max())
    width = -(-(high - low + 1) // 40)
    return np.arange(low, high + width + 1, width) - 0.5


def _legend(figure: Figure, axes: Axes, splits: list[str]) -> None:
    if splits != ["no split"]:
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper right", ncols=len(names), frameon=False, fontsize=9)


def plot_samples(
    table: Table, label: str, classes: Sequence[int], file: Path, num_per_class: int = 8, seed: int = 0
) -> None:
    """Write a PNG with one row for each of these codes of `label`: its name and random photos of it, whole and upright.

    Boxes are drawn if the table has any. At most 60 rows. An unreadable photo is a grey tile.
    """
    if len(classes) > MAX_ROWS:
        log.warning("%s: the first %d of %d classes are shown", file.name, MAX_ROWS, len(classes))
        classes = classes[:MAX_ROWS]
    names = [_wrapped(table.class_labels[label].names[code], 22) for code in classes]
    left_px = 24 + max((width_px(line, 9) for name in names for line in name.split("\n")), default=0)
    width = left_px + num_per_class * (TILE_PX + GAP_PX)
    height = HEAD_PX + len(classes) * (TILE_PX + GAP_PX)
    figure, axes = create_sheet(width, height)
    title = f"{table.name}: {label}, random photos"
    write_text(axes, 10, HEAD_PX / 2, title, va="center", size=12, weight="bold")
    codes = table.rows[label].to_numpy()
    for row, code in enumerate(classes):
        top = HEAD_PX + row * (TILE_PX + GAP_PX)
        write_text(axes, 10, top + TILE_PX / 2, names[row], va="center")
        # Seeded by class, so that it shows the same photos whichever other classes are chosen
        photos = np.random.default_rng((seed, int(code))).permutation(np.flatnonzero(codes == code))
        if not len(photos):
            write_text(axes, left_px, top + TILE_PX / 2, "no photos", va="center", color=FAINT)
        for column, photo in enumerate(photos[:num_per_class]):
            _draw_tile(axes, table, photo, left_px + column * (TILE_PX + GAP_PX), top)
    save_figure(figure, file)


def _draw_tile(axes: Axes, table: Table, photo: int, left: float, top: float) -> None:
    try:
        image, (width, height) = read_small(table.photo(photo), (TILE_PX, TILE_PX))
    except BadImage:
        axes.add_patch(Rectangle((left, top), TILE_PX, TILE_PX, facecolor=UNREADABLE))
        write_text(axes, left + TILE_PX / 2, top + TILE_PX / 2, "unreadable", ha="center", va="center")
        return
    axes.add_patch(Rectangle((left, top), TILE_PX, TILE_PX, facecolor=BEHIND, zorder=-1))  # images have zorder 0
    left, top = left + (TILE_PX - image.width) // 2, top + (TILE_PX - image.height) // 2
    axes.imshow(image, extent=(left, left + image.width, top + image.height, top), aspect="auto", interpolation="none")
    box = table.rows.loc[photo, BOX].to_numpy(np.float32) if table.has_boxes else None
    if box is None or np.isnan(box).any():
        return
    try:
        check_box(box, width, height)
    except BadImage:
        return  # the scan reports wrong boxes; the photo is shown without
    scale = image.width / width
    x1, y1, x2, y2 = np.clip(box, 0, (width, height, width, height)) * scale
    axes.add_patch(Rectangle((left + x1, top + y1), x2 - x1, y2 - y1, fill=False, edgecolor=BOX_COLOUR, linewidth=1.2))


def _wrapped(name: str, width: int) -> str:
    """Wrap to at most three lines of `width` characters."""
    return "\n".join(textwrap.wrap(name, width, max_lines=3, placeholder=" \u2026")) or " "
