"""Score pairs of photos from their embeddings by several methods, and compute the metrics of the scores.

Scores are float (M,), higher for pairs more likely to be of the same class; same is bool (M,), whether they are. A pair
is accepted, that is predicted to be the same, if its score is at least the threshold.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.metrics import auc, roc_curve
from sklearn.svm import LinearSVC

from carvision.embedding.joint_bayes import fit_joint_bayes
from carvision.embedding.pairs import Pairs, VerificationTask
from carvision.embedding.store import Embeddings
from carvision.errors import InputError

log = logging.getLogger(__name__)

# C times the number of training pairs. Larger values, such as scikit-learn's C=1, overfit: accuracy on 5,000 pairs of
# other car models (ImageNet features) was 66 % with 0.5 and 59 % with 50; the cosine's 61 %.
C_OF_ALL = 0.5
FAR_LEVELS = (1e-2, 1e-3)

Score = Callable[[np.ndarray, Pairs], np.ndarray]  # of embeddings (N, D) and M pairs of their rows -> float (M,)


@dataclass(frozen=True)
class ScoredPairs:
    """The scored pairs of one difficulty.

    first, second: paths of both photos, same: whether they show the same class, (M,) each. scores {method: float (M,)}.
    metrics {method: those of pair_metrics}.
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
        path = embeddings.table.rows["path"].iloc[int(np.argmin(np.isfinite(values).all(axis=1)))]
        raise InputError(
            f"{path}: its embedding has values that are not finite; the weights of the network are damaged"
        )
    paths = embeddings.table.rows["path"].to_numpy()
    embedding_rows = pd.Index(paths).get_indexer(pd.Index(task.table.rows["path"]))
    learned = embedding_rows[task.learned & (embedding_rows >= 0)]
    codes = embeddings.table.rows[task.label].to_numpy()[learned]
    rows = np.full(len(values), -1)
    rows[learned] = np.arange(len(learned))
    train = _readable(task.train, embedding_rows, "training").map_rows(rows)
    fits: dict[str, Callable[[], Score]] = {
        "cosine": lambda: cosine,
        "l2": lambda: l2,
        "svm": lambda: fit_linear_svm(values[learned], train).scores,
        "joint_bayes": lambda: fit_joint_bayes(values[learned], codes).scores,
    }
    fitted = {method: fits[method]() for method in methods}
    thresholds = {name: best_threshold(fit(values[learned], train), train.same) for name, fit in fitted.items()}
    scored = {}
    for difficulty, pairs in task.tests.items():
        pairs = _readable(pairs, embedding_rows, difficulty)
        scores = {method: score_pairs(values, pairs) for method, score_pairs in fitted.items()}
        metrics = {method: pair_metrics(scores[method], pairs.same, thresholds[method]) for method in methods}
        scored[difficulty] = ScoredPairs(paths[pairs.first], paths[pairs.second], pairs.same, scores, metrics)
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


def cosine(embeddings: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Return the cosine of the angle between both embeddings, -1 to 1; 0 if one of them is 0."""
    lengths = np.linalg.norm(embeddings, axis=1).clip(min=np.finfo(np.float32).tiny)
    return pairs.dot(embeddings) / lengths[pairs.first] / lengths[pairs.second]


def l2(embeddings: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Return the negative Euclidean distance. For embeddings of length 1 it orders pairs as the cosine does."""
    return pairs.map(lambda a, b: -np.linalg.norm(a - b, axis=1), embeddings)


@dataclass(frozen=True)
class LinearSvm:
    """A linear SVM on the absolute differences of two embeddings: it learns which elements must agree.

    weights: float32 (D,), with the standardisation folded in; bias.
    """

    weights: np.ndarray
    bias: float

    def scores(self, embeddings: np.ndarray, pairs: Pairs) -> np.ndarray:
        """Return the distance from the separating plane in units of its margin, float (M,)."""
        return pairs.map(lambda a, b: np.abs(a - b) @ self.weights, embeddings) + self.bias


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


def best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    """Return the threshold with the highest accuracy: the middle between the two scores it separates.

    Of several equally good ones the highest. If accepting all pairs is best, the lowest score; if accepting none is,
    just above the highest.
    """
    falling = np.append(np.inf, np.unique(scores.astype(np.float64))[::-1])
    same_below, others_below = (np.searchsorted(np.sort(scores[kind]), falling) for kind in (same, ~same))
    best = int((others_below - same_below).argmax())
    if best == 0:
        return float(np.nextafter(falling[1], np.inf))
    if best == len(falling) - 1:
        return float(falling[best])
    middle = (falling[best] + falling[best + 1]) / 2
    return float(middle if middle > falling[best + 1] else falling[best])  # adjacent floats have no middle


def accuracy(scores: np.ndarray, same: np.ndarray, threshold: float) -> float:
    """Return the fraction of pairs that are classified correctly at the threshold."""
    # In float64: rounded to float32, the threshold could coincide with an adjacent score
    return float(((scores.astype(np.float64) >= threshold) == same).mean())


def roc(scores: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ROC curve of pairs of both kinds: false and true accept rate, float64 (K,), from (0, 0) to (1, 1)."""
    far, tar, _ = roc_curve(same, scores, drop_intermediate=False)
    return far, tar


def equal_error_rate(far: np.ndarray, tar: np.ndarray) -> float:
    """Return the rate at which the false accept rate equals the false reject rate, interpolated linearly."""
    gap = far + tar - 1  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(far[after - 1] + share * (far[after] - far[after - 1]))


def tar_at_far(far: np.ndarray, tar: np.ndarray, level: float, num_different: int) -> float:
    """Return the true accept rate at a false accept rate of at most `level`.

    NaN with fewer than 1 / level different pairs: a single accepted one would exceed the level, and none accepted is no
    evidence that the rate is below it.
    """
    if num_different * level < 1 - 1e-9:
        return float("nan")
    return float(tar[far <= level * (1 + 1e-9)][-1])


def pair_metrics(scores: np.ndarray, same: np.ndarray, threshold: float) -> dict[str, float]:
    """Return accuracy at the threshold, threshold, auc, eer, and tar_at_far_<level> for each of FAR_LEVELS.

    If all pairs are of one kind, as a list may have them, all but accuracy and threshold are NaN.
    """
    metrics = {"accuracy": accuracy(scores, same, threshold), "threshold": threshold}
    if same.all() or not same.any():
        return metrics | dict.fromkeys(["auc", "eer", *map(tar_name, FAR_LEVELS)], float("nan"))
    far, tar = roc(scores, same)
    metrics |= {"auc": float(auc(far, tar)), "eer": equal_error_rate(far, tar)}
    return metrics | {tar_name(level): tar_at_far(far, tar, level, int((~same).sum())) for level in FAR_LEVELS}


def tar_name(level: float) -> str:
    """Return the key of a true accept rate among the metrics: "tar_at_far_0.01"."""
    return f"tar_at_far_{level:g}"
