"""Metrics of pair scores: the threshold, the accuracy at it, the ROC curve and its summaries.

Scores are float (M,), higher for pairs more likely to be of the same class; same is bool (M,), whether they are. A pair
is accepted, that is predicted to be the same, if its score is at least the threshold.
"""

from dataclasses import dataclass

import numpy as np

FAR_LEVELS = (1e-2, 1e-3)


@dataclass(frozen=True)
class Roc:
    """An ROC curve, one point per distinct score.

    far, tar: float64 (K,), false and true accept rate as the threshold falls, from (0, 0) to (1, 1). num_negatives:
    number of different pairs.
    """

    far: np.ndarray
    tar: np.ndarray
    num_negatives: int


def roc(scores: np.ndarray, same: np.ndarray) -> Roc:
    """Return the ROC curve of the scores of pairs of both kinds."""
    _, accepted_same, accepted_different = _accepted(scores, same)
    return Roc(accepted_different / accepted_different[-1], accepted_same / accepted_same[-1], accepted_different[-1])


def _accepted(scores: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct scores, descending (K,), and the numbers of same and different pairs that reach each.

    The numbers have a leading 0, (K + 1,).
    """
    order = np.argsort(-scores, kind="stable")
    falling = scores[order].astype(np.float64)
    last = np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(falling) - 1)  # of each group of ties
    num_same = np.cumsum(same[order])[last]
    return falling[last], np.append(0, num_same), np.append(0, last + 1 - num_same)


def best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    """Return the threshold with the highest accuracy: the middle between the two scores it separates.

    Of several equally good ones the highest. If accepting all pairs is best, the lowest score; if accepting none is,
    just above the highest.
    """
    falling, num_same, num_different = _accepted(scores, same)
    right = num_same + num_different[-1] - num_different
    num_accepted = int(right.argmax())  # of the distinct scores
    if num_accepted == 0:
        return float(np.nextafter(falling[0], np.inf))
    lowest = falling[num_accepted - 1]
    if num_accepted == len(falling):
        return float(lowest)
    middle = (lowest + falling[num_accepted]) / 2
    return float(middle if middle > falling[num_accepted] else lowest)  # adjacent floats have no middle


def accuracy(scores: np.ndarray, same: np.ndarray, threshold: float) -> float:
    """Return the fraction of pairs that are classified correctly at the threshold."""
    # In float64: rounded to float32, the threshold could coincide with an adjacent score
    return float(((scores.astype(np.float64) >= threshold) == same).mean())


def roc_auc(curve: Roc) -> float:
    """Return the AUC: the probability that a same pair scores higher than a different one, ties counted half."""
    return float((np.diff(curve.far) * (curve.tar[1:] + curve.tar[:-1])).sum() / 2)


def equal_error_rate(curve: Roc) -> float:
    """Return the rate at which the false accept rate equals the false reject rate, interpolated linearly."""
    gap = curve.far - (1 - curve.tar)  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(curve.far[after - 1] + share * (curve.far[after] - curve.far[after - 1]))


def tar_at_far(curve: Roc, level: float) -> float:
    """Return the true accept rate (same pairs) at a false accept rate (different pairs) of at most `level`.

    NaN with fewer than 1 / level different pairs: a single accepted one would exceed the level, and none accepted is no
    evidence that the rate is below it.
    """
    if curve.num_negatives * level < 1 - 1e-9:
        return float("nan")
    return float(curve.tar[curve.far <= level * (1 + 1e-9)][-1])


def pair_metrics(scores: np.ndarray, same: np.ndarray, threshold: float) -> dict[str, float]:
    """Return accuracy at the threshold, threshold, auc, eer, and tar_at_far_<level> for each of FAR_LEVELS.

    If all pairs are of one kind, as a list may have them, all but accuracy and threshold are NaN.
    """
    metrics = {"accuracy": accuracy(scores, same, threshold), "threshold": threshold}
    if same.all() or not same.any():
        return metrics | dict.fromkeys(["auc", "eer", *map(tar_name, FAR_LEVELS)], float("nan"))
    curve = roc(scores, same)
    metrics |= {"auc": roc_auc(curve), "eer": equal_error_rate(curve)}
    return metrics | {tar_name(level): tar_at_far(curve, level) for level in FAR_LEVELS}


def tar_name(level: float) -> str:
    """Return the key of a true accept rate among the metrics: "tar_at_far_0.01"."""
    return f"tar_at_far_{level:g}"
