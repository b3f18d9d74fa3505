"""Exact nearest neighbours; their metrics, of a finished search and over an epoch; and classification by them.

The search is by blocked matrix products and topk, in memory that does not grow with the gallery.

Recall@K, R-precision and MAP@R are those of Musgrave et al. 2020, "A metric learning reality check". R of a query is
the number of gallery photos of its class, excluding its own photo. Recall@K: whether one of the K nearest is of the
class. R-precision: the fraction of the R nearest that is of the class. MAP@R: the sum of the precisions among the first
i, over those i <= R where the i-th is of the class, divided by R.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from carvision.errors import InputError
from carvision.metrics.heads import metrics_from_counts
from carvision.system.runtime import full_precision

log = logging.getLogger(__name__)

BLOCKS = (1024, 16384)  # queries, gallery; their products take 67 MB
PAIR_ELEMENTS = 2**21  # of the pairs whose scores are computed at a time; 8 MB
# Rounding of a product, as a share of both lengths: some 1e-6 at most with 2,000 elements. Between products that differ
# by less, the score of each pair decides
ROUNDING = 2.0**-19
NEIGHBOURS = 4_000_000  # per block; with everything computed from them about 150 MB
KNN_METRICS = {
    "accuracy": "top1", "balanced_accuracy": "balanced_accuracy", "precision": "precision_weighted",
    "recall": "recall_weighted", "f1": "f1_weighted",
}  # fmt: skip


def nearest(
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int,
    distance: str = "cosine",
    own: np.ndarray | None = None,
    device: torch.device | str = "cpu",
    blocks: tuple[int, int] = BLOCKS,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest rows of the gallery (G, D) for each query (Q, D): scores float32 (Q, k), rows int64 (Q, k).

    Both float, optionally memory-mapped; blocks = (queries, gallery): rows on the device at a time. distance "cosine":
    scores are cosines, largest first; lengths do not matter. "l2": scores are Euclidean distances, smallest first.
    own int (Q,): the query's own row of the gallery, which is left out; -1: it has none.

    Products of a whole block choose the candidates, with topk; their scores are then computed pair by pair in float32.
    So a score does not depend on the blocks, equal embeddings tie, and of equal scores the lower row comes first.
    An embedding of zeros has cosine 0 with all others; a warning reports how many there are. Raises InputError if a
    value is not finite, or k is not from 1 to the number of rows available.

    The gallery is prepared in every call: pass a thousand queries or more at a time.
    """
    own = np.full(len(queries), -1) if own is None else own
    most = len(gallery) - int((own >= 0).any())
    if not 1 <= k <= most:
        raise InputError(f"k: {k} is not from 1 to {most}, the number of photos to choose from; use a smaller k")
    check_embeddings(queries, "query", distance)
    check_embeddings(gallery, "gallery", distance)
    scores, rows = torch.full((len(queries), k), -torch.inf), torch.zeros(len(queries), k, dtype=torch.int64)
    with torch.no_grad(), full_precision(torch.device(device).type):
        # The difference of products below loses fewer digits near the centre
        centre = _to(gallery[: blocks[1]], device).mean(dim=0) if distance == "l2" else None
        for first in range(0, len(gallery), blocks[1]):
            columns = _side(gallery[first : first + blocks[1]], device, centre)
            for start in range(0, len(queries), blocks[0]):
                part = slice(start, start + blocks[0])
                own_columns = torch.from_numpy(own[part] - first).to(device)
                new = _nearest_of_block(_side(queries[part], device, centre), columns, own_columns, k, distance)
                all_scores = torch.cat([scores[part], new[0].cpu()], dim=1)
                all_rows = torch.cat([rows[part], new[1].cpu() + first], dim=1)
                # Stable: of equal scores, those of earlier blocks come first
                scores[part], order = (found[:, :k] for found in all_scores.sort(dim=1, descending=True, stable=True))
                rows[part] = all_rows.gather(1, order)
    return (scores if distance == "cosine" else -scores).numpy(), rows.numpy()


def check_embeddings(embeddings: np.ndarray, name: str, distance: str) -> None:
    """Raise InputError for values that are not finite, or whose squares are not; warn about zeros with the cosine."""
    with np.errstate(over="ignore", invalid="ignore"):
        parts = [np.square(part, dtype=np.float32).sum(axis=1) for part in split_blocks(embeddings)]
    squares = np.concatenate([*parts, np.empty(0)])
    bad = np.flatnonzero(~np.isfinite(squares))
    if len(bad):
        raise InputError(
            f"{len(bad)} of {len(squares)} {name} embeddings are not finite, the first in row {bad[0]} (counted from "
            "0); leave these photos out, or compute them in float32"
        )
    if distance == "cosine" and (zeros := int((squares == 0).sum())):
        log.warning("%d of %d %s embeddings are all zeros; their cosine with any other is 0", zeros, len(squares), name)


