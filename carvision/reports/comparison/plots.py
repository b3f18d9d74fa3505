"""The plots of a comparison: curves by epoch, results by one or two settings, accuracy against time and cost."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from carvision.reports.comparison.frame import is_fraction, lower_is_better, pareto_front
from carvision.reports.comparison.settings import Matrix
from carvision.reports.comparison.tables import format_value, matrix_marks, name_of, title_of
from carvision.reports.matrix import BLUES, ORANGES, SCALE_PX, Scale, Side, plot_matrix, shade
from carvision.reports.photos import width_px
from carvision.reports.plots import (
    COLOURS,
    FAINT,
    MARKERS,
    TEXT,
    create_panels,
    draw_epochs,
    draw_line,
    draw_points,
    finish,
    label_axes,
)
from carvision.reports.tables import JOINT

MAX_CURVES = len(COLOURS)
WIDE_RANGE = 20  # ratio of largest to smallest amount above which its axis is logarithmic
FRONT = "#bb5566"
CELL_PX, MAX_TICKS = (84, 40), 8


def plot_comparison(histories: dict[str, pd.DataFrame], metrics: Sequence[str], title: str, file: Path) -> None:
    """Write a PNG of the runs' histories, one panel per metric ("loss", "make/top1").

    Validation is solid, training dashed. histories: {name of the run: rows of history.csv}, at most MAX_CURVES.
    """
    columns = min(len(metrics), 3)
    rows = -(-len(metrics) // columns)
    size = 4.3 * columns if columns > 1 else 8.5, 3.4 * rows if rows > 1 else 3.8
    figure, panels = create_panels(rows, columns, *size)
    log = "y" if any(is_wide(histories, name) for name in metrics) else ""
    last = max(history["epoch"].max() for history in histories.values())
    for axes in panels.ravel()[len(metrics) :]:
        axes.set_visible(False)
    for run, colour, marker in zip(histories, COLOURS, MARKERS, strict=False):  # in the legend
        draw_line(panels[0, 0], [], [], colour, run, marker=marker)
    for kind, dashed in {"validation": False, "training": True}.items():
        draw_line(panels[0, 0], [], [], TEXT, kind, dashed)
    for axes, name in zip(panels.ravel(), metrics, strict=False):
        is_share = is_fraction(f"val/{name}")
        for history, colour, marker in zip(histories.values(), COLOURS, MARKERS, strict=False):
            draw_epochs(axes, history, f"train/{name}", colour, dashed=True, alpha=0.45, linewidth=1.1, marker="")
            every = max(1, len(history) // 8)  # sparse markers, at other epochs for each run
            marks = {"marker": marker, "markevery": (MARKERS.index(marker) % every, every)}
            draw_epochs(axes, history, f"val/{name}", colour, **marks)
        heading = {"loss": "all heads", **JOINT}.get(name, name.split("/")[0])
        label_axes(axes, heading, "epoch", percent="y" if is_share else "", whole="x", log="" if is_share else log)
        axes.set_xlim(0.5, last + 1.5)
        if is_share or not log:
            axes.set_ylim(0, 1.02 if is_share else None)
    finish(figure, title, file)


def is_wide(histories: dict[str, pd.DataFrame], name: str) -> bool:
    """Return whether some losses are so large that a linear scale would flatten the others."""
    columns = [history[f"{s}/{name}"] for history in histories.values() for s in ("train", "val")
               if f"{s}/{name}" in history]  # fmt: skip
    values = pd.concat(columns).dropna() if columns else pd.Series(dtype=float)
    return "loss" in name and len(values) > 0 and values.min() > 0 and values.max() > 50 * values.median()


def plot_against(table: pd.DataFrame, key: str, metric: str, file: Path) -> None:
    """Write R4's plot of one setting: time to best, the metric, the lowest loss, one line per group.

    table: from `against_of`. Runs that differ in their seeds are points around the line of their mean.
    """
    headings = {"best_after_s": "minutes to the best epoch", metric: name_of(metric)}
    headings |= {"lowest_val_loss": "lowest validation loss"}
    headings = {column: heading for column, heading in headings.items() if table[column].notna().any()}
    figure, panels = create_panels(1, len(headings), max(6.0, 3.7 * len(headings)), 3.9)
    points = sorted(table[key].unique())
    is_log = min(points) > 0 and max(points) > 4 * min(points)
    groups = list(table.groupby("group", sort=False))[:MAX_CURVES]
    for axes, (column, heading) in zip(panels[0], headings.items(), strict=True):
        for (group, rows), colour, marker in zip(groups, COLOURS, MARKERS, strict=False):
            values = rows[column] / (60 if column == "best_after_s" else 1)
            mean = values.groupby(rows[key]).mean()
            draw_line(axes, mean.index, mean, colour)
            draw_points(axes, rows[key], values, colour, str(group) if len(groups) > 1 else "", marker, markersize=5)
        label_axes(axes, heading, key, percent="y" if is_fraction(column) else "", log="x" if is_log else "")
        if len(points) <= MAX_TICKS:  # a tick for each; with more, those of the scale, as their names would overlap
            slant = {"rotation": 45} if len(points) > 5 else {}
            axes.set_xticks(points, [f"{point:g}" for point in points], **slant)
            axes.set_xticks([], minor=True)
        if not is_fraction(column):
            axes.set_ylim(bottom=0)
    finish(figure, f"By {key}", file)


def draw_matrix(matrix: Matrix, minutes: bool, file: Path) -> None:
    """Write R4's table as a heat map with numbers; the best of each row is framed, the best of all heavily."""
    frame, column = (matrix.minutes, "wall_min") if minutes else (matrix.values, matrix.metric)
    values = frame.to_numpy(float)
    known, ramp = values[~np.isnan(values)], ORANGES if minutes else BLUES
    low, high = known.min(initial=np.inf), known.max(initial=-np.inf)
    colours = shade((values - low) / max(high - low, 1e-12), ramp)
    colours[np.isnan(values)] = 1
    texts = [[format_value(column, value) for value in row] for row in values]
    width = max(CELL_PX[0], *(width_px(text, 9, "bold") + 16 for row in texts for text in row))
    ticks = {position: format_value(column, low + position * (high - low)) for position in (0.0, 0.5, 1.0)}
    best = "lowest" if lower_is_better(column) else "highest"
    of_set = " on the same data set" if len(set(matrix.data_sets.to_numpy().ravel()) - {""}) > 1 else ""
    plot_matrix(
        colours, Side(matrix.rows, [*map(str, frame.index)], ()), Side(matrix.columns, [*map(str, frame.columns)], ()),
        Scale(shade(np.linspace(0, 1, SCALE_PX[0]), ramp), ticks, title_of(column)), (width, CELL_PX[1]), texts,
        f"{title_of(column)} by {matrix.rows} and {matrix.columns}",
        f"Framed: the {best} of each row{of_set}; heavy frame: of all{of_set}.", file,
        matrix_marks(matrix, frame, column),
    )  # fmt: skip


