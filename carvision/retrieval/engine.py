"""Engine: the gallery, and how it is searched: exactly, or by an approximate index of faiss."""

import logging

import numpy as np

from carvision.inference.reading import choose_device
from carvision.retrieval.search import nearest

log = logging.getLogger(__name__)

SAMPLE = 1000  # queries with which an approximate index is checked
CHECKED_AT = 10


class Engine:
    """gallery: float (G, D). distance, device: see search.nearest. index: "exact", or one of approximate.KINDS."""

    def __init__(self, gallery: np.ndarray, distance: str, index: str, device: str):
        self.gallery, self.distance, self.device = gallery, distance, choose_device(device)
        self.index = None
        if index != "exact":
            from carvision.retrieval.approximate import Index  # only now: faiss is an extra

            self.index = Index(gallery, index, distance)

    def nearest(self, queries: np.ndarray, k: int, own: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Scores float32 (Q, k) and rows int64 (Q, k); own: see search.nearest."""
        if self.index is not None:
            return self.index.nearest(queries, k, own)
        return nearest(queries, self.gallery, k, self.distance, own=own, device=self.device)

    def checked(self, queries: np.ndarray, leave_one_out: bool) -> dict:
        """{"index_recall"}: of an approximate index the share of the 10 nearest that it finds, on a sample; else {}."""
        if self.index is None:
            return {}
        rows = np.sort(np.random.default_rng(0).permutation(len(queries))[:SAMPLE])
        k = min(CHECKED_AT, len(self.gallery) - int(leave_one_out))
        own = rows if leave_one_out else None
        found = self.nearest(queries[rows], k, own)[1]
        true = nearest(queries[rows], self.gallery, k, self.distance, own=own, device=self.device)[1]
        share = float(np.mean([len(np.intersect1d(*pair)) / k for pair in zip(found, true, strict=True)]))
        log.info("the index finds %.1f %% of the %d nearest (of %d queries)", 100 * share, k, len(rows))
        return {"index_recall": share}
