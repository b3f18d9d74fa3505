"""The report of a data set's health: tables and plots in a folder, and a summary on the terminal."""

import json
import logging
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.text import Text

from carvision.data.health import (
    IMAGENET,
    class_counts,
    describe_colours,
    describe_counts,
    find_copies,
    hints_on_values,
)
from carvision.data.images import BadImage, check_box
from carvision.data.paths import nfc, text_of_path
from carvision.data.table import BOX, UNKNOWN, Table
from carvision.errors import InputError, suggest
from carvision.files.atomic import file_stems, write_csv, write_text
from carvision.reports.photos import (
    BOX_COLOUR,
    create_sheet,
    draw_photo,
    draw_text,
    draw_unreadable,
    read_small,
    shorten_name,
    width_px,
)
from carvision.reports.plots import FAINT, SPLIT_COLOURS, TEXT, create_figure, save_figure, set_title, tidy
from carvision.reports.tables import TextTable, fits, print_table, without_nan

log = logging.getLogger(__name__)


MAX_BARS = 60  # classes drawn as bars with names; more are drawn as a curve
MAX_ROWS = 60  # classes on a sheet of samples: 60 rows are 9,000 pixels high
TILE_PX, GAP_PX, HEAD_PX = 140, 8, 40
NUM_FIRST = 3  # paths shown per kind of problem
FILE_WIDTH = 120  # characters per line of a file or pipe, which hold the percentiles of report R4
HIDDEN = ("", "p[234678]0", "p([234678]0|[27]5)")  # percentiles hidden on ever narrower terminals
NUM_RANDOM = 12  # classes on a sheet of samples if none are chosen


def choose_classes(table: Table, show: Sequence[str | int] = (), seed: int = 0) -> dict[str, list[int]]:
    """Choose the codes of each label's classes for its sheet of samples.

    Those that `show` names by id or name; for a label without any of them, 12 random ones. Raises InputError for a
    class that no label has.
    """
    chosen: dict[str, list[int]] = {label: [] for label in table.class_labels}
    for value in map(str, show):
        hits = [
            (label, code)
            for label, classes in table.class_labels.items()
            for code in range(len(classes))
            if nfc(value) in (nfc(classes.ids[code]), nfc(classes.names[code]))
        ]
        if not hits:
            known = {name for classes in table.class_labels.values() for name in (*classes.names, *classes.ids)}
            raise InputError(f"show: {value!r} is not a class of {table.name} (id or name){suggest(value, known)}")
        for label, code in hits:
            chosen[label].append(code)
    for label, classes in table.class_labels.items():
        if not chosen[label]:
            count = min(NUM_RANDOM, len(classes))
            chosen[label] = sorted(np.random.default_rng(seed).choice(len(classes), count, replace=False).tolist())
    return chosen


