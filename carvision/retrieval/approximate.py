"""Approximate nearest neighbours with faiss, for galleries too large for exact search."""

import importlib

import numpy as np
import torch

from carvision.errors import InputError
from carvision.retrieval.search import checked_norms, nearest, without_own

KINDS = ("hnsw", "ivf")
BLOCK = 65_536  # rows that are copied at a time
LINKS, BUILD_WIDTH = 32, 200  # hnsw: links per row; candidates considered while building
MOST_TO_TRAIN = 64  # ivf: training rows per list, as faiss advises


class Index:
    """An approximate index of the gallery, float (G, D).

    kind "hnsw": a graph of neighbouring rows (Malkov and Yashunin 2018), the faster and larger one; "ivf": 4 sqrt(G)
    lists, of which a sixteenth is searched. distance: see search.nearest. Raises InputError if faiss is not installed,
    or a value is not finite.
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
        """Return scores and rows as search.nearest does; queries with fewer than k results are searched exactly."""
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