def plot_trade_off(frame: pd.DataFrame, amount: str, metric: str, file: Path) -> None:
    """Write a PNG of the metric against time ("training_s") or cost ("cost"), one point per run, with the Pareto front.

    Unfinished runs are hollow and never on the front, as their final cost is unknown.
    """
    known = frame.dropna(subset=[amount, metric])
    is_open = (known["state"] == "unfinished").to_numpy()
    amounts, unit = in_unit(known[amount].to_numpy(float)) if amount == "training_s" else (known[amount], "")
    amounts, values = np.asarray(amounts, float), known[metric].to_numpy(float)
    front = pareto_front(np.where(is_open, np.nan, amounts), values, lower_is_better(metric))
    is_few = len(frame) <= MAX_CURVES  # then as in the curves, else by membership of the front
    figure, [[axes]] = create_panels(1, 1, 9.5, 4.3)
    others = [i for i in range(len(known)) if i not in front]
    name = f"Pareto front: no run is both better and {'faster' if unit else 'cheaper'}"
    draw_line(axes, amounts[front], values[front], FRONT, name, drawstyle="steps-post", linewidth=1.2, zorder=1.5)
    for number, i in [*enumerate(front, 1), *((0, i) for i in others)]:
        index = list(frame.index).index(known.index[i])
        colour, marker = (COLOURS[index], MARKERS[index]) if is_few else (FRONT if number else FAINT, "o")
        value = format_value(metric, values[i]) + (" %" if is_fraction(metric) else "")
        spent = f"{amounts[i]:,.3g} {unit}" if unit else f"cost {format_value('cost', amounts[i])}"
        name = f"{known.index[i]}: {value}, {spent}{', unfinished' if is_open[i] else ''}"
        name = f"{number}  {name}" if number else name if is_few else f"{len(others)} other runs"
        inside = "white" if is_open[i] else colour
        draw_points(axes, amounts[i], values[i], colour, name, marker, markersize=7, markerfacecolor=inside)
        if number:
            axes.annotate(str(number), (amounts[i], values[i]), (-5, 5), textcoords="offset points", ha="right",
                          size=9, weight="bold", color=TEXT)  # fmt: skip
    is_log = len(amounts) > 0 and amounts.min() > 0 and amounts.max() / amounts.min() > WIDE_RANGE
    label_axes(
        axes, x=f"training time, {unit}" if unit else "cost", y=name_of(metric), grid="both",
        percent="y" if is_fraction(metric) else "", log="x" if is_log else "",
    )  # fmt: skip
    if not is_log:
        axes.set_xlim(0, 1.05 * amounts.max(initial=1e-9))
    axes.margins(y=0.08)
    finish(figure, f"{name_of(metric)} against {'training time' if unit else 'cost'}", file)


def in_unit(seconds: np.ndarray) -> tuple[np.ndarray, str]:
    """Return the times in the unit that suits the longest, and its name."""
    longest = seconds.max(initial=0)
    size, unit = (1, "seconds") if longest < 300 else (60, "minutes") if longest < 300 * 60 else (3600, "hours")
    return seconds / size, unit
