"""The page of a run of several folds: its folds side by side, and labels to check by out-of-fold predictions."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from carvision.data.table import LabelDescription
from carvision.evaluation.predict import ReadingConfig
from carvision.evaluation.report import cell
from carvision.files.atomic import write_csv
from carvision.reports.page import write_template
from carvision.reports.tables import JOINT, TextTable, percent
from carvision.run_report.examples import STRONG, label_photos, wrong_labels
from carvision.run_report.gather import Judged, RunResults

LABEL_ERRORS = "label_errors_{}.csv"


@dataclass(frozen=True)
class Fold:
    """What the page of all folds shows of one: the photos held out for its test, and its metrics on them.

    name: of its data set. labels, main_head: as in RunResults. data: how photos are read.
    """

    name: str
    labels: dict[str, LabelDescription]
    main_head: str | None
    judged: Judged
    data: ReadingConfig
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def fold_of(results: RunResults) -> Fold:
    """Return what is shown of a fold, without its model."""
    judged, measured = results.judged[results.split], results.measured
    return Fold(results.table.name, results.labels, results.main_head, judged, results.chosen.data, measured.values,
                measured.intervals)  # fmt: skip


def write_folds_page(file: Path, folds: Mapping[str, Fold]) -> Path:
    """Write the page of all folds, and label_errors_<head>.csv beside it; return its path.

    folds: {name of its folder: fold}. Every photo is judged by the network of the fold that held it out for its test.
    """
    first = next(iter(folds.values()))
    head, judged = first.main_head, {name: fold.judged for name, fold in folds.items()}
    suspicious, accuracy = pd.DataFrame(), np.array([])
    if head is not None:
        suspicious = wrong_labels(judged, head, first.labels[head]["names"])
        write_label_errors(file.parent, head, suspicious)
        accuracy = np.array([fold.metrics[f"{head}/top1"] for fold in folds.values()])
    write_template(
        file,
        "folds.html",
        title=file.parent.resolve().name,
        about=f"{first.name}, {len(folds)} folds: each network is judged on photos that it was not trained on",
        head=head,
        accuracy=accuracy,
        table=_fold_table(folds),
        pages=[(name, f"{name}/{file.name}") for name in folds],
        suspicious=label_photos(judged, suspicious, first.data),
        num_suspicious=len(suspicious),
        weak=accuracy.mean() if len(accuracy) and accuracy.mean() < STRONG else None,
        label_file=LABEL_ERRORS.format(head),
    )
    return file


def write_label_errors(folder: Path, head: str, suspicious: pd.DataFrame) -> None:
    """Write label_errors_<head>.csv, of wrong_labels; remove it if there are none."""
    file = folder / LABEL_ERRORS.format(head)
    if len(suspicious):
        write_csv(file, suspicious.drop(columns="row"))
    else:
        file.unlink(missing_ok=True)


def _fold_table(folds: Mapping[str, Fold]) -> TextTable:
    """Return a row for each fold: photos, accuracy and errors of its heads with their intervals."""
    first = next(iter(folds.values()))
    shown = {f"{head}/top1": f"{head}, right, %" for head, label in first.labels.items() if "ids" in label}
    shown |= {name: f"{title}, %" for name, title in JOINT.items() if name in first.metrics and len(shown) > 1}
    shown |= {f"{head}/mae": f"{head}, mean error, {label['unit']}"
              for head, label in first.labels.items() if "unit" in label}  # fmt: skip
    rows = [
        [name, f"{len(fold.judged.table):,}", *(cell(fold.metrics, fold.intervals, metric) for metric in shown)]
        for name, fold in folds.items()
    ]
    if len(folds) > 1:
        every = [np.array([fold.metrics.get(metric, np.nan) for fold in folds.values()]) for metric in shown]
        ends = [
            f"{values.mean():.4g} \u00b1 {values.std(ddof=1):.2g}" if metric.endswith("/mae")
            else f"{percent(values.mean())} \u00b1 {percent(values.std(ddof=1))}"
            for metric, values in zip(shown, every, strict=True)
        ]  # fmt: skip
        rows.append(["mean \u00b1 deviation", f"{sum(len(fold.judged.table) for fold in folds.values()):,}", *ends])
    note = "In brackets: 95 % bootstrap intervals over a fold's photos. The deviation is that of the folds."
    header = ["", "photos", *shown.values()]
    return TextTable("Folds", header, rows, breaks={len(folds)}, notes=[note])
