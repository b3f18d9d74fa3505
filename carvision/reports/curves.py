"""Curves of a run by epoch: loss and accuracy, training against validation."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from carvision.reports.style import FAINT, SPLIT_COLOURS, create_figure, save_figure, set_title, tidy


def plot_curves(history: pd.DataFrame, folder: Path) -> None:
    """loss.png and, where there are heads with classes, accuracy.png, from the rows of history.csv."""
    heads = sorted({name.split("/")[1] for name in history if name.count("/") == 2 and name.endswith("/loss")})
    losses = {"all heads": "loss"} | ({head: f"{head}/loss" for head in heads} if len(heads) > 1 else {})
    _plot(history, losses, "Loss", folder / "loss.png")
    accuracies = {head: f"{head}/top1" for head in heads if f"val/{head}/top1" in history}
    if accuracies:
        _plot(history, accuracies, "Top-1 accuracy", folder / "accuracy.png", percent=True)


def _plot(history: pd.DataFrame, panels: dict[str, str], title: str, file: Path, percent: bool = False) -> None:
    """panels: {title: name of the figure, without its split}."""
    figure = create_figure(max(5.0, 3.6 * len(panels)), 3.4)
    set_title(figure, title)
    for i, (name, figure_name) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for split in ("train", "val"):
            column = f"{split}/{figure_name}"
            if column in history:
                known = history[["epoch", column]].dropna()
                marker = "o" if len(known) < 30 else None
                axes.plot(
                    known["epoch"] + 1,
                    known[column],
                    color=SPLIT_COLOURS[split],
                    label=split,
                    marker=marker,
                    markersize=3.5,
                )
        _mark_phases(axes, history)
        axes.set_title(name, fontsize=10, loc="left", parse_math=False)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if percent:
            axes.set_ylim(0, 1.02)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        else:
            axes.set_ylim(bottom=0)
        tidy(axes, "y")
        if i == 0:
            axes.legend(frameon=False, fontsize=9)
    save_figure(figure, file)


def _mark_phases(axes: Axes, history: pd.DataFrame) -> None:
    """A line where a phase begins, if the run has several."""
    if "phase" in history:
        for epoch in history["epoch"][history["phase"] != history["phase"].shift()][1:]:
            axes.axvline(epoch + 0.5, color=FAINT, linewidth=1, linestyle="--", zorder=0)
            label = history.loc[history["epoch"] == epoch, "phase"].iloc[0]
            axes.text(
                epoch + 0.5, 1.01, label, transform=axes.get_xaxis_transform(), fontsize=8, color=FAINT, va="bottom",
                ha="center", parse_math=False,
            )  # fmt: skip
