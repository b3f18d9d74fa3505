"""Plot accuracy against time and cost, R4's question; and its matrix as a heat map."""

import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from carvision.reports.comparison.frame import is_fraction, lower_is_better, pareto_front
from carvision.reports.comparison.matrix import Matrix
from carvision.reports.comparison.plots import COLOURS, MARKERS, MAX_CURVES, legend_below, percent_axis
from carvision.reports.comparison.sheets import OVERALL, matrix_marks, text, title_of
from carvision.reports.style import FAINT, TEXT, create_figure, save_figure, set_title, tidy

WIDE_RANGE = 20  # ratio of largest to smallest amount above which its axis is logarithmic
FRONT = "#bb5566"
LETTERS_PER_INCH = 9  # in a title


def plot_matrix(matrix: Matrix, minutes: bool, file: Path) -> None:
    """Write R4's table as a heat map with numbers; the best of each row is framed, the best of all heavily."""
    frame, column = (matrix.minutes, "wall_min") if minutes else (matrix.values, matrix.metric)
    rows, columns = frame.shape
    left_in = 0.5 + 0.075 * max(len(str(name)) for name in frame.index)
    figure = create_figure(max(5.5, left_in + 0.92 * columns + 0.9), 1.7 + 0.4 * rows)
    axes = figure.add_subplot()
    shades = axes.imshow(frame.to_numpy(), cmap="Oranges" if minutes else "GnBu", aspect="auto")
    names = [str(name) for name in frame.columns]
    slanted = {"rotation": 35, "ha": "left", "rotation_mode": "anchor"} if max(map(len, names)) > 11 else {}
    axes.xaxis.tick_top()
    axes.set_xticks(range(columns), names, parse_math=False, **slanted)
    axes.set_yticks(range(rows), [str(name) for name in frame.index], parse_math=False)
    for row, marks in enumerate(matrix_marks(frame, column)):
        for x, (value, mark) in enumerate(zip(frame.iloc[row], marks, strict=True)):
            if pd.isna(value):
                continue
            red, green, blue, _ = shades.cmap(shades.norm(value))
            colour = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.52 else TEXT
            weight = "bold" if mark else "normal"
            axes.text(x, row, text(column, value), ha="center", va="center", size=9, color=colour, weight=weight)
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
        percent_axis(axes)
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
        value = text(metric, known[metric].iloc[i]) + (" %" if is_fraction(metric) else "")
        spent = f"{amounts[i]:,.3g} {unit}" if unit else f"cost {text('cost', amounts[i])}"
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
