"""The plots of a comparison: curves by epoch, results by one or two settings, accuracy against time and cost."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator, PercentFormatter

from carvision.reports.comparison.frame import is_fraction, lower_is_better, pareto_front
from carvision.reports.comparison.settings import Matrix
from carvision.reports.comparison.tables import format_value, matrix_marks, title_of
from carvision.reports.plots import (
    COLOURS,
    FAINT,
    MARKERS,
    TEXT,
    create_figure,
    legend_below,
    percent_axis,
    save_figure,
    set_title,
    tidy,
)
from carvision.reports.tables import JOINT, OVERALL

MAX_CURVES = len(COLOURS)
WIDE_RANGE = 20  # ratio of largest to smallest amount above which its axis is logarithmic
FRONT = "#bb5566"
LETTERS_PER_INCH = 9  # in a title


def plot_comparison(histories: dict[str, pd.DataFrame], metrics: Sequence[str], title: str, file: Path) -> None:
    """Write a PNG of the runs' histories, one panel per metric ("loss", "make/top1").

    Validation is solid, training dashed. histories: {name of the run: rows of history.csv}, at most MAX_CURVES.
    """
    panels_a_row = min(len(metrics), 3)
    rows = -(-len(metrics) // panels_a_row)
    figure = create_figure(4.3 * panels_a_row if panels_a_row > 1 else 8.5, 3.4 * rows if rows > 1 else 3.8)
    logarithmic = any(_is_wide(histories, name) for name in metrics)
    for i, name in enumerate(metrics):
        axes = figure.add_subplot(rows, panels_a_row, i + 1)
        for run, (history, colour) in enumerate(zip(histories.values(), COLOURS, strict=False)):
            _curve(axes, history, f"train/{name}", color=colour, alpha=0.45, linestyle=(0, (4, 2)), linewidth=1.1)
            known = _curve(axes, history, f"val/{name}", color=colour, linewidth=1.7)
            if known is not None:
                known.set(marker=MARKERS[run], markersize=4.5, markevery=_every(len(history), run))
        titles = {"loss": "all heads", **JOINT}
        axes.set_title(titles.get(name, name.split("/")[0]), fontsize=10, loc="left", parse_math=False)
        axes.set_xlabel("epoch")
        axes.set_xlim(0.5, max(history["epoch"].max() for history in histories.values()) + 1.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if is_fraction(f"val/{name}"):
            axes.set_ylim(0, 1.02)
            percent_axis(axes.yaxis)
        elif logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
        tidy(axes, "y")
    set_title(figure, title)
    styles = [Line2D([], [], color=TEXT, linewidth=1.7), Line2D([], [], color=TEXT, alpha=0.6, linestyle=(0, (4, 2)))]
    handles = [Line2D([], [], color=c, marker=m, markersize=5) for c, m in zip(COLOURS, MARKERS, strict=True)]
    legend_below(figure, [*handles[: len(histories)], *styles], [*histories, "validation", "training"])
    save_figure(figure, file)


def _is_wide(histories: dict[str, pd.DataFrame], name: str) -> bool:
    """Return whether some losses are so large that a linear scale would flatten the others."""
    columns = [history[f"{s}/{name}"] for history in histories.values() for s in ("train", "val")
               if f"{s}/{name}" in history]  # fmt: skip
    values = pd.concat(columns).dropna() if columns else pd.Series(dtype=float)
    return "loss" in name and len(values) > 0 and values.min() > 0 and values.max() > 50 * values.median()


def _curve(axes: Axes, history: pd.DataFrame, column: str, **style) -> Line2D | None:
    if column not in history:
        return None
    known = history[["epoch", column]].dropna()
    return axes.plot(known["epoch"] + 1, known[column], **style)[0]


def _every(num_epochs: int, run: int) -> tuple[int, int]:
    """Return an offset and a step for sparse markers, different for each run."""
    step = max(1, num_epochs // 8)
    return run % step, step


def plot_against(table: pd.DataFrame, key: str, metric: str, file: Path) -> None:
    """Write R4's plot of one setting: time to best, the metric, the lowest loss, one line per group.

    table: from `against_of`.
    """
    panels = {"best_after_s": "minutes to the best epoch", metric: title_of(metric).removesuffix(" %")}
    panels |= {"lowest_val_loss": "lowest validation loss"}
    panels = {column: title for column, title in panels.items() if table[column].notna().any()}
    figure = create_figure(max(6.0, 3.7 * len(panels)), 3.9)
    groups = list(table.groupby("group", sort=False))[:MAX_CURVES]
    for i, (column, title) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for (_, rows), colour, marker in zip(groups, COLOURS, MARKERS, strict=False):
            values = rows[column] / (60 if column == "best_after_s" else 1)
            mean = values.groupby(rows[key]).mean()  # of runs that differ in their seeds
            axes.plot(mean.index, mean, color=colour, linewidth=1.6)
            axes.plot(rows[key], values, marker, color=colour, markersize=5)
        points = sorted(table[key].unique())
        if min(points) > 0 and max(points) > 4 * min(points):
            axes.set_xscale("log", base=2 if points[0] >= 1 else 10)
        axes.set_xticks(points, [f"{point:g}" for point in points], rotation=45 if len(points) > 8 else 0)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(title, fontsize=10, loc="left", parse_math=False)
        axes.set_xlabel(key)
        if is_fraction(column):
            percent_axis(axes.yaxis)
        else:
            axes.set_ylim(bottom=0)
        tidy(axes, "y")
    set_title(figure, f"By {key}")
    if len(groups) > 1:
        handles = [Line2D([], [], color=c, marker=m) for c, m in zip(COLOURS, MARKERS, strict=True)]
        legend_below(figure, handles[: len(groups)], [str(name) for name, _ in groups])
    save_figure(figure, file)


def plot_matrix(matrix: Matrix, minutes: bool, file: Path) -> None:
    """Write R4's table as a heat map with numbers; the best of each row is framed, the best of all heavily."""
    frame, column = (matrix.minutes, "wall_min") if minutes else (matrix.values, matrix.metric)
    rows, columns = frame.shape
    left_in = 0.5 + 0.075 * max(len(str(name)) for name in frame.index)
    figure = create_figure(max(5.5, left_in + 0.92 * columns + 0.9), 1.7 + 0.4 * rows)
    axes = figure.add_subplot()
    shades = axes.imshow(frame.to_numpy(), cmap="Oranges" if minutes else "GnBu", aspect="auto")
    names = [str(name) for name in frame.columns]
    slanted: dict[str, Any] = {"rotation": 35, "ha": "left", "rotation_mode": "anchor"}
    axes.xaxis.tick_top()
    axes.set_xticks(range(columns), names, parse_math=False, **(slanted if max(map(len, names)) > 11 else {}))
    axes.set_yticks(range(rows), [str(name) for name in frame.index], parse_math=False)
    for row, marks in enumerate(matrix_marks(frame, column)):
        for x, (value, mark) in enumerate(zip(frame.iloc[row], marks, strict=True)):
            if pd.isna(value):
                continue
            red, green, blue, _ = shades.cmap(shades.norm(value))
            colour = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.52 else TEXT
            weight = "bold" if mark else "normal"
            axes.text(
                x, row, format_value(column, value), ha="center", va="center", size=9, color=colour, weight=weight
            )
            if mark:
                corner = (x - 0.47, row - 0.45)
                width = 2.6 if mark == OVERALL else 1.0
                axes.add_patch(Rectangle(corner, 0.94, 0.9, fill=False, edgecolor="#111111", linewidth=width))
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0, colors=TEXT, labelsize=9)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(shades, ax=axes, shrink=0.8, aspect=28, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, colors=TEXT, labelsize=8)
    if is_fraction(column):
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    best = "lowest" if lower_is_better(column) else "highest"
    title = f"{title_of(column)} by {matrix.rows} and {matrix.columns}"
    set_title(figure, textwrap.fill(title, int(LETTERS_PER_INCH * figure.get_figwidth())))
    axes.set_xlabel(f"framed: the {best} of each row; heavy frame: of all", size=9, color=FAINT)
    save_figure(figure, file)


