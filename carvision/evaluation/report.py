"""Write an evaluation: metrics with intervals, tables on the terminal and in files, plots of each head with classes."""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.text import Text

from carvision.data.table import LabelDescription
from carvision.evaluation.bootstrap import LEVEL, Measured
from carvision.evaluation.calibration import reliability
from carvision.evaluation.metrics import HeadResult, class_order, class_table, head_results, parent_names
from carvision.evaluation.page.write import write_evaluation_page
from carvision.evaluation.pictures import NUM_PAIRS, plot_confusion, plot_coverage, plot_pairs, plot_reliability
from carvision.evaluation.predict import Predictions
from carvision.files.atomic import file_stems, open_new, write_csv
from carvision.reports.page import sections_of, write_markdown
from carvision.reports.tables import JOINT, TextTable, has_rank, percent, print_table, without_nan
from carvision.system.terminal import fold

Intervals = dict[str, tuple[float, float]]
MAX_COLUMNS = 2  # heads with intervals that fit into 80 characters beside the metrics' names
SHOWN = {
    "top1": "top-1 %", "top3": "top-3 %", "top5": "top-5 %", "balanced_accuracy": "balanced accuracy %", "auc": "AUC %",
    "precision": "precision %, mean of the classes", "recall": "recall %, mean of the classes",
    "f1": "F1 %, mean of the classes", "precision_at50": "precision %, all p > 0.5 (Keras)",
    "recall_at50": "recall %, all p > 0.5 (Keras)", "f1_at50": "F1 %, all p > 0.5 (Keras)", "loss": "loss",
}  # fmt: skip
CALIBRATION = {
    "ece": "calibration error %", "ece_calibrated": "the same with the temperature",
    "nll": "negative log likelihood", "nll_calibrated": "the same with the temperature",
}  # fmt: skip
OF_ALL = {**{name: f"{title} %" for name, title in JOINT.items()}, "loss": "loss"}
BREAKS = tuple(SHOWN[name] for name in ("precision", "precision_at50", "loss"))  # rows with a line above them
AREA = "area under the risk-coverage curve"
NO_PERCENT = ("loss", "nll", "nll_calibrated", "mae", "rmse")
INTERVALS_NOTE = "In brackets: 95 % bootstrap intervals, from resampling the evaluated photos."
BINS_NOTE = (
    "Calibration error: mean distance of confidence and accuracy in 15 bins. Bootstrap samples "
    "overestimate the error, so the interval is skewed upwards."
)
PAIRS_TITLE = "Confused pairs, {}"  # of a picture of their photos
COVERAGE_NOTE = "Accuracy in %, and the lowest probability of the predicted class among these photos."


