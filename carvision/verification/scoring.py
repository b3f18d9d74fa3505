"""Score a task's pairs from the embeddings of its photos, and compute their metrics."""

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd

from carvision.embedding.files import Embeddings
from carvision.errors import InputError
from carvision.verification.figures import best_threshold, pair_metrics
from carvision.verification.methods import fit_methods
from carvision.verification.pairs import Pairs
from carvision.verification.task import VerificationTask

log = logging.getLogger(__name__)


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
