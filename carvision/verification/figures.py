"""How well scores tell pairs of the same class from others: thresholds, the ROC and figures of it.

Scores are float (M,), higher for pairs that are rather the same; same is bool (M,), with pairs of either kind. A pair
is accepted, taken for the same, where its score is at least the threshold.
"""

from dataclasses import dataclass

import numpy as np

FAR_LEVELS = (1e-2, 1e-3)


@dataclass(frozen=True)
class Roc:
    """far, tar: float64 (K,), the shares of different and of same pairs that are accepted, as the threshold falls.

    From (0, 0) to (1, 1), a point for each different score. num_negatives: how many different pairs far is of.
    """

    far: np.ndarray
    tar: np.ndarray
    num_negatives: int


def roc(scores: np.ndarray, same: np.ndarray) -> Roc:
    _, accepted_same, accepted_different = _accepted(scores, same)
    return Roc(accepted_different / accepted_different[-1], accepted_same / accepted_same[-1], accepted_different[-1])


def _accepted(scores: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different scores, falling (K,), and how many same and different pairs reach each; before these 0 (K + 1,)."""
    order = np.argsort(-scores, kind="stable")
    falling = scores[order].astype(np.float64)
    last = np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(falling) - 1)  # of those with equal scores
    num_same = np.cumsum(same[order])[last]
    return falling[last], np.append(0, num_same), np.append(0, last + 1 - num_same)


def best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    """The threshold at which most pairs are told rightly: the middle between the two scores that it parts.

    Of several that are equally good, the highest. Where it is best to accept all, the least score; none, just above
    the greatest.
    """
    falling, num_same, num_different = _accepted(scores, same)
    right = num_same + num_different[-1] - num_different
    num_accepted = int(right.argmax())  # so many of the different scores are accepted
    if num_accepted == 0:
        return float(np.nextafter(falling[0], np.inf))
    lowest = falling[num_accepted - 1]
    if num_accepted == len(falling):
        return float(lowest)
    middle = (lowest + falling[num_accepted]) / 2
    return float(middle if middle > falling[num_accepted] else lowest)  # neighbouring numbers have no middle


def accuracy(scores: np.ndarray, same: np.ndarray, threshold: float) -> float:
    # As float64, as the threshold is, or it would be rounded onto a score that it lies next to
    return float(((scores.astype(np.float64) >= threshold) == same).mean())


def roc_auc(curve: Roc) -> float:
    """AUC: the chance that a same pair has a higher score than a different one, ties counted half."""
    return float((np.diff(curve.far) * (curve.tar[1:] + curve.tar[:-1])).sum() / 2)


def equal_error_rate(curve: Roc) -> float:
    """Where as large a share of different pairs is accepted as of same pairs is rejected, between points of the curve
    on a straight line."""
    gap = curve.far - (1 - curve.tar)  # from -1, rising, to 1
    after = int(np.argmax(gap >= 0))
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(curve.far[after - 1] + share * (curve.far[after] - curve.far[after - 1]))


def tar_at_far(curve: Roc, level: float) -> float:
    """The most same pairs that are accepted, as a share, where no more than `level` of the different ones are.

    NaN with fewer than 1 / level different pairs: already one of them is a larger share, and that none was accepted
    does not tell that fewer than `level` of others would be.
    """
    if curve.num_negatives * level < 1 - 1e-9:
        return float("nan")
    return float(curve.tar[curve.far <= level * (1 + 1e-9)][-1])


def pair_metrics(scores: np.ndarray, same: np.ndarray, threshold: float) -> dict[str, float]:
    """accuracy at the threshold, threshold, auc, eer, tar_at_far_<level> of each FAR_LEVELS.

    Pairs of one kind alone, which a list may have, are measured by their accuracy; all others are NaN.
    """
    metrics = {"accuracy": accuracy(scores, same, threshold), "threshold": threshold}
    if same.all() or not same.any():
        return metrics | dict.fromkeys(["auc", "eer", *map(tar_name, FAR_LEVELS)], float("nan"))
    curve = roc(scores, same)
    metrics |= {"auc": roc_auc(curve), "eer": equal_error_rate(curve)}
    return metrics | {tar_name(level): tar_at_far(curve, level) for level in FAR_LEVELS}


def tar_name(level: float) -> str:
    return f"tar_at_far_{level:g}"
