"""Metrics of an evaluation from the logits of all photos: those of training's metrics.json, per class, and exact areas
under the ROC curve.
"""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from carvision.config.schema import check_values
from carvision.errors import InputError
from carvision.evaluation.predict import Predictions
from carvision.inference.model_file import parents_of
from carvision.losses.classification import create_loss, smooth_l1
from carvision.metrics import EpochMetrics
from carvision.metrics.auc import KERAS_THRESHOLDS, log_odds
from carvision.metrics.heads import num_ahead

# Areas under the ROC curve without histograms, and each photo's contribution to them, which makes resampling cheap.
#
# The area of a class is the fraction of pairs (a photo of the class, one of another class) in which the former scores
# higher. It is therefore a mean over photos in two ways, DeLong's structural components: V10 of a photo of the class
# is the fraction of the others that score lower, V01 of another photo the fraction of the class' photos that score
# higher; ties count one half. With weights w of the photos the area is, to first order (Hajek's projection of a two-
# sample U-statistic), sum w V10 / sum w + sum w V01 / sum w - area, summed over the class' photos and over the others
# (DeLong, DeLong and Clarke-Pearson 1988; van der Vaart 1998, section 12.2).

BLOCK = 1 << 22  # scores processed at a time


def scores_of(logits: Tensor) -> Tensor:
    """Return log p / (1 - p), float32 (N, C), which stays distinct for p near 1; NaN ranks below all others."""
    return log_odds(logits).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def class_aucs(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the area of each class against the rest, float64 (C,); NaN if the class or its rest has no photo.

    scores (N, C); targets int64 (N,), all known.
    """
    areas = torch.full((scores.shape[1],), torch.nan, dtype=torch.float64)
    for code in range(scores.shape[1]):
        own = torch.nonzero(targets == code)[:, 0]
        if 0 < len(own) < len(targets):
            areas[code] = _placement_values(scores[:, code].contiguous(), own)[0].mean()
    return areas


def resampled_aucs(scores: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the areas of all classes under each of R weightings, float64 (R, C); weights float32 (R, N).

    NaN if a class or its rest has no photo.
    """
    num_classes = scores.shape[1]
    areas = torch.full((len(weights), num_classes), torch.nan, dtype=torch.float64)
    of_class = [torch.nonzero(targets == code)[:, 0] for code in range(num_classes)]
    step = max(1, BLOCK // max(1, len(scores)))
    total = weights.sum(dim=1).double()
    for first in range(0, num_classes, step):
        codes = range(first, min(first + step, num_classes))
        columns = scores[:, first : first + step].t().contiguous()
        above = torch.zeros(columns.shape)  # V01
        for row, code in enumerate(codes):
            own = of_class[code]
            if 0 < len(own) < len(targets):
                below, above[row] = _placement_values(columns[row], own)
                weight = weights[:, own].double()
                areas[:, code] = weight @ below / weight.sum(dim=1)
        from_others = (weights @ above.t()).double()
        for row, code in enumerate(codes):
            own = of_class[code]
            if 0 < len(own) < len(targets):
                others = total - weights[:, own].sum(dim=1).double()
                whole = above[row].double().sum() / (len(targets) - len(own))
                areas[:, code] = (areas[:, code] + from_others[:, row] / others - whole).clamp(0, 1)
    return areas


def _placement_values(scores: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Return V10 of the class' photos `own`, float64 (n,), and V01 of all photos, float32 (N,), 0 for `own`."""
    class_scores = scores[own]
    all_sorted, class_sorted = scores.sort().values, class_scores.sort().values
    num_others = len(scores) - len(own)
    below = (_rank(all_sorted, class_scores) - _rank(class_sorted, class_scores)) / num_others
    above = 1 - _rank(class_sorted, scores) / len(own)
    above[own] = 0
    return below, above.float()


def _rank(ordered: Tensor, scores: Tensor) -> Tensor:
    """Return, as float64, how many of the ordered scores are lower; an equal one counts as half."""
    return (torch.searchsorted(ordered, scores) + torch.searchsorted(ordered, scores, right=True)).double() / 2


def resampled_micro_auc(scores: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the micro-averaged area under each weighting, float64 (R,).

    It pools all pairs of a photo and a class: each photo's own class is a positive, every other class a negative. NaN
    with a single class.
    """
    num_photos, num_classes = scores.shape
    if num_classes < 2:
        return torch.full((len(weights),), torch.nan, dtype=torch.float64)
    own_scores = scores.gather(1, targets[:, None])[:, 0]
    ordered, order = own_scores.sort()
    lower, not_higher = torch.zeros(2, num_photos + 1, dtype=torch.int64)
    above = torch.zeros(num_photos, dtype=torch.float64)
    step = max(1, BLOCK // num_classes)
    for first in range(0, num_photos, step):
        rows = slice(first, first + step)
        others = scores[rows].flatten()[_is_other(targets[rows], num_classes)]
        fewer = torch.searchsorted(ordered, others)  # positives that are lower
        as_many = torch.searchsorted(ordered, others, right=True)  # positives that are not higher
        not_higher += torch.bincount(fewer, minlength=num_photos + 1)
        lower += torch.bincount(as_many, minlength=num_photos + 1)
        ranks = (fewer + as_many).view(-1, num_classes - 1).double()
        above[rows] = 1 - ranks.mean(dim=1) / (2 * num_photos)
    below = torch.zeros(num_photos, dtype=torch.float64)
    # a negative is lower than the k-th positive (from 0) if at most k positives are not higher than it
    below[order] = (lower + not_higher).cumsum(0)[:-1].double() / (2 * num_photos * (num_classes - 1))
    mean = weights.double() @ (below + above) / weights.sum(dim=1).double()
    return (mean - above.mean()).clamp(0, 1)


def _is_other(targets: Tensor, num_classes: int) -> Tensor:
    """Return bool (photos * classes,): the pairs of a photo and a class that is not its own."""
    return (targets[:, None] != torch.arange(num_classes)).flatten()


def resampled_keras_auc(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the micro area as Keras' AUC() estimates it from 200 thresholds, for each weighting, float64 (R,)."""
    num_photos, num_classes = logits.shape
    if num_classes < 2:
        return torch.full((len(weights),), torch.nan, dtype=torch.float64)
    thresholds = torch.arange(1, KERAS_THRESHOLDS - 1) / (KERAS_THRESHOLDS - 1)
    size = len(thresholds) + 1
    positives, negatives = (torch.zeros(num_photos, size) for _ in range(2))
    step = max(1, BLOCK // num_classes)
    for first in range(0, num_photos, step):
        rows = slice(first, first + step)
        bins = torch.searchsorted(thresholds, logits[rows].float().softmax(dim=1))  # number of thresholds below
        own = bins.gather(1, targets[rows, None])
        positives[rows] = positives[rows].scatter_add(1, own, torch.ones(own.shape))
        negatives[rows] = negatives[rows].scatter_add(1, bins, torch.ones(bins.shape)) - positives[rows]
    rates = []
    for counts in (positives, negatives):
        found = (weights @ counts).double()
        above = found.flip(1).cumsum(1).flip(1) / found.sum(dim=1, keepdim=True)  # the first value is 1
        rates.append(np.pad(above.numpy(), ((0, 0), (0, 1))))  # nothing lies above a threshold of 1
    return torch.from_numpy(-np.trapezoid(*rates, axis=1))


# The metrics of training's metrics.json, computed from the logits of all photos.

CHUNK = 4096  # photos at a time, as metrics need several times the memory of the logits


def evaluation_loss(about: dict, averages: bool) -> dict:
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


def _create(loss: dict):
    return create_loss(**{key: value for key, value in loss.items() if key not in ("class_weights", "head_weights")})


def photo_losses(predictions: Predictions, labels: dict[str, dict], loss: dict) -> dict[str, Tensor]:
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


def head_weights_of(labels: dict[str, dict], loss: dict) -> dict[str, float]:
    """Return each head's weight in the summed loss; learned weights apply in training only, here each is 1."""
    weights = loss.get("head_weights") or {}
    return dict.fromkeys(labels, 1.0) | ({} if weights == "learned" else weights)


def compute_metrics(
    predictions: Predictions,
    labels: dict[str, dict],
    losses: dict[str, Tensor],
    head_weights: dict[str, float],
    rule: str,
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return the metrics and those of each decoding rule, as EpochMetrics computes them, with AUC.

    Penalties on weights are not included.
    """
    outputs = {name: len(label["ids"]) if "ids" in label else None for name, label in labels.items()}
    epoch_metrics = EpochMetrics(outputs, head_weights, parents_of(labels), rule, compare_rules=True, with_auc=True)
    num_photos = len(predictions.paths)
    for start in range(0, num_photos, CHUNK):
        part = slice(start, start + CHUNK)
        epoch_metrics.update(
            {name: predictions.logits[name][part] for name in labels},
            {name: predictions.targets[name][part] for name in labels},
            {name: losses[name][part] for name in labels},
            {name: predictions.known(name)[part].float() for name in labels},
            predictions.valid[part],
            torch.zeros(()),
        )
    metrics = epoch_metrics.compute()
    metrics.pop("loss_total", None)
    return metrics, epoch_metrics.compute_rules() if len(epoch_metrics.rules) > 1 else {}


# Per-class results: how well each class is recognised, and which classes are confused.


def parent_names(head: str, labels: dict[str, dict]) -> list[str]:
    """Return the parent's class name for each class of the head; "" without a parent."""
    label = labels[head]
    if label.get("parent") not in labels:
        return [""] * len(label["ids"])
    names = labels[label["parent"]]["names"]
    return [names[code] for code in label["parent_codes"]]


def class_order(head: str, labels: dict[str, dict]) -> np.ndarray:
    """Return the classes ordered by parent name, then by their own, int64 (C,), so that parents form blocks."""
    parents, names, ids = parent_names(head, labels), labels[head]["names"], labels[head]["ids"]
    codes = labels[head]["parent_codes"] if any(parents) else [0] * len(names)  # two parents may share a name
    keys = [(parents[i].casefold(), codes[i], names[i].casefold(), ids[i]) for i in range(len(names))]
    return np.array(sorted(range(len(names)), key=keys.__getitem__), dtype=np.int64)


def class_table(predictions: Predictions, head: str, labels: dict[str, dict], predicted: torch.Tensor) -> pd.DataFrame:
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

    def count(classes: torch.Tensor, weights: torch.Tensor | None = None) -> np.ndarray:
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
                "auc": class_aucs(scores_of(logits), targets).numpy(),
            }
        )  # fmt: skip
    cells = confusions(targets.numpy(), predicted.numpy())
    wrong = cells[cells["true"] != cells["predicted"]]
    most = wrong.sort_values("photos", ascending=False, kind="stable").groupby("true").first()
    taken = most.reindex(range(num_classes), fill_value=-1)["predicted"].to_numpy()
    table["taken_for_id"] = [ids[code] if code >= 0 else "" for code in taken]
    table["taken_for"] = [names[code] if code >= 0 else "" for code in taken]
    table["taken_for_photos"] = most["photos"].reindex(range(num_classes), fill_value=0).to_numpy()
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
