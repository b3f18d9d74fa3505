"""Linear SVM on the absolute differences of two embeddings: learns from pairs which elements must agree.

Scoring methods by name, fitted to training photos if they need it.

Metrics of pair scores: thresholds, the ROC curve and its summaries.

Scores are float (M,), higher for pairs more likely to be of the same class; same is bool (M,), with pairs of both
kinds. A pair is accepted, that is predicted to be the same, if its score is at least the threshold.

Score a task's pairs from the embeddings of its photos, and compute their metrics.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.svm import LinearSVC

from carvision.embedding.store import Embeddings
from carvision.errors import InputError
from carvision.verification.joint_bayes import fit_joint_bayes
from carvision.verification.pairs import Pairs, VerificationTask, cosine, l2, score_in_blocks

log = logging.getLogger(__name__)


# C times the number of training pairs. Larger values, such as scikit-learn's C=1, overfit: accuracy on 5,000 pairs of
# other car models (ImageNet features) was 66 % with 0.5 and 59 % with 50; the cosine's 61 %.
C_OF_ALL = 0.5


@dataclass(frozen=True)
class LinearSvm:
    """A fitted SVM. weights: float32 (D,), with the standardisation folded in; bias."""

    weights: np.ndarray
    bias: float

    def scores(self, embeddings: np.ndarray, pairs: Pairs) -> np.ndarray:
        """Return the distance from the separating plane in units of its margin, float (M,)."""
        return score_in_blocks(lambda a, b: np.abs(a - b) @ self.weights, embeddings, pairs) + self.bias


def fit_linear_svm(embeddings: np.ndarray, pairs: Pairs) -> LinearSvm:
    """Fit to the embeddings, float (N, D), and pairs of both kinds; each element of |a - b| is standardised first.

    Memory: several times 8 bytes per pair and element; 10,000 pairs of 1,280 elements take some 400 MB.
    """
    differences = np.abs(embeddings[pairs.first] - embeddings[pairs.second]).astype(np.float64)
    mean, std = differences.mean(axis=0), differences.std(axis=0)
    std[std <= 1e-6 * max(std.max(), np.finfo(float).tiny)] = np.inf  # constant elements carry no information
    differences -= mean
    differences /= std
    # The primal needs no random order and is faster with more pairs than elements
    found = LinearSVC(C=C_OF_ALL / len(pairs), dual=False).fit(differences, pairs.same)
    weights = found.coef_[0] / std
    return LinearSvm(weights.astype(np.float32), float(found.intercept_[0] - weights @ mean))


Score = Callable[[np.ndarray, Pairs], np.ndarray]  # of embeddings (N, D) and M pairs of their rows -> float (M,)


def fit_methods(methods: Sequence[str], embeddings: np.ndarray, codes: np.ndarray, pairs: Pairs) -> dict[str, Score]:
    """Return {method: scoring function}, fitted to the training photos.

    embeddings float (N, D), codes int (N,) of their classes, pairs of their rows.
    """
    return {method: _fit(method, embeddings, codes, pairs) for method in methods}


def _fit(method: str, embeddings: np.ndarray, codes: np.ndarray, pairs: Pairs) -> Score:
    match method:
        case "cosine":
            return cosine
        case "l2":
            return l2
        case "svm":
            return fit_linear_svm(embeddings, pairs).scores
        case "joint_bayes":
            return fit_joint_bayes(embeddings, codes).scores
    raise ValueError(method)


FAR_LEVELS = (1e-2, 1e-3)


@dataclass(frozen=True)
class Roc:
    """An ROC curve. far, tar: float64 (K,), false and true accept rate as the threshold falls, from (0, 0) to (1, 1),
    one point per distinct score. num_negatives: number of different pairs."""

    far: np.ndarray
    tar: np.ndarray
    num_negatives: int


def roc(scores: np.ndarray, same: np.ndarray) -> Roc:
    """Return the ROC curve of the scores."""
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
    # In float64: rounded to float32, the threshold could coincide with an adjacent score
    """Return the fraction of pairs that are classified correctly at the threshold."""
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
    return f"tar_at_far_{level:g}"


@dataclass(frozen=True)
class ScoredPairs:
    """The pairs of one difficulty.

    first, second, same: paths of both photos and truth, (M,) each. scores {method: float (M,)}; metrics {method: result
    of figures.pair_metrics}.
    """

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    scores: dict[str, np.ndarray]
    metrics: dict[str, dict[str, float]]


def score(
    task: VerificationTask, embeddings: Embeddings, methods: list[str]
) -> tuple[dict[str, ScoredPairs], dict[str, int]]:
    """Return {difficulty: scored pairs}, and the numbers of photos, classes and pairs that the methods learned from.

    embeddings: of the task's photos; unreadable ones are missing. Raises InputError for values that are not finite.
    """
    values = np.asarray(embeddings.values)
    if not np.isfinite(values).all():
        path = embeddings.table.rows["path"][~np.isfinite(values).all(axis=1)].iloc[0]
        raise InputError(
            f"{path}: its embedding has values that are not finite; the weights of the network are damaged"
        )
    paths = embeddings.table.rows["path"]
    embedding_rows = pd.Index(paths).get_indexer(task.table.rows["path"])
    learned = embedding_rows[task.learned & (embedding_rows >= 0)]
    codes = embeddings.table.rows[task.label].to_numpy()[learned]
    rows = np.full(len(values), -1)
    rows[learned] = np.arange(len(learned))
    train = _readable(task.train, embedding_rows, "training").map_rows(rows)
    fitted = fit_methods(methods, values[learned], codes, train)
    thresholds = {
        method: best_threshold(score_pairs(values[learned], train), train.same)
        for method, score_pairs in fitted.items()
    }
    scored = {}
    for difficulty, pairs in task.tests.items():
        pairs = _readable(pairs, embedding_rows, difficulty)
        scores = {method: score_pairs(values, pairs) for method, score_pairs in fitted.items()}
        metrics = {method: pair_metrics(scores[method], pairs.same, thresholds[method]) for method in methods}
        ends = (paths.to_numpy()[pairs.first], paths.to_numpy()[pairs.second])
        scored[difficulty] = ScoredPairs(*ends, pairs.same, scores, metrics)
    counts = {"photos": len(learned), "classes": len(np.unique(codes)), "pairs": len(train)}
    return scored, counts


def _readable(pairs: Pairs, embedding_rows: np.ndarray, what: str) -> Pairs:
    """Map pairs of table rows to embedding rows (-1: unreadable), and leave out pairs with an unreadable photo."""
    found = pairs.map_rows(embedding_rows)
    readable = (found.first >= 0) & (found.second >= 0)
    if not readable.all():
        log.warning("%s of %s %s pairs are left out, as one of their photos can't be read",
                    f"{(~readable).sum():,}", f"{len(readable):,}", what)  # fmt: skip
    if not readable.any():
        raise InputError(f"no {what} pair is left: each of {len(readable):,} has a photo that can't be read")
    return found.select(readable)
