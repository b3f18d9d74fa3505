"""The loss of an evaluation, the results of each head and class, and which classes are confused."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from carvision.config.schema import check_values
from carvision.data.table import LabelDescription
from carvision.errors import InputError
from carvision.evaluation.auc import areas_of_classes, scores_of
from carvision.evaluation.calibration import answers_of, area_under_risk, coverage_table
from carvision.evaluation.predict import Predictions
from carvision.inference.description import ModelDescription
from carvision.losses.classification import create_loss, smooth_l1
from carvision.metrics.heads import num_ahead

CHUNK = 4096  # photos at a time, as losses and rows need several times the memory of the logits


@dataclass(frozen=True)
class HeadResult:
    """The results of one head with classes, over its N photos.

    predicted: int64 (N,), of all photos. confidence, right: (n,), of those whose class is known. cells, pairs,
    coverage: from confusions, confused_pairs and coverage_table. aurc: area under the risk-coverage curve.
    within_parent: fraction of the mistakes that name a class of the true parent, NaN without a parent or mistakes.
    note: a line below the confusion matrix.
    """

    predicted: Tensor
    confidence: np.ndarray
    right: np.ndarray
    cells: pd.DataFrame
    pairs: pd.DataFrame
    coverage: pd.DataFrame
    aurc: float
    within_parent: float
    note: str


def evaluation_loss(about: ModelDescription, averages: bool) -> dict:
    """Return the run's own loss, the keys of conf/loss; cross-entropy if the model does not record it.

    Averaged probabilities are measured by cross-entropy, too, as a sigmoid loss would apply to logits that no network
    gave. Raises InputError for an unknown loss.
    """
    loss = about.get("config", {}).get("loss")
    if averages or not loss:
        return {"name": "cross_entropy"}
    check_values({"loss": loss})
    try:
        _create(loss)
    except (KeyError, TypeError) as error:
        raise InputError(f"model.json: its loss can't be built ({error}); it was changed by hand") from None
    return loss


def _create(loss: dict) -> Callable[[Tensor, Tensor], Tensor]:
    return create_loss(**{key: value for key, value in loss.items() if key not in ("class_weights", "head_weights")})


def photo_losses(predictions: Predictions, labels: dict[str, LabelDescription], loss: dict) -> dict[str, Tensor]:
    """Return the loss of each photo, {head: float (N,)}; 0 if the label is unknown."""
    class_loss = _create(loss)
    losses = {}
    for name, label in labels.items():
        logits, targets = predictions.logits[name], predictions.targets[name]
        parts = zip(logits.split(CHUNK), targets.split(CHUNK), strict=True)
        losses[name] = torch.cat(
            [class_loss(*part) if "ids" in label else smooth_l1(*part, label["std"]) for part in parts]
        )
    return losses


def head_weights_of(labels: dict[str, LabelDescription], loss: dict) -> dict[str, float]:
    """Return each head's weight in the summed loss; learned weights apply in training only, here each is 1."""
    weights = loss.get("head_weights") or {}
    return dict.fromkeys(labels, 1.0) | ({} if weights == "learned" else weights)


def parent_names(head: str, labels: dict[str, LabelDescription]) -> list[str]:
    """Return the parent's class name for each class of the head; "" without a parent."""
    label = labels[head]
    if label.get("parent") not in labels:
        return [""] * len(label["ids"])
    names = labels[label["parent"]]["names"]
    return [names[code] for code in label["parent_codes"]]


def class_order(head: str, labels: dict[str, LabelDescription]) -> np.ndarray:
    """Return the classes ordered by parent name, then by their own, int64 (C,), so that parents form blocks."""
    parents, names, ids = parent_names(head, labels), labels[head]["names"], labels[head]["ids"]
    codes = labels[head]["parent_codes"] if any(parents) else [0] * len(names)  # two parents may share a name
    keys = [(parents[i].casefold(), codes[i], names[i].casefold(), ids[i]) for i in range(len(names))]
    return np.array(sorted(range(len(names)), key=keys.__getitem__), dtype=np.int64)


