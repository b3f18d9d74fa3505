"""Exact nearest neighbours: blocked matrix products and topk, in memory that does not grow with the gallery."""

import logging
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from carvision.errors import InputError
from carvision.system.runtime import full_precision

log = logging.getLogger(__name__)

BLOCKS = (1024, 16384)  # queries, gallery; their products take 67 MB
PAIR_ELEMENTS = 2**21  # of the pairs whose scores are computed at a time; 8 MB
# Rounding of a product, as a share of both lengths: some 1e-6 at most with 2,000 elements. Between products that differ
# by less, the score of each pair decides
ROUNDING = 2.0**-19


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
