"""Metrics of nearest neighbours: Recall@K, R-precision and MAP@R, of a finished search and over an epoch."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from carvision.metrics.exact_search import nearest

# Retrieval metrics: Recall@K, R-precision, MAP@R (Musgrave et al. 2020, "A metric learning reality check").
#
# R of a query is the number of gallery photos of its class, excluding its own photo. Recall@K: whether one of the K
# nearest is of the class. R-precision: the fraction of the R nearest that is of the class. MAP@R: the sum of the
# precisions among the first i, over those i <= R where the i-th is of the class, divided by R.

BLOCK = 1024  # queries whose neighbours are in memory at a time
NEIGHBOURS = 4_000_000  # per block; with everything computed from them about 150 MB


def num_relevant(query_codes: np.ndarray, gallery_codes: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return R of each query, int64 (Q,).

    Codes int, from 0. own int (Q,): the query's own row of the gallery, -1: none.
    """
    most = max(query_codes.max(initial=-1), gallery_codes.max(initial=-1)) + 1
    return np.bincount(gallery_codes, minlength=most)[query_codes] - (own >= 0)


def query_metrics(right: np.ndarray, relevant: np.ndarray, recall_at: Sequence[int]) -> dict[str, np.ndarray]:
    """Return {"recall_at_<k>", "r_precision", "map_at_r"}, float64 (B,), for queries whose R is above 0.

    right: bool (B, K), whether the i-th nearest is of the query's class, K at least the largest R and k (or all
    photos). relevant int (B,): R.
    """
    ranks = np.arange(1, right.shape[1] + 1)
    hits = right & (ranks <= relevant[:, None])
    precisions = np.cumsum(hits, axis=1) / ranks
    metrics = {f"recall_at_{k}": right[:, :k].any(axis=1).astype(np.float64) for k in recall_at}
    metrics["r_precision"] = hits.sum(axis=1) / relevant
    metrics["map_at_r"] = (precisions * hits).sum(axis=1) / relevant
    return metrics


def leave_one_out_metrics(embeddings: np.ndarray, codes: np.ndarray, recall_at: Sequence[int] = (1,)) -> dict:
    """Return mean {"recall_at_<k>", "r_precision", "map_at_r"}, each photo searched among all others by cosine.

    embeddings float32 (N, D), codes int (N,) from 0. {} if no class has two photos.
    """
    relevant = num_relevant(codes, codes, own=np.arange(len(codes)))
    counting = np.flatnonzero(relevant > 0)
    if not len(counting):
        return {}
    k = int(min(len(codes) - 1, max(relevant.max(), *recall_at)))
    parts = []
    for rows in split_blocks(counting, queries_per_block(k)):
        _, found = nearest(embeddings[rows], embeddings, k, own=rows)
        parts.append(query_metrics(codes[found] == codes[rows, None], relevant[rows], recall_at))
    return {name: float(values.mean()) for name, values in concatenate_blocks(parts).items()}


def queries_per_block(k: int, num_classes: int = 1) -> int:
    """Return how many queries to search at a time: bounds memory, yet prepares the gallery as rarely as possible."""
    return max(16, min(8192, NEIGHBOURS // max(k, num_classes)))


def split_blocks(rows: np.ndarray, size: int = BLOCK) -> Iterator[np.ndarray]:
    """Yield consecutive blocks of the rows."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def concatenate_blocks(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenate the arrays of blocks of queries."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# Figures of embeddings over an epoch: the metric loss, and whose neighbours are of the same class.


class Embedded(NamedTuple):
    """Of a batch: loss, a scalar; embeddings float (B, D); targets int64 (B,); counts bool (B,): a photo takes part."""

    loss: Tensor
    embeddings: Tensor
    targets: Tensor
    counts: Tensor

    def if_finite(self) -> "Embedded":
        """The same; where the loss is no number it counts no photo."""
        finite = self.loss.isfinite()
        return self._replace(loss=torch.where(finite, self.loss, 0.0), counts=self.counts & finite)


class NeighbourMetrics(Metric):
    """Of all photos of a split, each against all others: Recall@1 and MAP@R by cosine, see retrieval.figures.

    Keeps all embeddings until the epoch's end, on the device they are on: not for the steps of training.
    """

    full_state_update = False
    embeddings: list[Tensor]
    targets: list[Tensor]
    counts: list[Tensor]

    def __init__(self):
        super().__init__()
        for name in ("embeddings", "targets", "counts"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, batch: Embedded) -> None:
        self.embeddings.append(batch.embeddings.detach().float())
        self.targets.append(batch.targets)
        self.counts.append(batch.counts)

    def compute(self) -> dict[str, float]:
        """{"recall_at_1", "map_at_r"}; {} where no class has two photos."""

        embeddings, targets, counts = (_joined(values) for values in (self.embeddings, self.targets, self.counts))
        figures = leave_one_out_metrics(embeddings[counts].cpu().numpy(), targets[counts].cpu().numpy())
        return {name: figures[name] for name in ("recall_at_1", "map_at_r") if name in figures}


def _joined(values: list[Tensor] | Tensor) -> Tensor:
    return torch.cat(values) if isinstance(values, list) else values  # joined already where processes were
