"""Write the tables and plots of each head with classes."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from carvision.evaluation.calibration import reliability
from carvision.evaluation.classes import (
    class_order,
    class_table,
    confused_pairs,
    confusions,
    parent_names,
    share_within_parent,
)
from carvision.evaluation.coverage import area_under_risk, coverage_table
from carvision.evaluation.predictions import Predictions
from carvision.models.decoding import decode
from carvision.portable import parents_of
from carvision.reports.evaluation.confusion import plot_confusion
from carvision.reports.evaluation.curves import plot_reliability
from carvision.reports.evaluation.pairs import plot_pairs
from carvision.whole_files import file_stems, write_csv


@dataclass(frozen=True)
class HeadResult:
    """The results of one head. predicted int64 (N,), for all photos; confidence, right (n,), for those whose label is
    known. within_parent: fraction of the mistakes that name a class of the true parent, NaN if there is none."""

    head: str
    predicted: Tensor
    confidence: np.ndarray
    right: np.ndarray
    cells: pd.DataFrame
    pairs: pd.DataFrame
    coverage: pd.DataFrame
    aurc: float
    mistakes: int
    within_parent: float
    note: str


def head_results(predictions: Predictions, labels: dict[str, dict], rule: str) -> dict[str, HeadResult]:
    """Return the results of the heads with classes of which some photo's class is known. rule: the decoding rule."""
    heads = [head for head, label in labels.items() if "ids" in label]
    predicted = decode({head: predictions.logits[head] for head in heads}, parents_of(labels), rule)
    return {
        head: _head_result(predictions, labels, head, predicted[head])
        for head in heads
        if predictions.known(head).any()
    }


def _head_result(predictions: Predictions, labels: dict[str, dict], head: str, predicted: Tensor) -> HeadResult:
    known = predictions.known(head)
    targets, guess = predictions.targets[head][known], predicted[known]
    confidence = predictions.probs(head)[known].gather(1, guess[:, None])[:, 0].numpy()
    right = (guess == targets).numpy()
    cells = confusions(targets.numpy(), guess.numpy())
    mistakes = int((~right).sum())
    note = f"{len(right):,} photos, {mistakes:,} mistakes ({100 * mistakes / len(right):.1f} %)"
    within, parent = math.nan, labels[head].get("parent")
    if parent in labels:
        within = share_within_parent(cells, labels[head]["parent_codes"])
        note += f"; {100 * within:.1f} % of the mistakes stay within the true {parent}" if mistakes else ""
    return HeadResult(
        head, predicted, confidence, right, cells, confused_pairs(cells), coverage_table(confidence, right),
        area_under_risk(confidence, right), mistakes, within, f"{note}.",
    )  # fmt: skip


def write_head(
    predictions: Predictions, labels: dict[str, dict], part: HeadResult, title: str, crop_to_box: bool, folder: Path
) -> dict[str, Path]:
    """Write the head's files; return {title: picture}.

    Files: per_class_<head>.csv, confusion_<head>.{csv,png}, confused_<head>.{csv,png}, reliability_<head>.png, with the
    head's name as in file_stems.
    """
    head = part.head
    stem = file_stems([name for name, label in labels.items() if "ids" in label])[head]
    names = labels[head]["names"]
    _write_tables(predictions, labels, part, stem, folder)
    files = {kind: folder / f"{kind}_{stem}.png" for kind in ("confusion", "confused", "reliability")}
    order, parents = class_order(head, labels), parent_names(head, labels)
    rank_of = order.argsort()
    ordered = part.cells.assign(true=rank_of[part.cells["true"]], predicted=rank_of[part.cells["predicted"]])
    named = [names[i] for i in order], [parents[i] for i in order]
    plot_confusion(ordered, *named, f"{title}: {head}", part.note, files["confusion"])
    heading = f"{title}: the most confused pairs of {head}"
    plot_pairs(part.pairs, predictions, head, names, part.predicted, heading, crop_to_box, files["confused"])
    known = predictions.known(head)
    targets, temperature = predictions.targets[head][known], predictions.temperature.get(head, 1.0)
    diagrams = {"as it is": reliability(predictions.probs(head, calibrated=False)[known], targets)}
    if temperature != 1:
        diagrams[f"temperature {temperature:.3g}"] = reliability(predictions.probs(head)[known], targets)
    plot_reliability(diagrams, f"{title}: {head}, confidence and accuracy", files["reliability"])
    words = {"confusion": "Confusion matrix", "confused": "Confused pairs", "reliability": "Confidence and accuracy"}
    return {f"{words[kind]}, {head}": file for kind, file in files.items()}


def _write_tables(predictions: Predictions, labels: dict[str, dict], part: HeadResult, stem: str, folder: Path) -> None:
    ids, names = (np.array(labels[part.head][kind], dtype=object) for kind in ("ids", "names"))
    table = class_table(predictions, part.head, labels, part.predicted)
    write_csv(folder / f"per_class_{stem}.csv", table)
    for kind, rows, columns in (("confusion", part.cells, ("true", "predicted")), ("confused", part.pairs, "ab")):
        named = {}
        for column in columns:
            named |= {f"{column}_id": ids[rows[column]], column: names[rows[column]]}
        counts = rows.drop(columns=list(columns))
        write_csv(folder / f"{kind}_{stem}.csv", pd.DataFrame({**named, **counts}))
