"""Metrics of nearest neighbours, of a finished search and over an epoch, and classification by them.

Recall@K, R-precision and MAP@R are those of Musgrave et al. 2020, "A metric learning reality check". R of a query is
the number of gallery photos of its class, excluding its own photo. Recall@K: whether one of the K nearest is of the
class. R-precision: the fraction of the R nearest that is of the class. MAP@R: the sum of the precisions among the first
i, over those i <= R where the i-th is of the class, divided by R.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from carvision.metrics.exact_search import nearest, split_blocks
from carvision.metrics.heads import metrics_from_counts

NEIGHBOURS = 4_000_000  # per block; with everything computed from them about 150 MB
KNN_METRICS = {
    "accuracy": "top1", "balanced_accuracy": "balanced_accuracy", "precision": "precision_weighted",
    "recall": "recall_weighted", "f1": "f1_weighted",
}  # fmt: skip


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
    metrics: dict[str, np.ndarray] = {f"recall_at_{k}": np.asarray(right[:, :k].any(axis=1), float) for k in recall_at}
    metrics["r_precision"] = np.divide(hits.sum(axis=1), relevant)
    metrics["map_at_r"] = np.divide((precisions * hits).sum(axis=1), relevant)
    return metrics


def leave_one_out_metrics(
    embeddings: np.ndarray, codes: np.ndarray, recall_at: Sequence[int] = (1,)
) -> dict[str, float]:
    """Return the means of query_metrics, each photo searched among all others by cosine.

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
    """Return how many queries to search at a time: few enough for memory, many enough to prepare the gallery rarely."""
    return max(16, min(8192, NEIGHBOURS // max(k, num_classes)))


def concatenate_blocks(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenate the arrays of blocks of queries."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def vote(
    codes: np.ndarray, distances: np.ndarray, ks: Sequence[int], votes: str, num_classes: int
) -> dict[int, np.ndarray]:
    """Classify by k nearest neighbours, for several k, as scikit-learn's KNeighborsClassifier does.

    Returns {k: the class with most votes among the k nearest, int64 (B,)}; ties go to the lowest class.

    codes int (B, K): classes of the neighbours, the nearest first. distances float (B, K). votes "uniform": one each;
    "distance": 1 / distance each; if neighbours at distance 0 exist, only these vote.
    """
    weights = np.ones(codes.shape)
    if votes == "distance":
        zero = distances <= 0
        weights = np.where(zero[:, :1], zero, 1 / np.where(zero, 1, distances).astype(np.float64))
    sums, queries, predicted = np.zeros((len(codes), num_classes)), np.arange(len(codes)), {}
    for rank in range(max(ks)):
        sums[queries, codes[:, rank]] += weights[:, rank]
        if rank + 1 in ks:
            predicted[rank + 1] = sums.argmax(axis=1)
    return predicted


def knn_metrics(true: np.ndarray, predicted: np.ndarray, num_classes: int) -> dict[str, float]:
    """Return accuracy, balanced_accuracy (mean recall of the classes that occur), and precision, recall and F1.

    The last three are weighted by class size, with 0 / 0 = 0. true, predicted: int (N,).
    """
    counts = [np.bincount(codes, minlength=num_classes) for codes in (true[true == predicted], true, predicted)]
    found = metrics_from_counts(*(torch.from_numpy(values).double() for values in counts))
    return {name: float(found[metric]) for name, metric in KNN_METRICS.items()}


class Embedded(NamedTuple):
    """A batch's metric loss, a scalar; embeddings float (B, D); targets int64 (B,); counts bool (B,): whether a photo
    takes part in the loss."""

    loss: Tensor
    embeddings: Tensor
    targets: Tensor
    counts: Tensor


class NeighbourMetrics(Metric):
    """Recall@1 and MAP@R by cosine of all photos of a split, each searched among all others.

    Keeps all embeddings until the end of the epoch, on their device: not meant for training steps.
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
        """Return "recall_at_1" and "map_at_r"; {} if no class has two photos."""
        embeddings, targets, counts = (_joined(values) for values in (self.embeddings, self.targets, self.counts))
        metrics = leave_one_out_metrics(embeddings[counts].cpu().numpy(), targets[counts].cpu().numpy())
        return {name: metrics[name] for name in ("recall_at_1", "map_at_r") if name in metrics}


def _joined(values: list[Tensor] | Tensor) -> Tensor:
    return torch.cat(values) if isinstance(values, list) else values  # synchronising processes joins them already
