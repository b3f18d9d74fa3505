"""What a run's folder says about the run: its facts, its warnings, its curves, and what its photos look like."""

import json
import re
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from carvision.data.health import class_counts, describe_colours, find_copies, hints_on_values, scan_photos
from carvision.data.table import SPLITS, Table
from carvision.reports.charts import Axis, Line, Rule, line_chart
from carvision.reports.summary import time_line
from carvision.reports.tables import TextTable
from carvision.run_report.gather import RunResults
from carvision.system.machine import num_cores

MAX_SCANNED = 1000  # photos of which sizes and colours are read
SPLIT_LOOKS = {"train": 0, "val": 1}
MAX_WARNINGS = 20


def run_facts(results: RunResults) -> list[tuple[str, str]]:
    """Return the rows of the run's facts: (name, value), those that its folder holds."""
    about, folder = results.about, results.folder
    config, metrics = about.get("config") or {}, about.get("metrics") or {}
    start = _last_start(folder)
    preprocessing = results.preprocessing
    heads = ", ".join(
        f"{name} ({len(label['ids']):,} classes)" if "ids" in label else f"{name} ({label.get('unit') or 'number'})"
        for name, label in results.labels.items()
    )
    counts = results.table.rows["split"].value_counts()
    photos = ", ".join(f"{counts[split]:,} {split}" for split in SPLITS if split in counts)
    backbone = about["network"]["backbone"]
    rows = [
        ("Command", _command(start)),
        ("Photos", f"{results.table.name}: {photos}"),
        ("Data", str(results.table.root)),
        ("Heads", heads),
        ("Backbone", f"{backbone}, weights: {(config.get('model') or {}).get('weights', 'not recorded')}"),
        ("Input", f"{preprocessing.size_px} px, {preprocessing.interpolation}, {preprocessing.resize}"),
        ("Parameters", f"{metrics.get('parameters') or sum(p.numel() for p in results.model.parameters()):,}"),
        ("Model file", _size_of(folder / "model.safetensors")),
        ("Time", time_line(metrics)),
        ("Device", ", ".join(dict.fromkeys(start.get("devices", []))) + _processor(start)),
        ("Started", f"{start.get('time', '')}".replace("T", " ").removesuffix("+00:00")),
        ("Versions", _versions(start)),
    ]
    return [(name, value) for name, value in rows if value and value.strip(", ")]


def _last_start(folder: Path) -> dict:
    """Return the record of the run's last start in environment.json; {} without one."""
    try:
        starts = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return starts[-1] if isinstance(starts, list) and starts and isinstance(starts[-1], dict) else {}


def _command(start: dict) -> str:
    """Return the command as it is typed, without the interpreter's path."""
    return re.sub(r"^\S*python[\d.]*\s", "python ", str(start.get("command", "")))


def _processor(start: dict) -> str:
    return f" ({start['processor']}, {start.get('num_cores')} cores)" if start.get("processor") else ""


def _versions(start: dict) -> str:
    own, versions = start.get("carvision") or {}, start.get("versions") or {}
    commit = f" at {own['commit'][:10]}{' with changes' if own.get('changed') else ''}" if own.get("commit") else ""
    others = [f"{name} {versions[name]}" for name in ("torch", "timm", "pytorch-lightning") if versions.get(name)]
    return ", ".join([f"carvision {own['version']}{commit}", *others]) if own.get("version") else ""


def _size_of(file: Path) -> str:
    return f"{file.name}, {file.stat().st_size / 1e6:,.1f} MB" if file.is_file() else ""


def run_warnings(folder: Path) -> list[str]:
    """Return the warnings of run.log, each once, the latest MAX_WARNINGS."""
    try:
        text = (folder / "run.log").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = re.findall(r"^(?:\S+ \S+ )?WARNING:? (.+)$", text, re.MULTILINE)
    return list(dict.fromkeys(found))[-MAX_WARNINGS:]


def curves(results: RunResults) -> list[tuple[str, Markup]]:
    """Return (heading, chart) of loss and accuracy by epoch, from history.csv; none if there is no such file."""
    try:
        history = pd.read_csv(results.folder / "history.csv")
    except (OSError, ValueError):
        return []
    if not len(history):
        return []
    rules = []
    best = (results.about.get("metrics") or {}).get("best_epoch")
    if best is not None:
        rules.append(Rule(best + 1, f"best: epoch {best + 1}"))
    if "phase" in history:
        begins = history[history["phase"] != history["phase"].shift()][1:]
        rules += [Rule(e + 0.5, str(name)) for e, name in zip(begins["epoch"], begins["phase"], strict=True)]
    charts = [("Loss", _chart(history, {"": "loss"}, Axis("loss"), "Loss by epoch", rules))]
    accuracies = {head: f"{head}/top1" for head in results.heads}
    if any(f"val/{name}" in history for name in accuracies.values()):
        axis = Axis("accuracy, %", percent=True, limits=(0, 1))
        charts.append(("Accuracy", _chart(history, accuracies, axis, "Accuracy by epoch", rules)))
    return charts