def class_table(
    predictions: Predictions, head: str, labels: dict[str, LabelDescription], predicted: Tensor
) -> pd.DataFrame:
    """Return one row per class, ordered by parent and name.

    Columns: id, name, parent, photos, predicted, right, recall (the accuracy on its photos), precision, f1, top5,
    confidence (mean probability of the predicted class of its photos), auc (against the rest), taken_for_id, taken_for,
    taken_for_photos (the wrong class predicted most often for it).

    predicted int64 (N,). Undefined values, such as the recall of a class without photos, are NaN, "" for a class.
    """
    known = predictions.known(head)
    logits, targets, predicted = predictions.logits[head][known], predictions.targets[head][known], predicted[known]
    num_classes, names, ids = logits.shape[1], labels[head]["names"], labels[head]["ids"]
    confidence = predictions.probs(head)[known].gather(1, predicted[:, None])[:, 0]
    in_top5 = num_ahead(logits, targets) < min(5, num_classes)

    def count(classes: Tensor, weights: Tensor | None = None) -> np.ndarray:
        weights = None if weights is None else weights.double()
        return torch.bincount(classes, weights, num_classes).double().numpy()

    photos, guessed, right = count(targets), count(predicted), count(targets, predicted == targets)
    with np.errstate(invalid="ignore"):
        table = pd.DataFrame(
            {
                "id": ids, "name": names, "parent": parent_names(head, labels),
                "photos": photos.astype(int), "predicted": guessed.astype(int), "right": right.astype(int),
                "recall": right / photos, "precision": right / guessed, "f1": 2 * right / (photos + guessed),
                "top5": count(targets, in_top5) / photos, "confidence": count(targets, confidence) / photos,
                "auc": areas_of_classes(scores_of(logits), targets, torch.ones(1, len(targets)))[0].numpy(),
            }
        )  # fmt: skip
    cells = confusions(targets.numpy(), predicted.numpy())
    wrong = cells[cells["true"] != cells["predicted"]]
    most = wrong.sort_values("photos", ascending=False, kind="stable").groupby("true").first()
    most = most.reindex(range(num_classes), fill_value=-1)
    table["taken_for_id"] = [ids[code] if code >= 0 else "" for code in most["predicted"]]
    table["taken_for"] = [names[code] if code >= 0 else "" for code in most["predicted"]]
    table["taken_for_photos"] = most["photos"].clip(lower=0)
    return table.iloc[class_order(head, labels)].reset_index(drop=True)


def confusions(targets: np.ndarray, predicted: np.ndarray) -> pd.DataFrame:
    """Return the non-empty cells of the confusion matrix: true, predicted (codes), photos; ordered by code."""
    cells, photos = np.unique(np.stack([targets, predicted], axis=1), axis=0, return_counts=True)
    return pd.DataFrame({"true": cells[:, 0], "predicted": cells[:, 1], "photos": photos})


def share_within_parent(cells: pd.DataFrame, parent_codes: list[int]) -> float:
    """Return the fraction of the mistakes whose predicted class has the true class' parent; NaN without mistakes."""
    wrong = cells[cells["true"] != cells["predicted"]]
    codes = np.asarray(parent_codes)
    same = codes[wrong["true"]] == codes[wrong["predicted"]]
    return float(wrong["photos"][same].sum() / wrong["photos"].sum()) if len(wrong) else float("nan")


def confused_pairs(cells: pd.DataFrame) -> pd.DataFrame:
    """Return pairs of classes confused with each other, those with most photos first.

    Columns: a, b (codes), a_as_b, b_as_a, photos. a is the class that is mistaken more often; photos is the sum of both
    directions.
    """
    wrong = cells[cells["true"] != cells["predicted"]]
    both = {(true, guess): photos for true, guess, photos in wrong.itertuples(index=False)}
    rows = []
    for (a, b), photos in both.items():
        back = both.get((b, a), 0)
        if photos > back or (photos == back and a < b):
            rows.append((a, b, photos, back, photos + back))
    table = pd.DataFrame(rows, columns=["a", "b", "a_as_b", "b_as_a", "photos"])
    return table.sort_values(["photos", "a_as_b"], ascending=False, kind="stable").reset_index(drop=True)


def head_results(predictions: Predictions, labels: dict[str, LabelDescription], rule: str) -> dict[str, HeadResult]:
    """Return the results of the heads with classes of which some photo's class is known. rule: the decoding rule."""
    results = {}
    for head, (predicted, confidence, right) in answers_of(predictions, labels, rule).items():
        known, parent = predictions.known(head), labels[head].get("parent")
        cells = confusions(predictions.targets[head][known].numpy(), predicted[known].numpy())
        mistakes, within = int((~right).sum()), math.nan
        note = f"{len(right):,} photos, {mistakes:,} mistakes ({100 * mistakes / len(right):.1f} %)"
        if parent in labels:
            within = share_within_parent(cells, labels[head]["parent_codes"])
            note += f"; {100 * within:.1f} % of the mistakes stay within the true {parent}" if mistakes else ""
        coverage, aurc = coverage_table(confidence, right), area_under_risk(confidence, right)
        results[head] = HeadResult(
            predicted, confidence, right, cells, confused_pairs(cells), coverage, aurc, within, f"{note}."
        )
    return results