def plot_trade_off(frame: pd.DataFrame, amount: str, metric: str, file: Path) -> None:
    """Write a PNG of the metric against time ("training_s") or cost ("cost"), one point per run, with the Pareto front.

    Unfinished runs are hollow and never on the front, as their final cost is unknown.
    """
    known = frame.dropna(subset=[amount, metric])
    finished = known["state"] != "unfinished"
    amounts, unit = _in_unit(known[amount].to_numpy(float)) if amount == "training_s" else (known[amount], "")
    amounts = np.asarray(amounts, float)
    values = known[metric].to_numpy(float)
    lower = lower_is_better(metric)
    front = pareto_front(np.where(finished, amounts, np.nan), values, lower)
    figure = create_figure(9.5, 4.3)
    axes = figure.add_subplot()
    looks = _looks(frame, known, front)
    for i, (amount_of, value) in enumerate(zip(amounts, values, strict=True)):
        axes.plot(amount_of, value, markersize=7, **looks[i])
    axes.step(amounts[front], values[front], where="post", color=FRONT, linewidth=1.2, zorder=1.5)
    for number, i in enumerate(front, 1):
        axes.annotate(str(number), (amounts[i], values[i]), (-5, 5), textcoords="offset points", ha="right",
                      size=9, weight="bold", color=TEXT)  # fmt: skip
    if len(amounts) and amounts.min() > 0 and amounts.max() / amounts.min() > WIDE_RANGE:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, 1.05 * amounts.max(initial=1e-9))
    axes.margins(y=0.08)
    axes.set_xlabel(f"training time, {unit}" if unit else "cost")
    axes.set_ylabel(title_of(metric).removesuffix(" %"))
    if is_fraction(metric):
        percent_axis(axes.yaxis)
    tidy(axes, "both")
    _front_legend(figure, known, front, amounts, unit, metric, looks)
    set_title(figure, f"{title_of(metric).removesuffix(' %')} against {'training time' if unit else 'cost'}")
    save_figure(figure, file)


