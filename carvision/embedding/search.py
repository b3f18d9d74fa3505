"""Search a gallery exactly or by an approximate index, and classify by the nearest neighbours."""

import importlib
import logging
from collections.abc import Sequence

import numpy as np
import torch

from carvision.errors import InputError
from carvision.inference.predictor import choose_device
from carvision.metrics.exact_search import checked_norms, nearest, without_own
from carvision.metrics.heads import metrics_from_counts

log = logging.getLogger(__name__)

KINDS = ("hnsw", "ivf")
BLOCK = 65_536  # rows that are copied at a time
LINKS, BUILD_WIDTH = 32, 200  # hnsw: links per row; candidates considered while building
MOST_TO_TRAIN = 64  # ivf: training rows per list, as faiss advises
SAMPLE, CHECKED_AT = 1000, 10  # queries that an approximate index is checked with; neighbours of each
METRICS = {
    "accuracy": "top1", "balanced_accuracy": "balanced_accuracy", "precision": "precision_weighted",
    "recall": "recall_weighted", "f1": "f1_weighted",
}  # fmt: skip


class Index:
    """An approximate index of the gallery, float (G, D).

    kind "hnsw": a graph of neighbouring rows (Malkov and Yashunin 2018), the faster and larger one; "ivf": 4 sqrt(G)
    lists, of which a sixteenth is searched. distance: see exact_search.nearest. Raises InputError if faiss is not
    installed, or a value is inf or NaN.
    """

    def __init__(self, gallery: np.ndarray, kind: str, distance: str):
        self.faiss = _faiss(kind)
        checked_norms(gallery, "gallery", distance)
        self.gallery, self.distance = gallery, distance
        num, width = gallery.shape
        metric = self.faiss.METRIC_INNER_PRODUCT if distance == "cosine" else self.faiss.METRIC_L2
        if kind == "hnsw":
            self.index = self.faiss.IndexHNSWFlat(width, LINKS, metric)
            self.index.hnsw.efConstruction = BUILD_WIDTH
        else:
            num_lists = max(1, min(int(4 * num**0.5), num // 39))  # faiss wants at least 39 rows per list
            self.index = self.faiss.index_factory(width, f"IVF{num_lists},Flat", metric)
            self.index.nprobe = max(1, min(num_lists, max(8, num_lists // 16)))
            chosen = np.random.default_rng(0).permutation(num)[: MOST_TO_TRAIN * num_lists]
            self.index.train(self._rows(gallery[np.sort(chosen)]))
        for start in range(0, num, BLOCK):
            self.index.add(self._rows(gallery[start : start + BLOCK]))

    def _rows(self, values: np.ndarray) -> np.ndarray:
        rows = np.ascontiguousarray(values, np.float32)
        if self.distance != "cosine":
            return rows
        return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-30)

    def nearest(self, queries: np.ndarray, k: int, own: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and rows as exact_search.nearest; queries with fewer than k results are searched exactly."""
        checked_norms(queries, "query", self.distance)
        num = k + (own is not None)
        if hasattr(self.index, "hnsw"):
            self.index.hnsw.efSearch = max(64, 2 * num)
        scores, rows = self.index.search(self._rows(queries), num)
        scores = scores if self.distance == "cosine" else np.sqrt(scores.clip(min=0))
        if own is not None:
            scores, rows = without_own(scores, rows, own)
        few = np.flatnonzero((rows < 0).any(axis=1))
        if len(few):
            of_few = None if own is None else own[few]
            scores[few], rows[few] = nearest(queries[few], self.gallery, k, self.distance, own=of_few)
        return scores, rows


def _faiss(kind: str):
    try:
        found = importlib.import_module("faiss")
    except ImportError:
        raise InputError(f"--index: {kind} needs faiss; pip install faiss-cpu, or leave --index exact") from None
    found.omp_set_num_threads(torch.get_num_threads())
    return found


class Engine:
    """Searches a gallery, float (G, D).

    distance, device: see exact_search.nearest. index: "exact", or one of KINDS.
    """

    def __init__(self, gallery: np.ndarray, distance: str, index: str, device: str):
        self.gallery, self.distance, self.device = gallery, distance, choose_device(device)
        self.index = None
        if index != "exact":
            self.index = Index(gallery, index, distance)

    def nearest(self, queries: np.ndarray, k: int, own: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return scores float32 (Q, k) and rows int64 (Q, k).

        own int (Q,): each query's own row, which is left out; -1: it has none; None: no query has one.
        """
        if own is None or (own < 0).all():
            return self._nearest(queries, k, None)
        alone = own < 0
        if not alone.any():
            return self._nearest(queries, k, own)
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        scores[alone], rows[alone] = self._nearest(queries[alone], k, None)
        scores[~alone], rows[~alone] = self._nearest(queries[~alone], k, own[~alone])
        return scores, rows

    def _nearest(self, queries: np.ndarray, k: int, own: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        if self.index is not None:
            return self.index.nearest(queries, k, own)
        return nearest(queries, self.gallery, k, self.distance, own=own, device=self.device)

    def checked(self, queries: np.ndarray, own: np.ndarray) -> dict:
        """Return {"index_recall"}, the fraction of the true 10 nearest that an approximate index finds; else {}."""
        if self.index is None:
            return {}
        rows = np.sort(np.random.default_rng(0).permutation(len(queries))[:SAMPLE])
        k = min(CHECKED_AT, len(self.gallery) - int((own >= 0).any()))
        found = self.nearest(queries[rows], k, own[rows])[1]
        exact = Engine(self.gallery, self.distance, "exact", str(self.device))
        true = exact.nearest(queries[rows], k, own[rows])[1]
        share = float(np.mean([len(np.intersect1d(*pair)) / k for pair in zip(found, true, strict=True)]))
        log.info("the index finds %.1f %% of the %d nearest (of %d queries)", 100 * share, k, len(rows))
        return {"index_recall": share}


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
    return {name: float(found[metric]) for name, metric in METRICS.items()}
