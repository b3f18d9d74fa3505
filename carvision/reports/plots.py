"""The style and idioms of all plots: lines, points, bars, histograms; the curves of a run by epoch.

Matrices and sheets of photos, laid out in pixels, are in matrix.py and photos.py. The functions of these modules import
matplotlib when they draw, so that a command which draws at its end starts without it. Figures are created without
pyplot, which would keep global state.
"""

import functools
import logging
import textwrap
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from carvision.files.atomic import atomic_file
from carvision.files.folders import PROGRAM
from carvision.reports.tables import has_rank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

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
LETTERS_PER_INCH = 9  # in a title
DASHES = (0, (4, 3))
MATHS = ("cmb", "cmex", "cmm", "cmr", "cms", "cmt", "STIXNonUnicode", "STIXSize")  # matplotlib's own, for formulas
PLAIN = {"Sans", "Gothic", "Hei"}  # in the names of families without serifs
REGIONS = ("HK", "KR", "SC", "TC")  # of a family for East Asia, beside JP
EAST_ASIAN = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "FULLWIDTH", "HALFWIDTH", "IDEOGRAPHIC")
MAX_MARKED = 30  # points of a line up to which each has a marker
_named_packages: set[str] = set()  # that were asked for in this process
# Panels of metrics.png, one column each. The second metric, dashed, is computed as in Keras: only where that is wanted
OTHERS = {
    "top-3 accuracy": ("top3",), "top-5 accuracy": ("top5",), "precision": ("precision", "precision_at50"),
    "recall": ("recall", "recall_at50"), "AUC": ("auc", "auc_keras"),
}  # fmt: skip


def create_panels(rows: int, columns: int, width_in: float, height_in: float, **layout: Any) -> tuple["Figure", Any]:
    """Return a white figure whose layout keeps its parts apart, and its axes, an array (rows, columns).

    layout: further arguments of Figure.subplots.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=DPI, facecolor="white", layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **layout)


def tidy(axes: "Axes", grid: Literal["x", "y", "both"]) -> None:
    """Draw faint grid lines for the `grid` axis, only the bottom and left spine, and muted text."""
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(GRID)
    axes.tick_params(which="both", colors=TEXT, length=0, labelsize=9)
    axes.xaxis.label.set(color=TEXT, size=9)
    axes.yaxis.label.set(color=TEXT, size=9)


def label_axes(
    axes: "Axes",
    title: str = "",
    x: str = "",
    y: str = "",
    grid: Literal["x", "y", "both"] = "y",
    percent: str = "",
    whole: str = "",
    log: str = "",
) -> None:
    """Set title and labels, and tidy the axes. percent, whole, log: the axes ("x", "y", "xy") with such ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    each = {"x": axes.xaxis, "y": axes.yaxis}
    for name in log:
        axes.set(**{f"{name}scale": "log"})
        low, high = each[name].get_data_interval()
        each[name].set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
        each[name].set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        each[name].set_minor_formatter(NullFormatter())
    for name in whole:
        each[name].set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    for name in percent:
        each[name].set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.6g}%"))
    axes.set_title(title, loc="left", size=10, color=TEXT, parse_math=False)
    axes.set_xlabel(x, parse_math=False)
    axes.set_ylabel(y, parse_math=False)
    tidy(axes, grid)


def draw_line(
    axes: "Axes", x: Any, y: Any, colour: str, name: str = "", dashed: bool = False, marker: str = "", **style: Any
) -> None:
    """Draw a line. name: in the legend; without one it isn't there. style: further arguments of Axes.plot."""
    looks: dict[str, Any] = {"linestyle": DASHES if dashed else "-", "linewidth": 1.6, "markersize": 4, **style}
    axes.plot(x, y, color=colour, label=name or None, marker=marker, **looks)


def draw_points(axes: "Axes", x: Any, y: Any, colour: str, name: str = "", marker: str = "o", **style: Any) -> None:
    """Draw points. name: in the legend; without one they aren't there. style: further arguments of Axes.plot."""
    looks: dict[str, Any] = {"linestyle": "", "markersize": 6, **style}
    draw_line(axes, x, y, colour, name, marker=marker, **looks)