def write_health(
    table: Table,
    scan: pd.DataFrame,
    folder: Path,
    chosen: dict[str, list[int]],
    num_per_class: int = 8,
    seed: int = 0,
) -> dict:
    """Write the report's files into `folder` and return the content of health.json.

    scan: from `scan_photos`. chosen: from `choose_classes`, the classes on the sheets of samples. Files: photos.csv
    (the scan), problems.csv, copies.csv, colours.csv, and for each label with classes classes_<label>.csv,
    counts_<label>.png, samples_<label>.png.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copies = find_copies(table, scan)
    write_csv(folder / "photos.csv", scan)
    write_csv(folder / "problems.csv", scan[scan["problem"] != ""])
    write_csv(folder / "copies.csv", copies)
    colours = describe_colours(table, scan)
    reference = pd.DataFrame([{"split": "ImageNet", **IMAGENET}])
    write_csv(folder / "colours.csv", pd.concat([colours, reference]).round(4).astype({"photos": "Int64"}))
    report = _summarise(table, scan, copies)
    report["colours"] = without_nan(_rounded(colours))
    report["hints"] = hints_on_values(table, scan)
    stems = file_stems(list(table.class_labels))
    for label in table.class_labels:
        stem = stems[label]
        counts = class_counts(table, label)
        write_csv(folder / f"classes_{stem}.csv", counts)
        plot_class_counts(counts, f"{table.name}, {label}", folder / f"counts_{stem}.png")
        plot_samples(table, label, chosen[label], folder / f"samples_{stem}.png", num_per_class, seed)
        report["labels"][label] = {
            "classes": len(counts),
            "unknown": int((table.rows[label] == UNKNOWN).sum()),
            "splits": without_nan(_rounded(describe_counts(counts))),
        }
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(folder / "health.json", text + "\n")
    return report


def is_health(folder: Path) -> bool:
    """Return whether the folder holds a report of write_health."""
    try:
        report = json.loads((folder / "health.json").read_text(encoding="utf-8"))
        return {"name", "root", "photos", "bytes", "formats"} <= report.keys()
    except (OSError, ValueError, AttributeError):
        return False


def _summarise(table: Table, scan: pd.DataFrame, copies: pd.DataFrame) -> dict:
    bad = scan[scan["problem"] != ""]
    problems = {
        kind: {"photos": len(rows), "first": dict(zip(rows["path"][:NUM_FIRST], rows["detail"], strict=False))}
        for kind, rows in sorted(bad.groupby("problem"), key=lambda group: -len(group[1]))
    }
    notes = scan["note"].str.split("; ").explode()
    sized = scan[scan["width"] > 0]
    return {
        "name": table.name,
        "root": text_of_path(str(table.root)),
        "photos": len(scan),
        "bytes": int(scan["bytes"].sum()),
        "formats": {k: int(n) for k, n in scan.loc[scan["format"] != "", "format"].value_counts().items()},
        "sizes": {
            side: {"min": int(sized[side].min()), "median": int(sized[side].median()), "max": int(sized[side].max())}
            for side in ("width", "height")
            if len(sized)
        },
        "num_problems": len(bad),
        "problems": problems,
        "notes": {note: int(count) for note, count in notes[notes != ""].value_counts().items()},
        "copies": {
            "photos": len(copies),
            "groups": int(copies["group"].nunique()),
            "conflicts": int(copies.loc[copies["conflict"], "group"].nunique()),
            "across_splits": int(copies.loc[copies["across_splits"], "group"].nunique()),
        },
        "labels": {},
    }


def _rounded(frame: pd.DataFrame) -> list[dict]:
    """Return the rows with floats rounded to three digits, as health.json holds them."""
    return [
        {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def print_health(report: dict, console: Console | None = None) -> int:
    """Print the report of write_health; return the number of unusable photos."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console.width = max(console.width, FILE_WIDTH)
    megabytes = report["bytes"] / 1e6
    kinds = ", ".join(f"{count:,} {name}" for name, count in report["formats"].items())
    sizes = report["sizes"]
    console.print(Text(f"\n{report['name']}: {report['photos']:,} photos in {report['root']}", "bold"), soft_wrap=True)
    console.print(Text(f"{megabytes:,.1f} MB; {kinds or 'none readable'}", "dim"))
    if sizes:
        shape = "; ".join(
            f"{side} {s['min']:,} to {s['max']:,} px, median {s['median']:,}" for side, s in sizes.items()
        )
        console.print(Text(shape, "dim"))
    _print_problems(report, console)
    _print_copies(report["copies"], console)
    for hint in report["hints"]:
        console.print(Text(f"Look at this: {hint}.", "yellow"), soft_wrap=True)
    if report["colours"]:
        print_table(_colour_table(report["colours"]), console)
    for label, counts in report["labels"].items():
        print_table(_count_table(label, counts, console), console)
    return report["num_problems"]


def _print_problems(report: dict, console: Console) -> None:
    if not report["num_problems"]:
        console.print(Text("All photos can be read.", "green"))
    else:
        console.print(Text(f"Photos that can't be used (problems.csv): {report['num_problems']:,}", "bold red"))
        for kind, found in report["problems"].items():
            console.print(Text(f"  {kind}: {found['photos']:,}"))
            for path, detail in found["first"].items():
                console.print(Text(f"    {path}: {detail}", "dim"), soft_wrap=True)
            if found["photos"] > len(found["first"]):
                console.print(Text("    ...", "dim"))
    if report["notes"]:
        notes = ", ".join(f"{count:,} {note}" for note, count in report["notes"].items())
        console.print(Text(f"Unusual, but usable (photos.csv): {notes}"))


