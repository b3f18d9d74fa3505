"""The style and the shared parts of all plots, and the curves of a run by epoch.

Figures are created without pyplot, which would keep global state.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from carvision.files.atomic import atomic_file
from carvision.files.folders import PROGRAM

SPLIT_COLOURS = {"train": "#4477aa", "val": "#ddaa33", "test": "#bb5566", "no split": "#bbbbbb"}  # colour-blind safe
# Colours of runs, heads or methods: distinguishable with any colour vision, neighbours also by lightness and marker
COLOURS = (
    "#4477aa", "#ee7733", "#228833", "#aa3377", "#66ccee", "#222222",
    "#ccbb44", "#332288", "#cc3311", "#44aa99", "#999999", "#884400",
)  # fmt: skip
MARKERS = "osD^vPX<>*hp"
TEXT = "#333333"
FAINT = "#8a8a8a"
GRID = "#e4e4e4"
DPI = 110
# Panels of metrics.png, one column each. The second metric, dashed, is computed as in Keras
OTHERS = {
    "top-3 accuracy": ("top3",),
    "top-5 accuracy": ("top5",),
    "precision": ("precision", "precision_at50"),
    "recall": ("recall", "recall_at50"),
    "AUC": ("auc", "auc_keras"),
}
STYLES = ("-", "--")


def create_figure(width_in: float, height_in: float) -> Figure:
    """Return an empty white figure whose layout keeps its parts apart."""
    return Figure(figsize=(width_in, height_in), dpi=DPI, facecolor="white", layout="constrained")


def tidy(axes: Axes, grid: Literal["x", "y", "both"]) -> None:
    """Draw faint grid lines for the `grid` axis, only the bottom and left spine, and muted text."""
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(GRID)
    axes.tick_params(colors=TEXT, length=0, labelsize=9)
    axes.xaxis.label.set(color=TEXT, size=9)
    axes.yaxis.label.set(color=TEXT, size=9)


def set_title(figure: Figure, title: str) -> None:
    """Set the title at the top left. Names from data sets are shown literally: a "$" starts no formula."""
    figure.suptitle(title, x=0.01, ha="left", color=TEXT, size=12, weight="bold", parse_math=False)


def percent_axis(axis: Axis) -> None:
    """Label the ticks of an axis in percent, with as many digits as they need."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.6g}%"))


def legend_below(figure: Figure, handles: Sequence[Artist], names: Sequence[str]) -> None:
    """Add a legend below, with as many columns as the names allow; the figure grows by the legend's height."""
    num_letters = max(map(len, names)) + 7
    columns = max(1, min(len(names), int(figure.get_figwidth() * 13 / num_letters)))
    legend = figure.legend(handles, names, loc="outside lower left", ncols=columns, frameon=False, fontsize=9)
    for shown in legend.get_texts():
        shown.set(parse_math=False, color=TEXT)
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(names) // columns))


def save_figure(figure: Figure, file: Path) -> None:
    """Write a PNG atomically: an existing file is replaced only when the new one is complete."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as partial:
        figure.savefig(partial, format="png", metadata={"Software": PROGRAM})


def plot_curves(history: pd.DataFrame, folder: Path) -> None:
    """Write loss.png and, for heads with classes, accuracy.png and metrics.png, from the rows of history.csv."""
    columns = map(str, history)
    heads = sorted({name.split("/")[1] for name in columns if name.count("/") == 2 and name.endswith("/loss")})
    losses = {"all heads": ["loss"]} | ({head: [f"{head}/loss"] for head in heads} if len(heads) > 1 else {})
    _plot(history, [losses], "Loss", folder / "loss.png")
    classes = [head for head in heads if f"val/{head}/top1" in history]
    if not classes:
        return
    accuracies = {head: [f"{head}/top1"] for head in classes}
    _plot(history, [accuracies], "Top-1 accuracy", folder / "accuracy.png", percent=True)
    others = [
        {f"{head}: {title}": [f"{head}/{name}" for name in names] for title, names in OTHERS.items()}
        for head in classes
    ]
    _plot(history, others, "Other metrics (dashed: as Keras counts them)", folder / "metrics.png", percent=True)


def _plot(
    history: pd.DataFrame, rows: Sequence[dict[str, list[str]]], title: str, file: Path, percent: bool = False
) -> None:
    """Plot rows of panels, each {title: names of its metrics, without the split}."""
    num_columns = max(map(len, rows))
    figure = create_figure(max(5.0, 3.6 * num_columns), 3.4 * len(rows))
    set_title(figure, title)
    for i, panels in enumerate(rows):
        for j, (name, metric_names) in enumerate(panels.items()):
            axes = figure.add_subplot(len(rows), num_columns, i * num_columns + j + 1)
            _draw_lines(axes, history, metric_names)
            axes.set_title(name, fontsize=10, loc="left", parse_math=False)
            if percent:
                axes.set_ylim(0, 1.02)
                percent_axis(axes.yaxis)
            else:
                axes.set_ylim(bottom=0)
            tidy(axes, "y")
            if i == j == 0:
                axes.legend(frameon=False, fontsize=9)
    save_figure(figure, file)


def _draw_lines(axes: Axes, history: pd.DataFrame, metric_names: Sequence[str]) -> None:
    """Draw one line for each split and metric that the history has."""
    for split in ("train", "val"):
        for name, style in zip(metric_names, STYLES, strict=False):
            column = f"{split}/{name}"
            if column in history:
                known = history[["epoch", column]].dropna()
                axes.plot(
                    known["epoch"] + 1, known[column], style, color=SPLIT_COLOURS[split],
                    label=split if style == "-" else None, marker="o" if len(known) < 30 else None, markersize=3.5,
                )  # fmt: skip
    _mark_phases(axes, history)
    axes.set_xlabel("epoch")
    first, last = history["epoch"].min() + 1, history["epoch"].max() + 1
    margin = max(0.2, 0.04 * (last - first))
    axes.set_xlim(first - margin, last + margin)  # the same for all panels, even if some epochs lack a metric
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _mark_phases(axes: Axes, history: pd.DataFrame) -> None:
    """Mark the beginning of each phase, if the run has several."""
    if "phase" in history:
        for epoch in history["epoch"][history["phase"] != history["phase"].shift()][1:]:
            axes.axvline(epoch + 0.5, color=FAINT, linewidth=1, linestyle="--", zorder=0)
            label = history.loc[history["epoch"] == epoch, "phase"].iloc[0]
            axes.text(
                epoch + 0.5, 1.01, label, transform=axes.get_xaxis_transform(), fontsize=8, color=FAINT, va="bottom",
                ha="center", parse_math=False,
            )  # fmt: skip
