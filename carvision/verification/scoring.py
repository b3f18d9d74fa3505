"""From the embeddings of a task's photos to the scores of its pairs, and their figures."""

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
    """The pairs of a difficulty: paths of both photos and same, (M,) each; scores {method: float (M,)}; figures
    {method: those of figures.measure}."""

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    scores: dict[str, np.ndarray]
    metrics: dict[str, dict[str, float]]


def score(
    task: VerificationTask, embeddings: Embeddings, methods: list[str]
) -> tuple[dict[str, ScoredPairs], dict[str, int]]:
    """{difficulty: its pairs with their scores and figures}, and the numbers of what the methods learned from.

    embeddings: of the task's photos, but for those that can't be read.
    """
    values = np.asarray(embeddings.values)
    if not np.isfinite(values).all():
        path = embeddings.table.rows["path"][~np.isfinite(values).all(axis=1)].iloc[0]
        raise InputError(
            f"{path}: its embedding has numbers that are not finite; the weights of the network are damaged"
        )
    paths = embeddings.table.rows["path"]
    embedding_rows = pd.Index(paths).get_indexer(task.table.rows["path"])
    learned = embedding_rows[task.learned & (embedding_rows >= 0)]
    codes = embeddings.table.rows[task.label].to_numpy()[learned]
    rows = np.full(len(values), -1)
    rows[learned] = np.arange(len(learned))
    train = _readable(task.train, embedding_rows, "training").map_rows(rows)
    fitted = fit_methods(methods, values[learned], codes, train)
    thresholds = {method: best_threshold(one(values[learned], train), train.same) for method, one in fitted.items()}
    scored = {}
    for difficulty, pairs in task.tests.items():
        pairs = _readable(pairs, embedding_rows, difficulty)
        scores = {method: one(values, pairs) for method, one in fitted.items()}
        metrics = {method: pair_metrics(scores[method], pairs.same, thresholds[method]) for method in methods}
        ends = (paths.to_numpy()[pairs.first], paths.to_numpy()[pairs.second])
        scored[difficulty] = ScoredPairs(*ends, pairs.same, scores, metrics)
    counts = {"photos": len(learned), "classes": len(np.unique(codes)), "pairs": len(train)}
    return scored, counts


def _readable(pairs: Pairs, embedding_rows: np.ndarray, what: str) -> Pairs:
    """Pairs of the table's rows as pairs of the embeddings, which photo i has at places[i], or nowhere (-1)."""
    found = pairs.map_rows(embedding_rows)
    there = (found.first >= 0) & (found.second >= 0)
    if not there.all():
        log.warning("%s of %s %s pairs are left out, as a photo of them can't be read",
                    f"{(~there).sum():,}", f"{len(there):,}", what)  # fmt: skip
    if not there.any():
        raise InputError(f"no {what} pair is left: in each of {len(there):,} there is a photo that can't be read")
    return found.select(there)