def draw_bars(axes: "Axes", names: Sequence[str], parts: dict[str, Any], colours: dict[str, str]) -> None:
    """Draw a horizontal bar for each name, the first on top, with its total.

    parts: {part: lengths}, drawn one after the other in the colour of that part, which the legend names.
    """
    positions, start = np.arange(len(names)), np.zeros(len(names))
    for part, lengths in parts.items():
        axes.barh(positions, lengths, left=start, height=0.78, color=colours[part], label=part)
        start += lengths
    for position, total in zip(positions, start, strict=True):
        axes.annotate(f"{total:,.10g}", (total, position), (4, 0), textcoords="offset points", va="center", size=8,
                      color=FAINT)  # fmt: skip
    axes.set_yticks(positions, names, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.08)


def draw_histogram(
    axes: "Axes", edges: Any, heights: Any, colour: str, name: str = "", floor: Any = None, gaps: bool = True
) -> None:
    """Draw a bar of the given height between each two edges. floor: where each begins, 0 without it."""
    edges, heights = np.asarray(edges, float), np.asarray(heights, float)
    if gaps:
        line = {"edgecolor": "white", "linewidth": 0.8}
        axes.bar(edges[:-1], heights, np.diff(edges), floor, align="edge", color=colour, label=name or None, **line)
    else:
        floor = np.zeros(len(heights)) if floor is None else floor
        axes.stairs(floor + heights, edges, baseline=floor, fill=True, color=colour, label=name or None, linewidth=0)


def set_title(figure: "Figure", title: str) -> None:
    """Set the title at the top left, wrapped. Names from data sets are shown literally: a "$" starts no formula."""
    letters = LETTERS_PER_INCH * figure.get_figwidth() * len(title) / max(1, num_letters(title))
    lines = textwrap.fill(title, max(10, int(letters)))
    figure.suptitle(lines, x=0.01, ha="left", color=TEXT, size=12, weight="bold", parse_math=False)


def num_letters(text: str) -> int:
    """Return how many Latin letters are about as wide as the text: those of East Asia take twice the width."""
    return len(text) + sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)


def save_figure(figure: "Figure", file: Path) -> None:
    """Write a PNG atomically: an existing file is replaced only when the new one is complete.

    Texts get the fonts that have their letters, see font_families.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    choose_fonts(figure)
    with atomic_file(file) as partial, quiet_fonts():
        figure.savefig(partial, format="png", metadata={"Software": PROGRAM})


def choose_fonts(figure: "Figure") -> None:
    """Give each text of the figure the fonts that have its letters."""
    from matplotlib.text import Text

    for axes in figure.axes:
        axes.get_xticklabels(), axes.get_yticklabels()  # which makes their texts
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        families = font_families(text.get_text())
        if len(families) > 1:
            text.set_fontfamily(families)


def font_families(text: str) -> list[str]:
    """Return font families for a text: matplotlib's, then the installed ones that have letters which it lacks.

    matplotlib looks for each letter in them in turn. A letter that none of them has is drawn as a box; a line of the
    log says which fonts to install.
    """
    from matplotlib.font_manager import FontProperties

    lacking = sorted(
        letter for letter in set(text) if letter > "\x7e" and _needs_glyph(letter) and not _is_ours(letter)
    )
    found = {letter: _installed_family(letter) for letter in lacking}
    absent = [letter for letter, family in found.items() if family is None]
    for package in {_package_of(letter) for letter in absent}:
        _warn_of_boxes(package, " ".join(letter for letter in absent[:5] if _package_of(letter) == package))
    return [*FontProperties().get_family(), *dict.fromkeys(family for family in found.values() if family)]


@contextmanager
def quiet_fonts() -> Iterator[None]:
    """Hide what matplotlib prints of each letter that no font has, for which font_families has logged one line, and of
    each family without a bold font."""
    fonts_log = logging.getLogger("matplotlib.font_manager")
    level = fonts_log.level
    fonts_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
            yield
    finally:
        fonts_log.setLevel(level)


def _needs_glyph(letter: str) -> bool:
    """Return whether a font should have the letter: not for spaces, control codes and variation selectors."""
    return letter.isprintable() and not letter.isspace() and not 0xFE00 <= ord(letter) <= 0xFE0F


@functools.cache
def _is_ours(letter: str) -> bool:
    """Return whether matplotlib's default font has the letter."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return bool(get_font(findfont(FontProperties())).get_char_index(ord(letter)))


