"""Plot several runs together: their curves by epoch, and their results by one setting."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from carvision.reports.comparison.frame import is_fraction
from carvision.reports.comparison.sheets import title_of
from carvision.reports.style import TEXT, create_figure, save_figure, set_title, tidy

# Distinguishable with any colour vision, near ones also by lightness; the markers differ as well
COLOURS = (
    "#4477aa", "#ee7733", "#228833", "#aa3377", "#66ccee", "#222222",
    "#ccbb44", "#332288", "#cc3311", "#44aa99", "#999999", "#884400",
)  # fmt: skip
MARKERS = "osD^vPX<>*hp"
MAX_CURVES = len(COLOURS)


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
        titles = {"loss": "all heads", "joint/top1": "all heads right"}
        axes.set_title(titles.get(name, name.split("/")[0]), fontsize=10, loc="left", parse_math=False)
        axes.set_xlabel("epoch")
        axes.set_xlim(0.5, max(history["epoch"].max() for history in histories.values()) + 1.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if is_fraction(f"val/{name}"):
            axes.set_ylim(0, 1.02)
            percent_axis(axes)
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


def percent_axis(axes: Axes) -> None:
    """Format the y axis in percent."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.6g}%"))


def _curve(axes: Axes, history: pd.DataFrame, column: str, **style) -> Line2D | None:
    if column not in history:
        return None
    known = history[["epoch", column]].dropna()
    return axes.plot(known["epoch"] + 1, known[column], **style)[0]


def _every(num_epochs: int, run: int) -> tuple[int, int]:
    """Return an offset and a step for sparse markers, different for each run."""
    step = max(1, num_epochs // 8)
    return run % step, step


def legend_below(figure: Figure, handles: Sequence[Line2D], names: Sequence[str]) -> None:
    """Add a legend below, with as many columns as the names allow; the figure grows by the legend's height."""
    num_letters = max(map(len, names)) + 7
    columns = max(1, min(len(names), int(figure.get_figwidth() * 13 / num_letters)))
    legend = figure.legend(handles, names, loc="outside lower left", ncols=columns, frameon=False, fontsize=9)
    for shown in legend.get_texts():
        shown.set(parse_math=False, color=TEXT)
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(names) // columns))


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
            percent_axis(axes)
        else:
            axes.set_ylim(bottom=0)
        tidy(axes, "y")
    set_title(figure, f"By {key}")
    if len(groups) > 1:
        handles = [Line2D([], [], color=c, marker=m) for c, m in zip(COLOURS, MARKERS, strict=True)]
        legend_below(figure, handles[: len(groups)], [str(name) for name, _ in groups])
    save_figure(figure, file)
