"""The report of a data set's health: tables and plots in a folder, and a summary on the terminal."""

import json
import logging
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
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
from carvision.data.paths import nfc, text_of_path
from carvision.data.table import BOX, UNKNOWN, Table
from carvision.errors import InputError, suggest
from carvision.files.atomic import file_stems, write_csv, write_text
from carvision.reports import plots
from carvision.reports.photos import ELLIPSIS, Row, Tile, plot_sheet, shorten_name
from carvision.reports.tables import TextTable, fits, print_table, without_nan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

MAX_BARS = 60  # classes drawn as bars with names; more are drawn as a curve
MAX_ROWS = 60  # classes on a sheet of samples: 60 rows are 9,000 pixels high
MAX_BINS = 40  # of the histogram of class sizes
NUM_FIRST = 3  # paths shown per kind of problem
FILE_WIDTH = 120  # characters per line of a file or pipe, which hold the percentiles of report R4
HIDDEN = ("", "p[234678]0", "p([234678]0|[27]5)")  # percentiles hidden on ever narrower terminals
NUM_RANDOM = 12  # classes on a sheet of samples if none are chosen


def choose_classes(table: Table, show: Sequence[str | int] = ()) -> dict[str, list[int]]:
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
            chosen[label] = sorted(np.random.default_rng(0).choice(len(classes), count, replace=False).tolist())
    return chosen


def write_health(
    table: Table, scan: pd.DataFrame, folder: Path, chosen: dict[str, list[int]], num_per_class: int = 8
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
    report["colours"] = _rounded(colours)
    report["hints"] = hints_on_values(table, scan)
    stems = file_stems(list(table.class_labels))
    for label in table.class_labels:
        stem = stems[label]
        counts = class_counts(table, label)
        write_csv(folder / f"classes_{stem}.csv", counts)
        plot_class_counts(counts, f"{table.name}, {label}", folder / f"counts_{stem}.png")
        plot_samples(table, label, chosen[label], folder / f"samples_{stem}.png", num_per_class)
        report["labels"][label] = {
            "classes": len(counts),
            "unknown": int((table.rows[label] == UNKNOWN).sum()),
            "splits": _rounded(describe_counts(counts)),
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
    """Return the rows as health.json holds them: with floats of three digits, and None for NaN."""
    rows = frame.to_dict("records")
    return without_nan([{k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()} for row in rows])


def print_health(report: dict, console: Console | None = None) -> int:
    """Print the report of write_health; return the number of unusable photos."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console.width = max(console.width, FILE_WIDTH)
    kinds = ", ".join(f"{count:,} {name}" for name, count in report["formats"].items())
    sides = [f"{side} {s['min']:,} to {s['max']:,} px, median {s['median']:,}" for side, s in report["sizes"].items()]
    console.print(Text(f"\n{report['name']}: {report['photos']:,} photos in {report['root']}", "bold"), soft_wrap=True)
    console.print(Text(f"{report['bytes'] / 1e6:,.1f} MB; {kinds or 'none readable'}", "dim"))
    if sides:
        console.print(Text("; ".join(sides), "dim"))
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
    splits = [name for name in plots.SPLIT_COLOURS if name in counts]
    order = np.argsort(-counts["total"].to_numpy(), kind="stable")
    counts = counts.iloc[order].reset_index(drop=True)
    if len(counts) <= MAX_BARS:
        figure, [[axes]] = plots.create_panels(1, 1, 8.5, 1.3 + 0.22 * len(counts))
        names = [shorten_name(name, 48) for name in counts["name"]]
        plots.draw_bars(axes, names, {split: counts[split] for split in splits}, plots.SPLIT_COLOURS)
        plots.label_axes(axes, x="photos", grid="x", whole="x")
    else:
        figure = _curve_and_histogram(counts, splits)
    plots.finish(figure, f"{title}: {counts['total'].sum():,} photos of {len(counts):,} classes", file)


def _curve_and_histogram(counts: pd.DataFrame, splits: list[str]) -> "Figure":
    figure, [[curve], [histogram]] = plots.create_panels(2, 1, 9.5, 7, height_ratios=(3, 2))
    total = counts["total"].to_numpy()
    edges, floor = np.arange(len(counts) + 1) + 0.5, np.zeros(len(counts))
    for split in splits:
        plots.draw_histogram(curve, edges, counts[split], plots.SPLIT_COLOURS[split], split, floor, gaps=False)
        floor += counts[split]
    first, last = (shorten_name(counts["name"].iloc[i], 40) for i in (0, -1))
    heading = f"largest: {first} ({total[0]:,}); smallest: {last} ({total[-1]:,})"
    plots.label_axes(curve, heading, "class, sorted by its photos", "photos", whole="y")
    curve.set(xlim=(edges[0], edges[-1]), ylim=(0, None))
    median = np.median(total)
    name = f"median: {median:,.0f} photos"
    plots.draw_line(curve, (edges[0], edges[-1]), (median, median), plots.TEXT, name, dashed=True, linewidth=0.8)
    low, high = int(total.min()), int(total.max())
    width = -(-(high - low + 1) // MAX_BINS)  # whole, so that each bin covers equally many possible counts
    bins = np.arange(low, high + width + 1, width) - 0.5
    plots.draw_histogram(histogram, bins, np.histogram(total, bins)[0], plots.FAINT)
    plots.label_axes(histogram, x="photos in a class", y="classes", whole="xy")
    return figure


def plot_samples(table: Table, label: str, classes: Sequence[int], file: Path, num_per_class: int) -> None:
    """Write a PNG with one row for each of these codes of `label`: its name and random photos of it, whole and upright.

    Boxes are drawn if the table has any. At most 60 rows. An unreadable photo is a grey tile.
    """
    if len(classes) > MAX_ROWS:
        log.warning("%s: the first %d of %d classes are shown", file.name, MAX_ROWS, len(classes))
        classes = classes[:MAX_ROWS]
    codes, rows = table.rows[label].to_numpy(), []
    boxes = table.rows[BOX].to_numpy(np.float32) if table.has_boxes else None
    for code in classes:
        # Seeded by class, so that it shows the same photos whichever other classes are chosen
        photos = np.random.default_rng((0, int(code))).permutation(np.flatnonzero(codes == code))[:num_per_class]
        tiles = [Tile(table.photo(photo), box=None if boxes is None else boxes[photo]) for photo in photos]
        name = textwrap.wrap(table.class_labels[label].names[code], 22, max_lines=3, placeholder=f" {ELLIPSIS}")
        rows.append(Row(tiles or ["no photos"], [(line, "normal") for line in name]))
    plot_sheet(rows, file, f"{table.name}: {label}, random photos")
