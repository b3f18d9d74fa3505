"""Shared style of all plots. Figures are created without pyplot, which would keep global state."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from carvision.folders import PROGRAM
from carvision.whole_files import written_whole

SPLIT_COLOURS = {"train": "#4477aa", "val": "#ddaa33", "test": "#bb5566", "no split": "#bbbbbb"}  # colour-blind safe
TEXT = "#333333"
FAINT = "#8a8a8a"
GRID = "#e4e4e4"
DPI = 110


def create_figure(width_in: float, height_in: float) -> Figure:
    return Figure(figsize=(width_in, height_in), dpi=DPI, facecolor="white", layout="constrained")


def tidy(axes: Axes, grid: str) -> None:
    """Draw faint grid lines for the `grid` axis ("x", "y", "both"), only the bottom and left spine, and muted text."""
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


def save_figure(figure: Figure, file: Path) -> None:
    """Write a PNG atomically: an existing file is replaced only when the new one is complete."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as partial:
        figure.savefig(partial, format="png", metadata={"Software": PROGRAM})
