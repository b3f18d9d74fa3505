"""Engine: search the gallery exactly, or with an approximate faiss index."""

import logging

import numpy as np

from carvision.inference.reading import choose_device
from carvision.retrieval.search import nearest

log = logging.getLogger(__name__)

SAMPLE = 1000  # queries that an approximate index is checked with
CHECKED_AT = 10


class Engine:
    """Searches a gallery, float (G, D).

    distance, device: see search.nearest. index: "exact", or one of approximate.KINDS.
    """

    def __init__(self, gallery: np.ndarray, distance: str, index: str, device: str):
        self.gallery, self.distance, self.device = gallery, distance, choose_device(device)
        self.index = None
        if index != "exact":
            from carvision.retrieval.approximate import Index  # imported late: faiss is an extra

            self.index = Index(gallery, index, distance)

    def nearest(self, queries: np.ndarray, k: int, own: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return scores float32 (Q, k) and rows int64 (Q, k).

        own int (Q,): each query's own row, which is left out; -1: it has none; None: no query has one.
        """
        alone = np.ones(len(queries), bool) if own is None else own < 0
        if alone.all() or not alone.any():
            return self._nearest(queries, k, None if alone.all() else own)
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