@functools.cache
def _installed_family(letter: str) -> str | None:
    """Return an installed family that has the letter; one without serifs, if there is one."""
    return next((family for family, codes in _installed_fonts() if ord(letter) in codes), None)


@functools.cache
def _installed_fonts() -> list[tuple[str, np.ndarray]]:
    """Return the installed families with the letters that matplotlib's default font lacks, as code points.

    Also those installed after matplotlib wrote its list of fonts. Takes a second with hundreds of fonts, and happens
    only where letters are lacking.
    """
    from matplotlib.font_manager import FontProperties, findfont, findSystemFonts, fontManager, get_font

    listed = {str(entry.fname) for entry in fontManager.ttflist}
    for file in findSystemFonts():
        if file not in listed:
            try:
                fontManager.addfont(file)
            except Exception as error:  # a damaged font, or one of pictures, as colour emoji are
                log.debug("%s can't be used: %s", file, error)
    families = {entry.name for entry in fontManager.ttflist if "last resort" not in entry.name.lower()}
    families = {name for name in families if not name.startswith(MATHS)}
    ours = get_font(findfont(FontProperties())).get_charmap()
    fonts = []
    for family in sorted(families, key=_rank):
        try:
            with quiet_fonts():
                file = findfont(FontProperties(family=[family]), fallback_to_default=False)
            letters = get_font(file).get_charmap()
        except (ValueError, RuntimeError, OSError) as error:  # listed, and no longer there
            log.debug("%s can't be used: %s", family, error)
            continue
        fonts.append((family, np.array(sorted(letters.keys() - ours.keys()), np.int32)))  # a set takes 20 times as much
    return fonts


def _rank(family: str) -> tuple:
    """Return where a family stands in the order of preference: the plain ones first; of those for Chinese, Japanese and
    Korean, which have the same letters, the one that is the usual default."""
    words = family.split()
    return not PLAIN.intersection(words), words[-1] in REGIONS, len(family), family


def _package_of(letter: str) -> str:
    """Return the package of fonts, as Debian and Ubuntu name it, that has such letters."""
    name = unicodedata.name(letter, "")
    if name.startswith(EAST_ASIAN):
        return "fonts-noto-cjk"
    return "fonts-symbola" if unicodedata.category(letter) == "So" else "fonts-noto-core"


def _warn_of_boxes(package: str, letters: str) -> None:
    """Log which package of fonts to install, once for each."""
    if package not in _named_packages:
        _named_packages.add(package)
        log.warning(
            "pictures: no installed font has the letters %s, and a box is drawn for each; install %s (by its name in "
            "Debian and Ubuntu) or any font that has them", letters, package,
        )  # fmt: skip


def finish(figure: "Figure", title: str, file: Path) -> None:
    """Set the title, add a legend below of all that has a name in any panel, each once, and write the PNG.

    The legend has as many columns as the names allow, and the figure grows by its height.
    """
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    if handles:
        columns = max(1, min(len(handles), int(figure.get_figwidth() * 13 / (max(map(num_letters, handles)) + 7))))
        looks: dict[str, Any] = {"loc": "outside lower left", "ncols": columns, "frameon": False, "fontsize": 9}
        for text in figure.legend(list(handles.values()), list(handles), **looks).get_texts():
            text.set(parse_math=False, color=TEXT)
        figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(handles) // columns))
    set_title(figure, title)
    choose_fonts(figure)  # before the texts are measured
    with quiet_fonts():
        _hide_overlaps(figure)
    save_figure(figure, file)