def _chart(history: pd.DataFrame, metrics: dict[str, str], y: Axis, title: str, rules: list[Rule]) -> Markup:
    """Draw each metric of training (dashed) and validation. metrics: {head or "": name in history.csv}."""
    lines = []
    for look, (head, metric) in enumerate(metrics.items()):
        for split in ("train", "val"):
            if f"{split}/{metric}" in history:
                known = history[["epoch", f"{split}/{metric}"]].dropna()
                name = {"train": "training", "val": "validation"}[split]
                lines.append(
                    Line(
                        f"{head}, {name}" if len(metrics) > 1 else name, (known["epoch"] + 1).tolist(),
                        known[f"{split}/{metric}"].tolist(), look if len(metrics) > 1 else SPLIT_LOOKS[split],
                        dashed=split == "train",
                    )
                )  # fmt: skip
    return line_chart(lines, Axis("epoch", whole=True), y, title, rules)


def data_sheet(results: RunResults) -> tuple[list[TextTable], list[str]]:
    """Return tables of the run's photos (counts by class, sizes, colours), and notes: copies, hints.

    Sizes, colours and copies are of at most MAX_SCANNED photos of all splits.
    """
    table = results.table
    tables = [_counts_table(table, head) for head in results.heads if head in table.class_labels]
    sampled = _sample(table)
    scan = scan_photos(sampled, False, num_cores())
    good = scan[scan["problem"] == ""]
    notes = []
    if len(good):
        rows = [
            [name, *(f"{good[key].quantile(q):,.0f}" for q in (0, 0.5, 1))]
            for name, key in (("width, px", "width"), ("height, px", "height"))
        ]
        sizes = (good["bytes"] / 1e3).quantile([0, 0.5, 1])
        rows.append(["file, kB", *(f"{value:,.0f}" for value in sizes)])
        tables.append(TextTable("Sizes", ["", "smallest", "median", "largest"], rows))
        colours = describe_colours(sampled, scan)
        shown = [
            [row["split"], f"{row['photos']:,}", *(f"{255 * row[name]:.0f}" for name in ("red", "green", "blue"))]
            for row in colours.to_dict("records")
        ]
        note = "ImageNet's means are 124, 116 and 104."
        header = ["mean colour, 0 to 255", "photos", "red", "green", "blue"]
        tables.append(TextTable("Colours", header, shown, notes=[note]))
    if len(sampled) < len(table):
        notes.append(f"Sizes, colours and copies are of {len(sampled):,} of the {len(table):,} photos.")
    if len(scan) > len(good):
        first = scan[scan["problem"] != ""].iloc[0]
        notes.append(f"{len(scan) - len(good):,} photos can't be used (first: {first['path']}: {first['detail']}).")
    copies = find_copies(sampled, scan)
    if len(copies):
        groups, across = copies["group"].nunique(), copies[copies["across_splits"]]["group"].nunique()
        notes.append(f"{groups:,} photos occur several times byte for byte, {across:,} of them in several splits.")
        if copies["conflict"].any():
            row = copies[copies["conflict"]].iloc[0]
            notes.append(f"Copies have different labels (first: {row['path']}): carvision check lists them.")
    return tables, notes + hints_on_values(sampled, scan)


def _sample(table: Table) -> Table:
    step = max(1, -(-len(table) // MAX_SCANNED))
    return table.select(pd.RangeIndex(len(table)) % step == 0) if step > 1 else table


def _counts_table(table: Table, head: str) -> TextTable:
    counts = class_counts(table, head)
    rows = []
    for split in [*SPLITS, "total"]:
        if split in counts:
            values = counts[split]
            few = f"{(values < 5).sum():,}"
            rows.append(
                [split, f"{values.sum():,}", f"{values.min():,}", f"{values.median():,.0f}", f"{values.max():,}", few]
            )
    header = [f"photos of a {head}", "all", "fewest", "median", "most", "classes with fewer than 5"]
    return TextTable(f"Photos by {head}", header, rows)