class Side(NamedTuple):
    """A block of embeddings (B, D): as pairs are scored, of length 1 for the cosine; and as blocks are multiplied."""

    rows: Tensor
    factors: Tensor


def _side(block: np.ndarray, device: torch.device | str, centre: Tensor | None) -> Side:
    rows = _to(block, device)
    if centre is not None:
        return Side(rows, rows - centre)
    unit = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return Side(unit, unit)


def _nearest_of_block(queries: Side, gallery: Side, own: Tensor, k: int, distance: str) -> tuple[Tensor, Tensor]:
    """Return scores (larger is nearer) and columns (B, at most k) of the nearest rows of the gallery.

    The score of a query's own column, if that is among them, is -inf.
    """
    left, right = queries.factors, gallery.factors
    # On AMD processors numpy's OpenBLAS takes three quarters of the time of torch's MKL
    on_cpu = left.device.type == "cpu"
    products = torch.from_numpy(left.numpy() @ right.numpy().T) if on_cpu else left @ right.T
    if distance == "l2":  # |q - g|^2 = |q|^2 - 2 (q.g - |g|^2 / 2), so the nearest maximise the difference
        products -= right.square().sum(dim=1) / 2
    has_own = ((own >= 0) & (own < len(right))).nonzero()[:, 0]
    products[has_own, own[has_own]] = -torch.inf
    k, most = min(k, len(right)), len(right)
    values, columns = products.topk(min(k + 1, most), dim=1)
    if k < most:
        longest = right.norm(dim=1).max()
        floor = values[:, k - 1] - ROUNDING * longest * (left.norm(dim=1) + longest)
        for query in (values[:, k] >= floor).nonzero()[:, 0].tolist():  # which of them is nearer?
            near = (products[query] >= floor[query]).nonzero()[None, :, 0]
            scores = _pair_scores(queries.rows[query : query + 1], gallery.rows, near, distance)
            columns[query, :k] = near[0, scores[0].sort(descending=True, stable=True).indices[:k]]
    columns = columns[:, :k].sort(dim=1).values
    scores = _pair_scores(queries.rows, gallery.rows, columns, distance)
    scores[columns == own[:, None]] = -torch.inf
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return scores, columns.gather(1, order)


def _pair_scores(queries: Tensor, gallery: Tensor, columns: Tensor, distance: str) -> Tensor:
    """Return the scores of each query with its columns, ascending (B, K), independent of the other pairs."""
    if distance == "cosine" and queries.device.type == "cpu":  # copies no rows, for a tenth of the time
        ends = torch.arange(0, columns.numel() + 1, columns.shape[1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that its sparse matrices are beta
            zeros, shape = torch.zeros(columns.numel()), (len(queries), len(gallery))
            pairs = torch.sparse_csr_tensor(ends, columns.flatten(), zeros, shape)
        return torch.sparse.sampled_addmm(pairs, queries, gallery.T, beta=0.0).values().view(columns.shape)
    size, found = max(1, PAIR_ELEMENTS // (columns.shape[1] * gallery.shape[1])), []
    for some, of_some in zip(queries.split(size), columns.split(size), strict=True):
        near = gallery[of_some]
        if distance == "cosine":
            found.append(near.mul_(some[:, None]).sum(dim=2))
        else:
            found.append(-near.sub_(some[:, None]).square_().sum(dim=2).sqrt())
    return torch.cat(found)


def _to(block: np.ndarray, device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.array(block, dtype=np.float32)).to(device)  # a copy, as mapped files are read-only


def split_blocks(array: np.ndarray, size: int = 16384) -> Iterator[np.ndarray]:
    """Yield consecutive blocks of rows, `size` at a time."""
    for first in range(0, len(array), size):
        yield array[first : first + size]


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
    for rows in query_blocks(counting, k):
        _, found = nearest(embeddings[rows], embeddings, k, own=rows)
        parts.append(query_metrics(codes[found] == codes[rows, None], relevant[rows], recall_at))
    return {name: float(values.mean()) for name, values in concatenate_blocks(parts).items()}


def query_blocks(queries: np.ndarray, k: int, num_classes: int = 1) -> Iterator[np.ndarray]:
    """Yield the queries in blocks, small enough for memory, large enough to prepare the gallery rarely."""
    return split_blocks(queries, max(16, min(8192, NEIGHBOURS // max(k, num_classes))))


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
