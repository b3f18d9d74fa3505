"""Plot reliability diagrams and selective accuracy."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from carvision.evaluation.calibration import calibration_error
from carvision.evaluation.coverage import COVERAGES, accuracy_by_coverage
from carvision.reports.comparison.plots import COLOURS, legend_below
from carvision.reports.style import FAINT, TEXT, create_figure, save_figure, set_title, tidy

BAR, ABOVE, BELOW, HISTOGRAM = "#4477aa", "#efbcc2", "#a98db0", "#9db8d2"


def plot_reliability(diagrams: dict[str, pd.DataFrame], title: str, file: Path) -> None:
    """Write a PNG of tables of `reliability`, side by side: accuracy by confidence, and a histogram of the photos.

    diagrams: {heading: bins}, uncalibrated and with the temperature.
    """
    figure = create_figure(max(5.6, 4.3 * len(diagrams)), 5.2)
    panels = figure.subplots(2, len(diagrams), height_ratios=(3, 1), squeeze=False, sharex=True)
    for (heading, bins), (diagram, histogram) in zip(diagrams.items(), panels.T, strict=True):
        width = bins["high"] - bins["low"]
        middle, filled = bins["low"] + width / 2, bins["photos"] > 0
        accuracy, confidence = bins["accuracy"][filled], bins["confidence"][filled]
        bars = {"width": width[filled], "edgecolor": "white", "linewidth": 0.8}
        diagram.bar(middle[filled], accuracy, color=BAR, label="accuracy", **bars)
        for colour, gap, label in ((ABOVE, confidence - accuracy, "confidence above it"),
                                   (BELOW, accuracy - confidence, "confidence below it")):  # fmt: skip
            bottom = np.minimum(accuracy, confidence)
            diagram.bar(middle[filled], gap.clip(lower=0), bottom=bottom, color=colour, label=label, **bars)
        diagram.plot((0, 1), (0, 1), color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        diagram.set_title(f"{heading}: ECE {100 * calibration_error(bins):.1f} %", loc="left", size=10, color=TEXT)
        histogram.bar(
            middle, bins["photos"] / max(1, bins["photos"].sum()), color=HISTOGRAM, **{**bars, "width": width}
        )
        histogram.set_xlabel("probability of the most probable class")
        diagram.set(xlim=(0, 1), ylim=(0, 1))
        for axes, grid in ((diagram, "both"), (histogram, "y")):
            _percent(axes)
            tidy(axes, grid)
    panels[0, 0].set_ylabel("accuracy")
    panels[1, 0].set_ylabel("photos")
    handles, names = panels[0, 0].get_legend_handles_labels()
    legend_below(figure, handles, names)
    set_title(figure, title)
    save_figure(figure, file)


def plot_coverage(heads: dict[str, tuple[np.ndarray, np.ndarray]], title: str, file: Path) -> None:
    """Write a PNG of the accuracy on the most confident photos, and of the confidence threshold, by their fraction.

    heads: {head: (confidence, right)}, each (N,).
    """
    figure = create_figure(9.0, 3.9)
    panels = figure.subplots(1, 2)
    lowest = 1.0
    for (head, (confidence, right)), colour in zip(heads.items(), _colours(len(heads)), strict=True):
        accuracy, threshold = accuracy_by_coverage(confidence, right)
        share = np.arange(1, len(accuracy) + 1) / len(accuracy)
        indices = np.ceil(np.array(COVERAGES) * len(share)).astype(int) - 1
        for axes, values in zip(panels, (accuracy, threshold), strict=True):
            axes.plot(share, values, color=colour, linewidth=1.6, label=head, drawstyle="steps-pre")
            axes.plot(share[indices], values[indices], color=colour, marker="o", markersize=4, linestyle="")
        lowest = min(lowest, accuracy.min())
    panels[0].set_ylabel("accuracy on them")
    panels[0].set_ylim(max(0.0, lowest - 0.05), 1.005)
    panels[1].set_ylabel("least probability")
    panels[1].set_ylim(0, 1.02)
    for axes in panels:
        axes.set_xlim(0, 1.01)
        axes.set_xlabel("share of photos, the most confident first")
        _percent(axes)
        tidy(axes, "both")
    handles, names = panels[0].get_legend_handles_labels()
    legend_below(figure, handles, names)
    set_title(figure, title)
    save_figure(figure, file)


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _percent(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.6g}%"))
