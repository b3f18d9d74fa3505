"""Approximate nearest neighbours through faiss, for galleries that are too large to be searched exactly each time."""

import importlib

import numpy as np
import torch

from carvision.errors import InputError
from carvision.retrieval.search import checked_norms, nearest, without_own

KINDS = ("hnsw", "ivf")
BLOCK = 65_536  # rows that are copied at a time
LINKS, BUILD_WIDTH = 32, 200  # of hnsw: of each row; candidates while it is built
MOST_TO_TRAIN = 64  # of ivf: rows for each list, as faiss advises


class Index:
    """gallery float (G, D). kind "hnsw": a graph of near rows (Malkov and Yashunin 2018), the quicker and larger one;
    "ivf": 4 sqrt(G) lists, of which a sixteenth is looked at. distance: as of search.nearest.

    Raises InputError where faiss is not installed, or a value is not finite.
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
            num_lists = max(1, min(int(4 * num**0.5), num // 39))  # faiss asks for 39 rows a list
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
        """As search.nearest. Queries for which the index finds fewer than k are searched for exactly."""
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