def _print_copies(copies: dict, console: Console) -> None:
    if not copies["groups"]:
        console.print(Text("No two photos are byte-identical.", "green"))
        return
    text = f"Groups of byte-identical photos (copies.csv): {copies['groups']:,}, of {copies['photos']:,} photos"
    console.print(Text(text, "yellow"))
    if copies["conflicts"]:
        console.print(Text(f"  with contradictory labels: {copies['conflicts']:,}", "yellow"))
    if copies["across_splits"]:
        console.print(Text(f"  with photos in more than one split: {copies['across_splits']:,}", "yellow"))


def _colour_table(colours: list[dict]) -> TextTable:
    """Tabulate mean ± standard deviation of each channel, one row per split."""
    channels = ("red", "green", "blue")
    reference: dict = {"split": "ImageNet", "photos": None, **IMAGENET}
    rows = [
        [row["split"], _number(row["photos"]), *(f"{row[name]:.3f} ± {row[f'{name}_std']:.3f}" for name in channels)]
        for row in (*colours, reference)
    ]
    return TextTable("colours of a photo, 0 to 1 (mean ± standard deviation):", ["split", "photos", *channels], rows)


def _count_table(label: str, counts: dict, console: Console) -> TextTable:
    """Tabulate the photos per class, one row per split, with as many percentiles as fit the terminal.

    In a file or a pipe, at least those of report R4.
    """
    unknown = f" (photos of unknown {label}: {counts['unknown']:,})" if counts["unknown"] else ""
    title = f"{label}: {counts['classes']:,} classes{unknown}; photos per class:"
    tables = []
    for hidden in HIDDEN if console.is_terminal else HIDDEN[:2]:
        names = [name for name in counts["splits"][0] if not re.fullmatch(hidden, name)]
        rows = [[row["split"], *(_number(row[name]) for name in names[1:])] for row in counts["splits"]]
        tables.append(TextTable(title, names, rows))
    return next((table for table in tables if fits(table, console)), tables[-1])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}".removesuffix(".0")


def plot_class_counts(counts: pd.DataFrame, title: str, file: Path) -> None:
    """Write a PNG of the counts of data.health.class_counts, with stacked splits.

    Up to 60 classes: one bar per class, the largest first. More: the curve over the sorted classes, and below it a
    histogram of the class sizes.
    """
    splits = [name for name in SPLIT_COLOURS if name in counts]
    order = np.argsort(-counts["total"].to_numpy(), kind="stable")
    counts = counts.iloc[order].reset_index(drop=True)
    figure = _bars(counts, splits) if len(counts) <= MAX_BARS else _curve_and_histogram(counts, splits)
    set_title(figure, f"{title}: {counts['total'].sum():,} photos of {len(counts):,} classes")
    save_figure(figure, file)


def _bars(counts: pd.DataFrame, splits: list[str]) -> Figure:
    names = [shorten_name(name, 48) for name in counts["name"]]
    figure = create_figure(8.5, 1.3 + 0.22 * len(counts))
    axes = figure.add_subplot()
    y_positions = np.arange(len(counts))
    start = np.zeros(len(counts))
    for split in splits:
        axes.barh(y_positions, counts[split], left=start, height=0.78, color=SPLIT_COLOURS[split], label=split)
        start += counts[split]
    for y, total in enumerate(counts["total"]):
        axes.annotate(f"{total:,}", (total, y), (4, 0), textcoords="offset points", va="center", size=8, color=FAINT)
    axes.set_yticks(y_positions, names, parse_math=False)
    axes.set_ylim(len(counts) - 0.4, -0.6)  # the largest on top
    axes.set_xlabel("photos")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.margins(x=0.08)
    tidy(axes, grid="x")
    _legend(figure, axes, splits)
    return figure