def write_evaluation(
    predictions: Predictions,
    labels: dict[str, LabelDescription],
    folder: Path,
    *,
    measured: Measured,
    rule: str,
    title: str,
    notes: Sequence[str] = (),
    keras: bool = False,
) -> dict:
    """Write results.txt, evaluation.{md,html}, the tables and the plots into the folder, and print the main table.

    Returns the content of evaluation.json, plain values. labels: {head: {"ids", "names", "parent", "parent_codes"}} or
    {head: {"unit", "mean", "std"}}, as in model.json. measured: their metrics, with the decoding rule `rule`. title:
    one line, such as "stanford_cars_frozen on test". notes: shown below the title. keras: show precision and recall as
    Keras counts them, too.

    For each head with classes: per_class_<head>.csv, confusion_<head>.{csv,png}, confused_<head>.{csv,png},
    reliability_<head>.png; for all of them coverage.png. A head without any known class has none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metrics, intervals, decodings = measured.values, measured.intervals, measured.decodings
    results = head_results(predictions, labels, rule)
    pictures: dict[str, Path] = {}
    if results:
        pictures["Accuracy on the most confident photos"] = folder / "coverage.png"
        confidences = {head: (part.confidence, part.right) for head, part in results.items()}
        plot_coverage(confidences, f"{title}: accuracy on the most confident photos", folder / "coverage.png")
    stems = file_stems([head for head, label in labels.items() if "ids" in label])
    for head, part in results.items():
        _write_tables(predictions, labels, head, part, stems[head], folder)
        pictures |= _draw_head(predictions, labels, head, part, title, stems[head], folder)
    tables = {
        "metrics": metric_tables(metrics, intervals, labels, keras),
        "calibration": calibration_tables(metrics, intervals, predictions.temperature, list(results)),
        "coverage": coverage_tables(results),
    }
    printed = brief_tables(metrics, intervals, labels, keras, [f"{h}: {part.note}" for h, part in results.items()])
    if decodings:
        tables["metrics"].append(decoding_table(decodings, rule))
    pairs = {head: pairs_table(head, part.pairs, labels[head]["names"], part.note) for head, part in results.items()}
    num_photos, num_unreadable = int(predictions.valid.sum()), int((~predictions.valid).sum())
    left_out = f"; {num_unreadable:,} more could not be read and are left out" if num_unreadable else ""
    about = " ".join(f"{note.rstrip('.')}." for note in [f"{num_photos:,} photos{left_out}.", *notes])
    _write_texts(folder, title, about, [*itertools.chain(*tables.values()), *pairs.values()], printed, pictures)
    sheets = {head: (table, pictures[PAIRS_TITLE.format(head)]) for head, table in pairs.items()}
    page = folder / "evaluation.html"
    write_evaluation_page(page, predictions, labels, results, tables, sheets, title, about)
    print(fold(f"page: {page}", sys.stdout))
    return without_nan(
        {
            "photos": num_photos, "unreadable": num_unreadable, "figures": metrics, "intervals": intervals,
            "bootstrap": {"samples": measured.num_samples, "seed": measured.seed, "level": LEVEL},
            "decoding": rule, "decodings": decodings,
            "temperature": {head: predictions.temperature.get(head, 1.0) for head in results},
            "coverage": {h: {"rows": p.coverage.to_dict("records"), "aurc": p.aurc} for h, p in results.items()},
            "mistakes": {
                head: {"photos": int((~part.right).sum()), "within_parent": part.within_parent}
                for head, part in results.items()
            },
        }
    )  # fmt: skip


def _write_texts(
    folder: Path, title: str, about: str, tables: Sequence[TextTable], printed: Sequence[TextTable],
    pictures: dict[str, Path],
) -> None:  # fmt: skip
    """Write results.txt and evaluation.md; print the tables that are for the terminal."""
    write_markdown(folder / "evaluation.md", title, about, sections_of(tables, pictures))
    with open_new(folder / "results.txt", "w", encoding="utf-8") as file:
        for console, shown in ((Console(), printed), (Console(file=file, width=80, force_jupyter=False), tables)):
            console.print(Text(f"{title}. {about}"))
            for table in shown:
                print_table(table, console)


def _draw_head(
    predictions: Predictions, labels: dict[str, LabelDescription], head: str, part: HeadResult, title: str, stem: str,
    folder: Path,
) -> dict[str, Path]:  # fmt: skip
    """Draw the head's matrix, pairs and reliability into confusion, confused and reliability_<stem>.png; return
    {title: file}."""
    names = labels[head]["names"]
    files = {kind: folder / f"{kind}_{stem}.png" for kind in ("confusion", "confused", "reliability")}
    order, parents = class_order(head, labels), parent_names(head, labels)
    rank_of = order.argsort()
    ordered = part.cells.assign(true=rank_of[part.cells["true"]], predicted=rank_of[part.cells["predicted"]])
    named = [names[i] for i in order], [parents[i] for i in order]
    plot_confusion(ordered, *named, f"{title}: {head}", part.note, files["confusion"])
    heading = f"{title}: the most confused pairs of {head}"
    plot_pairs(part.pairs, predictions, head, names, part.predicted, heading, files["confused"])
    known = predictions.known(head)
    targets, temperature = predictions.targets[head][known], predictions.temperature.get(head, 1.0)
    diagrams = {"as it is": reliability(predictions.probs(head, calibrated=False)[known], targets)}
    if temperature != 1:
        diagrams[f"temperature {temperature:.3g}"] = reliability(predictions.probs(head)[known], targets)
    plot_reliability(diagrams, f"{title}: {head}, confidence and accuracy", files["reliability"])
    titles = {
        "confusion": "Confusion matrix, {}", "confused": PAIRS_TITLE, "reliability": "Confidence and accuracy, {}",
    }  # fmt: skip
    return {titles[kind].format(head): file for kind, file in files.items()}


def _write_tables(
    predictions: Predictions, labels: dict[str, LabelDescription], head: str, part: HeadResult, stem: str, folder: Path
) -> None:
    """Write per_class, confusion and confused_<stem>.csv."""
    ids, names = (np.array(labels[head][kind], dtype=object) for kind in ("ids", "names"))
    write_csv(folder / f"per_class_{stem}.csv", class_table(predictions, head, labels, part.predicted))
    for kind, rows, columns in (("confusion", part.cells, ("true", "predicted")), ("confused", part.pairs, "ab")):
        named = {}
        for column in columns:
            named |= {f"{column}_id": ids[rows[column]], column: names[rows[column]]}
        counts = rows.drop(columns=list(columns))
        write_csv(folder / f"{kind}_{stem}.csv", pd.DataFrame({**named, **counts}))


def cell(metrics: dict[str, float], intervals: Intervals, name: str) -> str:
    """Return a metric with its interval, "85.0 [79.6, 90.4]"; "" if it is unknown."""
    if name not in metrics:
        return ""
    show = number if name.rsplit("/", 1)[-1] in NO_PERCENT else percent
    ends = intervals.get(name)
    return show(metrics[name]) + (f" [{show(ends[0])}, {show(ends[1])}]" if ends else "")


def number(value: float) -> str:
    """Format a value with three significant digits."""
    return f"{value:#.3g}".removesuffix(".")


def metric_tables(
    metrics: dict[str, float], intervals: Intervals, labels: dict[str, LabelDescription], keras: bool = False
) -> list[TextTable]:
    """Return the tables of heads with classes, of all heads together, and of heads that estimate numbers.

    keras: with precision and recall as Keras counts them.
    """
    tables = _class_tables(metrics, intervals, labels, keras, BREAKS)
    if len(labels) > 1:
        rows = [[title, cell(metrics, intervals, name)] for name, title in OF_ALL.items() if name in metrics]
        tables.append(TextTable("All heads together", ["", "all heads"], rows))
    tables += _number_tables(metrics, intervals, labels)
    if tables and intervals:
        tables[-1].notes.append(INTERVALS_NOTE)
    return tables


def brief_tables(
    metrics: dict[str, float], intervals: Intervals, labels: dict[str, LabelDescription], keras: bool,
    notes: Sequence[str],
) -> list[TextTable]:  # fmt: skip
    """Return the tables for the terminal: of the heads, with the metrics of all heads and `notes` in lines below."""
    tables = _class_tables(metrics, intervals, labels, keras) + _number_tables(metrics, intervals, labels)
    joint = [f"{title}: {cell(metrics, intervals, name)}" for name, title in JOINT.items() if name in metrics]
    if tables:
        below = [f"In %, {'; '.join(joint)}."] if joint and len(labels) > 1 else []
        tables[-1].notes.extend([*below, *notes, *([INTERVALS_NOTE] if intervals else [])])
    return tables


def _class_tables(
    metrics: dict[str, float], intervals: Intervals, labels: dict[str, LabelDescription], keras: bool,
    breaks: Sequence[str] = (),
) -> list[TextTable]:  # fmt: skip
    """Return the tables of heads with classes."""
    classes = {
        head: len(label["ids"]) for head, label in labels.items() if "ids" in label and f"{head}/top1" in metrics
    }
    rows = [
        [
            title,
            *(cell(metrics, intervals, f"{head}/{name}") if has_rank(name, classes[head]) else "" for head in classes),
        ]
        for name, title in SHOWN.items()
        if keras or not name.endswith("_at50")
    ]
    return _by_head("Metrics", list(classes), rows, breaks)


def _number_tables(
    metrics: dict[str, float], intervals: Intervals, labels: dict[str, LabelDescription]
) -> list[TextTable]:
    """Return the table of heads that estimate numbers, if there are any."""
    rows = [
        [f"{head}, {label['unit']}", *(cell(metrics, intervals, f"{head}/{name}") for name in ("mae", "rmse"))]
        for head, label in labels.items()
        if f"{head}/mae" in metrics
    ]
    return [TextTable("Errors of numbers", ["", "mean", "root mean square"], rows)] if rows else []


def _cells(
    heads: Sequence[str], shown: dict[str, str], metrics: dict[str, float], intervals: Intervals
) -> list[list[str]]:
    """Return a row per metric with a cell per head. shown: {metric: title}."""
    return [[title, *(cell(metrics, intervals, f"{head}/{name}") for head in heads)] for name, title in shown.items()]


def _by_head(
    title: str, heads: Sequence[str], rows: list[list[str]], breaks: Sequence[str] = (), note: str = ""
) -> list[TextTable]:
    """Return tables of these rows, a title and a cell per head: several if there are many heads.

    Rows without any text are left out. breaks: titles with a line above them. note: below the last table.
    """
    tables = []
    for first in range(1, len(heads) + 1, MAX_COLUMNS):
        part = slice(first, first + MAX_COLUMNS)
        shown = [[row[0], *row[part]] for row in rows if any(row[part])]
        lines = {index for index, row in enumerate(shown) if row[0] in breaks}
        tables.append(TextTable(title, ["", *heads[first - 1 : first - 1 + MAX_COLUMNS]], shown, breaks=lines))
    if tables and note:
        tables[-1].notes.append(note)
    return tables


def calibration_tables(
    metrics: dict[str, float], intervals: Intervals, temperature: dict[str, float], heads: Sequence[str]
) -> list[TextTable]:
    """Return the calibration with and without the temperature."""
    rows = [["temperature", *(f"{temperature.get(head, 1.0):.3f}" for head in heads)]]
    rows += _cells(heads, CALIBRATION, metrics, intervals)
    return _by_head("Calibration", heads, rows, note=BINS_NOTE)


def coverage_tables(results: dict[str, HeadResult]) -> list[TextTable]:
    """Return the selective accuracy and its confidence thresholds."""
    each = [part.coverage.itertuples() for part in results.values()]
    rows = [
        [f"{100 * at[0].coverage:.0f} % of the photos", *(f"{percent(a.accuracy)} (p {a.threshold:.3f})" for a in at)]
        for at in zip(*each, strict=True)
    ]
    rows.append([AREA, *(f"{part.aurc:.4f}" for part in results.values())])
    return _by_head("Accuracy on the most confident photos", list(results), rows, (AREA,), COVERAGE_NOTE)


def decoding_table(decodings: dict[str, dict[str, float]], used: str) -> TextTable:
    """Return one row per decoding rule: each head right, all right, parents and children consistent."""
    names = list(dict.fromkeys(name for values in decodings.values() for name in values))
    rows = [
        [rule + (" (used)" if rule == used else ""), *(cell(values, {}, name) for name in names)]
        for rule, values in decodings.items()
    ]
    header = ["model.decoding", *(f"{JOINT.get(name, name.rsplit('/', 1)[0])} %" for name in names)]
    return TextTable("Decoding rules", header, rows)


def pairs_table(head: str, pairs: pd.DataFrame, names: Sequence[str], note: str) -> TextTable:
    """Return the first of `confused_pairs` as a table."""
    counts = pairs[["a", "b", "a_as_b", "b_as_a"]].iloc[:NUM_PAIRS].to_numpy().tolist()
    rows = [[names[a], names[b], f"{a_as_b:,}", f"{b_as_a:,}"] for a, b, a_as_b, b_as_a in counts]
    header = ["A", "B", "A taken for B", "B taken for A"]
    return TextTable(f"Most confused pairs of {head}", header, rows, notes=[note])
