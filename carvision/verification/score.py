"""Score pairs of photos from their embeddings by several methods, and compute the metrics of the scores."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.svm import LinearSVC

from carvision.embedding.store import Embeddings
from carvision.errors import InputError
from carvision.verification.joint_bayes import fit_joint_bayes
from carvision.verification.metrics import best_threshold, pair_metrics
from carvision.verification.pairs import Pairs, VerificationTask

log = logging.getLogger(__name__)

# C times the number of training pairs. Larger values, such as scikit-learn's C=1, overfit: accuracy on 5,000 pairs of
# other car models (ImageNet features) was 66 % with 0.5 and 59 % with 50; the cosine's 61 %.
C_OF_ALL = 0.5

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