def _hide_overlaps(figure: "Figure") -> None:
    """Hide the texts of a panel that would lie on an earlier one."""
    if all(len(axes.texts) < 2 for axes in figure.axes):
        return
    figure.draw_without_rendering()  # lays the figure out
    for axes in figure.axes:
        taken: list[Any] = []
        for text in axes.texts:
            box = text.get_window_extent()
            text.set_visible(not any(box.overlaps(other) for other in taken))
            taken += [box] if text.get_visible() else []


def plot_curves(history: pd.DataFrame, folder: Path, num_classes: Mapping[str, int], keras: bool = False) -> None:
    """Write loss.png and, for heads with classes, accuracy.png and metrics.png, from the rows of history.csv.

    num_classes: of each head that has classes. keras: draw precision and recall as Keras counts them, too, dashed.
    """
    columns = map(str, history)
    heads = sorted({name.split("/")[1] for name in columns if name.count("/") == 2 and name.endswith("/loss")})
    losses = {"all heads": ["loss"]} | ({head: [f"{head}/loss"] for head in heads} if len(heads) > 1 else {})
    _plot(history, [losses], "Loss", folder / "loss.png")
    classes = [head for head in heads if f"val/{head}/top1" in history and head in num_classes]
    if not classes:
        return
    accuracies = {head: [f"{head}/top1"] for head in classes}
    _plot(history, [accuracies], "Top-1 accuracy", folder / "accuracy.png", percent="y")
    others = [
        {
            f"{head}: {title}": [f"{head}/{name}" for name in names[: None if keras else 1]]
            for title, names in OTHERS.items()
            if has_rank(names[0], num_classes[head])
        }
        for head in classes
    ]
    title = f"Other metrics{' (dashed: as Keras counts them)' if keras else ''}"
    _plot(history, others, title, folder / "metrics.png", percent="y")


def _plot(
    history: pd.DataFrame, rows: Sequence[dict[str, list[str]]], title: str, file: Path, percent: str = ""
) -> None:
    """Plot rows of panels, each {title: names of its metrics, without the split}."""
    columns = max(map(len, rows))
    figure, panels = create_panels(len(rows), columns, max(5.0, 3.6 * columns), 3.4 * len(rows))
    first, last = history["epoch"].min() + 1, history["epoch"].max() + 1
    margin = max(0.2, 0.04 * (last - first))
    for row, of_row in zip(rows, panels, strict=True):
        for axes in of_row[len(row) :]:
            axes.set_visible(False)
        for axes, (name, metrics) in zip(of_row, row.items(), strict=False):
            for split in ("train", "val"):
                for metric, dashed in zip(metrics, (False, True), strict=False):
                    draw_epochs(
                        axes, history, f"{split}/{metric}", SPLIT_COLOURS[split], "" if dashed else split, dashed
                    )
            label_axes(axes, name, "epoch", percent=percent, whole="x")
            _mark_phases(axes, history, (0.02, "bottom") if percent else (0.98, "top"))  # where the curves are not
            axes.set_ylim(0, 1.02 if percent else None)
            axes.set_xlim(first - margin, last + margin)  # the same for all panels, even if some epochs lack a metric
    finish(figure, title, file)


def draw_epochs(
    axes: "Axes", history: pd.DataFrame, column: str, colour: str, name: str = "", dashed: bool = False, **style: Any
) -> None:
    """Draw a column of history.csv by epoch, from 1, if it has such a column."""
    if column in history:
        known = history[["epoch", column]].dropna()
        few = {"marker": "o"} if len(known) < MAX_MARKED else {}
        draw_line(axes, known["epoch"] + 1, known[column], colour, name, dashed, **few | style)


def _mark_phases(axes: "Axes", history: pd.DataFrame, height: tuple[float, str]) -> None:
    """Mark the beginning of each phase, if the run has several. height: of the names, in 0..1, and their alignment."""
    if "phase" in history:
        begins = history[history["phase"] != history["phase"].shift()][1:]
        for epoch, phase in zip(begins["epoch"] + 0.5, begins["phase"], strict=True):
            axes.axvline(epoch, color=FAINT, linewidth=1, linestyle="--", zorder=0)
            style = {"transform": axes.get_xaxis_transform(), "size": 8, "color": FAINT, "parse_math": False}
            axes.text(epoch, height[0], f" {phase}", va=height[1], **style)