def _looks(frame: pd.DataFrame, known: pd.DataFrame, front: np.ndarray) -> list[dict]:
    """Return each known run's colour and marker: as in the curves or, with many runs, by membership of the front."""
    looks = []
    for i, name in enumerate(known.index):
        index = frame.index.get_loc(name)
        few = len(frame) <= MAX_CURVES
        colour, marker = (COLOURS[index], MARKERS[index]) if few else (FRONT if i in front else FAINT, "o")
        inside = "white" if known["state"].iloc[i] == "unfinished" else colour
        looks.append({"color": colour, "marker": marker, "markerfacecolor": inside, "linestyle": ""})
    return looks


def _front_legend(
    figure: Figure,
    known: pd.DataFrame,
    front: np.ndarray,
    amounts: np.ndarray,
    unit: str,
    metric: str,
    looks: list[dict],
) -> None:
    """Add a legend below: the numbered runs of the front, then the others if they are few."""
    handles = [Line2D([], [], color=FRONT, linewidth=1.2)]
    names = [f"Pareto front: no run is both better and {'faster' if unit else 'cheaper'}"]
    others = [i for i in range(len(known)) if i not in front]
    few = len(known) <= MAX_CURVES
    for number, i in [*enumerate(front, 1), *((0, i) for i in others if few)]:
        value = format_value(metric, known[metric].iloc[i]) + (" %" if is_fraction(metric) else "")
        spent = f"{amounts[i]:,.3g} {unit}" if unit else f"cost {format_value('cost', amounts[i])}"
        state = ", unfinished" if known["state"].iloc[i] == "unfinished" else ""
        shown = f"{known.index[i]}: {value}, {spent}{state}"
        handles.append(Line2D([], [], **looks[i]))
        names.append(f"{number}  {shown}" if number else shown)
    if others and not few:
        handles.append(Line2D([], [], color=FAINT, marker="o", linestyle=""))
        names.append(f"{len(others)} other runs")
    legend_below(figure, handles, names)


def _in_unit(seconds: np.ndarray) -> tuple[np.ndarray, str]:
    longest = seconds.max(initial=0)
    size, unit = (1, "seconds") if longest < 300 else (60, "minutes") if longest < 300 * 60 else (3600, "hours")
    return seconds / size, unit
