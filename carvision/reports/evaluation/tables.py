"""Tables of an evaluation, for the terminal, Markdown and HTML."""

from collections.abc import Sequence

import pandas as pd

from carvision.reports.comparison.sheets import TextTable

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
OF_ALL = {"joint/top1": "all heads right %", "joint/consistent": "fit together %", "loss": "loss"}
BREAKS = ("precision", "precision_at50", "loss")  # rows with a line above them
NO_PERCENT = ("loss", "nll", "nll_calibrated")
INTERVALS_NOTE = "In brackets: 95 % bootstrap intervals, from resampling the evaluated photos."
BINS_NOTE = (
    "Calibration error: mean distance of confidence and accuracy in 15 bins. Samples have a larger one than the whole, "
    "so its interval reaches further up than down."
)


def cell(metrics: dict[str, float], intervals: Intervals, name: str) -> str:
    """Return a metric with its interval, "85.0 [79.6, 90.4]"; "" if it is unknown."""
    if name not in metrics:
        return ""
    show = number if name.rsplit("/", 1)[-1] in NO_PERCENT else percent
    ends = intervals.get(name)
    return show(metrics[name]) + (f" [{show(ends[0])}, {show(ends[1])}]" if ends else "")


def percent(value: float) -> str:
    return f"{100 * value:.1f}".replace("100.0", "100")


def number(value: float) -> str:
    """Format with three significant digits."""
    return f"{value:#.3g}".removesuffix(".")


def metric_tables(metrics: dict[str, float], intervals: Intervals, labels: dict[str, dict]) -> list[TextTable]:
    """Return the tables of heads with classes, of all heads together, and of numbers."""
    heads = [head for head, label in labels.items() if "ids" in label and f"{head}/top1" in metrics]
    tables = _by_head("Metrics", heads, SHOWN, metrics, intervals)
    if len(labels) > 1:
        rows = [[words, cell(metrics, intervals, name)] for name, words in OF_ALL.items() if name in metrics]
        tables.append(_table("All heads together", ["", "all heads"], rows))
    rows = []
    for head, label in labels.items():
        if f"{head}/mae" in metrics:
            errors = [_error(metrics, intervals, f"{head}/{name}") for name in ("mae", "rmse")]
            rows.append([f"{head}, {label['unit']}", *errors])
    if rows:
        tables.append(_table("Errors of numbers", ["", "mean", "root mean square"], rows))
    if tables and intervals:
        tables[-1].notes.append(INTERVALS_NOTE)
    return tables


def _error(metrics: dict[str, float], intervals: Intervals, name: str) -> str:
    ends = intervals.get(name)
    return number(metrics[name]) + (f" [{number(ends[0])}, {number(ends[1])}]" if ends else "")


def _by_head(title: str, heads: Sequence[str], shown: dict[str, str], metrics: dict, intervals: Intervals):
    """Return tables with one row per metric and one column per head; several if there are many heads."""
    tables = []
    for first in range(0, len(heads), MAX_COLUMNS):
        group, rows, breaks = heads[first : first + MAX_COLUMNS], [], set()
        for name, words in shown.items():
            texts = [cell(metrics, intervals, f"{head}/{name}") for head in group]
            if any(texts):
                breaks |= {len(rows)} if name in BREAKS else set()
                rows.append([words, *texts])
        tables.append(_table(title, ["", *group], rows, breaks))
    return tables


def calibration_tables(
    metrics: dict[str, float], intervals: Intervals, temperature: dict[str, float], heads: Sequence[str]
) -> list[TextTable]:
    """Return the calibration with and without the temperature."""
    tables = _by_head("Calibration", heads, CALIBRATION, metrics, intervals)
    for table in tables:
        row = ["temperature", *(f"{temperature.get(head, 1.0):.3f}" for head in table.header[1:])]
        table.rows.insert(0, row)
        table.marks.insert(0, [""] * len(row))
    if tables:
        tables[-1].notes.append(BINS_NOTE)
    return tables


def coverage_tables(coverage: dict[str, pd.DataFrame], areas: dict[str, float]) -> list[TextTable]:
    """Return the selective accuracy and its confidence thresholds. coverage {head: coverage_table}."""
    tables = []
    heads = list(coverage)
    for first in range(0, len(heads), MAX_COLUMNS):
        group = heads[first : first + MAX_COLUMNS]
        rows = [
            [f"{100 * share:.0f} % of the photos", *(_at(coverage[head].iloc[index]) for head in group)]
            for index, share in enumerate(coverage[group[0]]["coverage"])
        ]
        rows.append(["area under the risk-coverage curve", *(f"{areas[head]:.4f}" for head in group)])
        tables.append(_table("Accuracy on the most confident photos", ["", *group], rows, {len(rows) - 1}))
    if tables:
        tables[-1].notes.append("Accuracy in %, and the lowest probability of the predicted class among these photos.")
    return tables


def _at(row: pd.Series) -> str:
    return f"{percent(row['accuracy'])} (p {row['threshold']:.3f})"


def decoding_table(decodings: dict[str, dict[str, float]], used: str) -> TextTable:
    """Return one row per decoding rule: each head right, all right, parents and children consistent."""
    words = {"joint/top1": "all right %", "joint/consistent": "fit together %"}
    names = list(dict.fromkeys(name for values in decodings.values() for name in values))
    rows = [
        [rule + (" (used)" if rule == used else ""), *(cell(values, {}, name) for name in names)]
        for rule, values in decodings.items()
    ]
    header = ["model.decoding", *(words.get(name, f"{name.rsplit('/', 1)[0]} %") for name in names)]
    return _table("Decoding rules", header, rows)


def pairs_table(head: str, pairs: pd.DataFrame, names: Sequence[str], note: str, num: int = 8) -> TextTable:
    """Return the first of `confused_pairs` as a table."""
    rows = [
        [names[pair.a], names[pair.b], f"{pair.a_as_b:,}", f"{pair.b_as_a:,}"] for pair in pairs.iloc[:num].itertuples()
    ]
    header = ["A", "B", "A taken for B", "B taken for A"]
    return _table(f"Most confused pairs of {head}", header, rows, notes=[note])


def _table(
    title: str, header: list[str], rows: list[list[str]], breaks: set[int] | None = None, notes: Sequence[str] = ()
) -> TextTable:
    return TextTable(title, header, rows, [[""] * len(row) for row in rows], breaks or set(), list(notes))