def _curve_and_histogram(counts: pd.DataFrame, splits: list[str]) -> Figure:
    figure = create_figure(9.5, 7)
    curve, histogram = figure.subplots(2, 1, height_ratios=(3, 2))
    total = counts["total"].to_numpy()
    edges = np.arange(len(counts) + 1) + 0.5
    floor = np.zeros(len(counts))
    for split in splits:
        top = floor + counts[split]
        curve.stairs(top, edges, baseline=floor, fill=True, color=SPLIT_COLOURS[split], label=split, linewidth=0)
        floor = top
    curve.set(xlabel="class, sorted by its photos", ylabel="photos", xlim=(edges[0], edges[-1]), ylim=(0, None))
    median = np.median(total)
    curve.axhline(median, color=TEXT, linewidth=0.8, linestyle=(0, (4, 3)))
    curve.annotate(
        f"median {median:,.0f}", (1, median), (-4, 4), ("axes fraction", "data"), "offset points",
        ha="right", size=9, color=TEXT,
    )  # fmt: skip
    first, last = (shorten_name(counts["name"].iloc[i], 48) for i in (0, -1))
    curve.set_title(
        f"largest: {first} ({total[0]:,}); smallest: {last} ({total[-1]:,})",
        loc="left", size=9, color=FAINT, parse_math=False,
    )  # fmt: skip
    histogram.hist(total, bins=_bins(total), color=FAINT, edgecolor="white", linewidth=0.6)
    histogram.set(xlabel="photos in a class", ylabel="classes")
    for axes in (curve, histogram):
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        tidy(axes, grid="y")
    _legend(figure, curve, splits)
    return figure


def _bins(total: np.ndarray) -> np.ndarray:
    """Return the edges of at most 40 bins of equal integer width, so that each covers equally many possible counts."""
    low, high = int(total.min()), int(total.max())
    width = -(-(high - low + 1) // 40)
    return np.arange(low, high + width + 1, width) - 0.5


def _legend(figure: Figure, axes: Axes, splits: list[str]) -> None:
    if splits != ["no split"]:
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper right", ncols=len(names), frameon=False, fontsize=9)


def plot_samples(
    table: Table, label: str, classes: Sequence[int], file: Path, num_per_class: int = 8, seed: int = 0
) -> None:
    """Write a PNG with one row for each of these codes of `label`: its name and random photos of it, whole and upright.

    Boxes are drawn if the table has any. At most 60 rows. An unreadable photo is a grey tile.
    """
    if len(classes) > MAX_ROWS:
        log.warning("%s: the first %d of %d classes are shown", file.name, MAX_ROWS, len(classes))
        classes = classes[:MAX_ROWS]
    names = [_wrap_name(table.class_labels[label].names[code], 22) for code in classes]
    left_px = 24 + max((width_px(line, 9) for name in names for line in name.split("\n")), default=0)
    width = left_px + num_per_class * (TILE_PX + GAP_PX)
    height = HEAD_PX + len(classes) * (TILE_PX + GAP_PX)
    figure, axes = create_sheet(width, height)
    title = f"{table.name}: {label}, random photos"
    draw_text(axes, 10, HEAD_PX / 2, title, va="center", size=12, weight="bold")
    codes = table.rows[label].to_numpy()
    for row, code in enumerate(classes):
        top = HEAD_PX + row * (TILE_PX + GAP_PX)
        draw_text(axes, 10, top + TILE_PX / 2, names[row], va="center")
        # Seeded by class, so that it shows the same photos whichever other classes are chosen
        photos = np.random.default_rng((seed, int(code))).permutation(np.flatnonzero(codes == code))
        if not len(photos):
            draw_text(axes, left_px, top + TILE_PX / 2, "no photos", va="center", color=FAINT)
        for column, photo in enumerate(photos[:num_per_class]):
            _draw_tile(axes, table, photo, left_px + column * (TILE_PX + GAP_PX), top)
    save_figure(figure, file)


def _draw_tile(axes: Axes, table: Table, photo: int, left: float, top: float) -> None:
    try:
        image, (width, height) = read_small(table.photo(photo), (TILE_PX, TILE_PX))
    except BadImage:
        draw_unreadable(axes, left, top, (TILE_PX, TILE_PX))
        return
    left, top = draw_photo(axes, image, left, top, (TILE_PX, TILE_PX))
    box = table.rows[BOX].iloc[photo].to_numpy(np.float32) if table.has_boxes else None
    if box is None or np.isnan(box).any():
        return
    try:
        check_box(box, width, height)
    except BadImage:
        return  # the scan reports wrong boxes; the photo is shown without
    scale = image.width / width
    x1, y1, x2, y2 = np.clip(box, 0, (width, height, width, height)) * scale
    axes.add_patch(Rectangle((left + x1, top + y1), x2 - x1, y2 - y1, fill=False, edgecolor=BOX_COLOUR, linewidth=1.2))


def _wrap_name(name: str, width: int) -> str:
    """Wrap a name to at most three lines of `width` characters."""
    return "\n".join(textwrap.wrap(name, width, max_lines=3, placeholder=" \u2026")) or " "
