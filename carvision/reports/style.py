"""How all plots look, and how they are saved. Figures are made without pyplot, which would keep global state."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from carvision.folders import PROGRAM
from carvision.whole_files import written_whole

SPLIT_COLOURS = {"train": "#4477aa", "val": "#ddaa33", "test": "#bb5566", "no split": "#bbbbbb"}  # safe for all eyes
TEXT = "#333333"
FAINT = "#8a8a8a"
GRID = "#e4e4e4"
DPI = 110


def create_figure(width_in: float, height_in: float) -> Figure:
    return Figure(figsize=(width_in, height_in), dpi=DPI, facecolor="white", layout="constrained")


def tidy(axes: Axes, grid: str) -> None:
    """Faint grid lines ("x" or "y": the axis they mark), no frame but at the foot and the left, quiet text."""
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(GRID)
    axes.tick_params(colors=TEXT, length=0, labelsize=9)
    axes.xaxis.label.set(color=TEXT, size=9)
    axes.yaxis.label.set(color=TEXT, size=9)


def set_title(figure: Figure, title: str) -> None:
    """At the top left. Names from data sets are shown as they are: a "$" starts no formula."""
    figure.suptitle(title, x=0.01, ha="left", color=TEXT, size=12, weight="bold", parse_math=False)


def save_figure(figure: Figure, file: Path) -> None:
    """PNG; a file of that name is replaced when the new one is complete, so that none is ever half written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as partial:
        figure.savefig(partial, format="png", metadata={"Software": PROGRAM})
