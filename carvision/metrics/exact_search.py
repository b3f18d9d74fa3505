"""Exact nearest neighbours in blocks: memory use does not grow with the gallery.

Most pairs are only computed approximately. Each block of queries is multiplied with a block of the gallery, in bfloat16
on processors where that is twice as fast. The k-th largest of the maxima of chunks of columns is a lower bound of the
k-th largest product, so whatever lies below it by more than the largest rounding error is none of the k nearest. The
rest, little more than k pairs per query, is recomputed in float32, and the k best are kept.
"""

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

DISTANCES = ("cosine", "l2")
BLOCKS = (1024, 16384)  # queries, gallery; their products take 67 MB in float32
CHUNK = 64  # columns at most; fewer let fewer candidates through, but take longer to scan
MAX_EXTRA_CANDIDATES = 256  # candidates per query beyond 2 k with which the rough pass still pays
ROW_MASK = 0xFFFFFFFF  # the half of a key that holds the row
EMPTY_KEY = -0x7F800001 << 32  # the key of an empty slot: a score of minus infinity


def nearest(
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int,
    distance: str = "cosine",
    leave_one_out: bool = False,
    device: torch.device | str = "cpu",
    own: np.ndarray | None = None,
    blocks: tuple[int, int] = BLOCKS,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest rows of the gallery (G, D) for each query (Q, D): scores float32 (Q, k), rows int64 (Q, k).

    Both float32, optionally memory-mapped; blocks = (queries, gallery): rows copied to the device at a time. distance
    "cosine": scores are cosines, largest first; lengths do not matter. "l2": scores are Euclidean distances, smallest
    first. leave_one_out: query i is row i of the gallery and excluded from its own neighbours; own int64 (Q,): query i
    is row own[i]. The lower row comes first among equal scores.

    A pair's score does not depend on the blocks, and equal embeddings tie. It is computed in float32, whose rounding
    (about 1e-7 of the product of the lengths) decides between rows that differ by less; other kinds of device can give
    other last bits. An embedding of zeros has cosine 0 with all others; a warning reports how many there are. Raises
    InputError if a value is not finite, or k is not from 1 to the number of rows available.

    The gallery is prepared in every call: pass a thousand queries or more at a time.
    """
    own = np.arange(len(queries)) if leave_one_out and own is None else own
    _check(queries, gallery, k, distance, own)
    norms = [checked_norms(array, name, distance) for array, name in ((queries, "query"), (gallery, "gallery"))]
    centre = np.zeros(gallery.shape[1], np.float32)
    if distance == "l2":  # centring leaves more of float32's digits for the differences
        total = sum((part.sum(axis=0, dtype=np.float64) for part in split_blocks(gallery)), np.zeros(gallery.shape[1]))
        centre = (total / len(gallery)).astype(np.float32)
        norms = [_norms(array, centre) for array in (queries, gallery)]
    device = torch.device(device)
    with torch.no_grad(), full_precision(device.type):
        found = _search(queries, gallery, k + (own is not None), distance, device, centre, norms, blocks)
    scores, rows = _scores_of(found).numpy(), _rows_of(found).numpy()
    if distance == "l2":
        scores, rows = _distances(queries, gallery, scores, rows, norms)
    return (scores, rows) if own is None else without_own(scores, rows, own)


def without_own(scores: np.ndarray, rows: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop the query's own row from k + 1 neighbours; if it is not among them, drop the last."""
    others = rows != own[:, None]
    others[others.all(axis=1), -1] = False
    shape = (len(rows), rows.shape[1] - 1)
    return scores[others].reshape(shape), rows[others].reshape(shape)


def checked_norms(embeddings: np.ndarray, name: str, distance: str) -> np.ndarray:
    """Return the lengths, float32 (N,); warn about zeros.

    Raises InputError for values that are not finite, or whose squares are not.
    """
    norms = _norms(embeddings)
    bad = np.flatnonzero(~np.isfinite(norms))
    if len(bad):
        raise InputError(
            f"{len(bad)} of {len(norms)} {name} embeddings are not finite, the first in row {bad[0]} (counted from 0); "
            "leave these photos out, or compute them in float32"
        )
    if distance == "cosine" and (zeros := int((norms == 0).sum())):
        log.warning("%d of %d %s embeddings are all zeros; their cosine with any other is 0", zeros, len(norms), name)
    return norms


def _norms(embeddings: np.ndarray, centre: np.ndarray | float = 0.0) -> np.ndarray:
    norms = np.empty(len(embeddings), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for part, rows in zip(split_blocks(norms), split_blocks(embeddings), strict=True):
            rows = rows.astype(np.float32) - np.float32(centre)
            part[:] = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    return norms


def _check(queries: np.ndarray, gallery: np.ndarray, k: int, distance: str, own: np.ndarray | None) -> None:
    if distance not in DISTANCES:
        raise InputError(f"distance: {distance!r} is not one of {', '.join(DISTANCES)}")
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise InputError(
            f"queries {queries.shape} and gallery {gallery.shape} are not (Q, D) and (G, D) with the same D"
        )
    if own is not None and len(own) != len(queries):
        raise InputError(f"own has {len(own)} rows for {len(queries)} queries; it must have one for each")
    if own is not None and len(own) and not 0 <= own.min() <= own.max() < len(gallery):
        raise InputError(
            f"a query's own row is {own.max()}, the gallery has {len(gallery)} rows; use the same embeddings"
        )
    most = len(gallery) - (own is not None)
    if not 1 <= k <= most:
        raise InputError(f"k: {k} is not from 1 to {most}, the number of photos to choose from; use a smaller k")


class Side(NamedTuple):
    """A block of embeddings, transformed so that the nearest have the largest inner product."""

    exact: Tensor  # float32 (B, D), in l2 (B, D + 1)
    rough: Tensor  # the same in the precision of the first pass; the gallery's in chunk order
    length: Tensor  # (B,), of exact
    error: Tensor  # (B,), the length of exact - rough
    chunk: int = 1  # rows scanned together


def _search(
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int,
    distance: str,
    device: torch.device,
    centre: np.ndarray,
    norms: list[np.ndarray],
    blocks: tuple[int, int],
) -> Tensor:
    """Return the keys of the nearest, int64 (Q, k). In l2 their scores are those of _gallery_side."""
    kind = torch.bfloat16 if device.type == "cpu" and _is_fast_in_bfloat16() else torch.float32
    scale = max(float(norms[1].max()), 1e-30)
    best = torch.full((len(queries), k), EMPTY_KEY)
    for first in range(0, len(gallery), blocks[1]):
        part = slice(first, first + blocks[1])
        exact = _gallery_side(_to(gallery[part] - centre, device), _to(norms[1][part], device), distance, scale)
        columns = _side(exact, kind, _chunk_of(len(exact), k))
        for start in range(0, len(queries), blocks[0]):
            part = slice(start, start + blocks[0])
            rows = _query_side(_to(queries[part] - centre, device), _to(norms[0][part], device), distance, scale)
            known, most = best[part].to(device), len(rows) * (2 * k + MAX_EXTRA_CANDIDATES)
            found = _merge(_side(rows, kind), columns, first, known, most)
            if found is None and kind == torch.bfloat16:  # too coarse for these embeddings: float32 from here on
                kind, columns = torch.float32, _side(exact, torch.float32, columns.chunk)
                found = _merge(_side(rows, kind), columns, first, known, most)
            best[part] = _merge_all(rows, exact, first, known) if found is None else found
    return best


def _query_side(block: Tensor, norms: Tensor, distance: str, scale: float) -> Tensor:
    if distance == "cosine":
        return block / norms[:, None].clamp(min=1e-30)
    return torch.cat([block, torch.full_like(block[:, :1], scale)], dim=1)


def _gallery_side(block: Tensor, norms: Tensor, distance: str, scale: float) -> Tensor:
    """Append a column in l2: |q - g|^2 = |q|^2 - 2 (q.g - |g|^2 / 2), so the nearest maximise q.g - |g|^2 / 2.

    `scale`, the largest norm, keeps that column no longer than the others.
    """
    if distance == "cosine":
        return block / norms[:, None].clamp(min=1e-30)
    return torch.cat([block, (-norms / scale * norms / 2)[:, None]], dim=1)


def _side(exact: Tensor, kind: torch.dtype, chunk: int = 1) -> Side:
    """Split rows into n chunks by taking every n-th row, as photos of a class are often adjacent; pad with zeros."""
    rough = exact.to(kind)
    padded = torch.nn.functional.pad(rough, (0, 0, 0, -len(rough) % chunk))
    in_chunks = padded.view(chunk, -1, padded.shape[1]).transpose(0, 1).reshape(padded.shape)
    return Side(exact, in_chunks, exact.norm(dim=1), (exact - rough).norm(dim=1), chunk)


def _chunk_of(width: int, k: int) -> int:
    """Return the rows per chunk: few enough for twice as many chunks as neighbours, if possible."""
    return min(CHUNK, 2 ** ((width // (2 * k)).bit_length() - 1)) if width >= 2 * k else 1


def _merge(rows: Side, columns: Side, first: int, best: Tensor, most: int | None) -> Tensor | None:
    """Merge the rows of a gallery block into the nearest so far; None if more than `most` pairs need recomputing.

    best int64 (B, k): keys of the nearest so far. first: the gallery row of the block's column 0.
    """
    (num, k), width = best.shape, len(columns.exact)
    products = (rows.rough @ columns.rough.T).view(num, -1, columns.chunk)
    num_chunks = products.shape[1]
    padding = torch.arange(width, num_chunks * columns.chunk, device=products.device)
    products[:, padding % num_chunks, padding // num_chunks] = -torch.inf
    maxima = products.amax(dim=2).float()
    error = _largest_error(rows, columns)
    floor = _scores_of(best[:, -1]) - error
    if k <= num_chunks:
        floor = torch.maximum(floor, maxima.topk(k, dim=1).values[:, -1] - 2 * error)
    floor = floor.clamp(min=torch.finfo(torch.float32).min)  # above the padding
    query, chunk = (maxima >= floor[:, None]).nonzero(as_tuple=True)
    above = products.view(-1, columns.chunk)[query * num_chunks + chunk] >= floor[query, None]
    if most is not None and above.count_nonzero() > most:
        return None
    which, offset = above.nonzero(as_tuple=True)
    query, column = query[which], offset * num_chunks + chunk[which]
    counts = query.bincount(minlength=num)
    starts = counts.cumsum(0) - counts
    found = best.new_full((num, int(counts.max())), EMPTY_KEY)
    keys = _keys_of(_inner_products(rows.exact, columns.exact, query, column), column + first)
    found[query, torch.arange(len(query), device=query.device) - starts[query]] = keys
    return torch.cat([best, found], dim=1).topk(k, dim=1).values


def _merge_all(rows: Tensor, columns: Tensor, first: int, best: Tensor, step: int = 64) -> Tensor:
    """Merge as _merge does, for any number of pairs to recompute."""
    side, merged = _side(columns, torch.float32), []
    for part, known in zip(rows.split(step), best.split(step), strict=True):
        found = _merge(_side(part, torch.float32), side, first, known, None)
        assert found is not None  # as there is no limit
        merged.append(found)
    return torch.cat(merged)


def _largest_error(rows: Side, columns: Side) -> Tensor:
    """Return a bound on |rough - exact product|, (B,), from Cauchy-Schwarz and the rounding of sums."""
    length = columns.length.max()
    rounding = 4 * rows.exact.shape[1] * 2.0**-24
    if rows.rough.dtype == torch.bfloat16:
        rounding += 0.002  # of the result: 2^-9, with a margin
    return rows.error * length + (rows.length + rows.error) * columns.error.max() + rounding * rows.length * length


def _inner_products(left: Tensor, right: Tensor, i: Tensor, j: Tensor, step: int = 1024) -> Tensor:
    """Return left[i] . right[j] for pairs ordered by i, float32 (P,)."""
    if left.device.type != "cpu":
        step *= 64
        return torch.cat([(left[a] * right[b]).sum(dim=1) for a, b in zip(i.split(step), j.split(step), strict=True)])
    ends = torch.cat([i.new_zeros(1), i.bincount(minlength=len(left)).cumsum(0)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that its sparse matrices are beta
        pairs = torch.sparse_csr_tensor(ends, j, left.new_zeros(len(j)), (len(left), len(right)))
    return torch.sparse.sampled_addmm(pairs, left, right.T, beta=0.0).values()  # avoids copying each pair's rows


def _keys_of(scores: Tensor, rows: Tensor) -> Tensor:
    """Encode scores and rows as int64 keys that sort by score, then by descending row.

    The upper half is the float's bits, with those of negative numbers flipped so that they order as integers; the lower
    half encodes the row.
    """
    bits = (scores.float() + 0.0).view(torch.int32)  # -0 + 0 is 0
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32) | (ROW_MASK - rows)


def _scores_of(keys: Tensor) -> Tensor:
    bits = (keys >> 32).int()
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)


def _rows_of(keys: Tensor) -> Tensor:
    return ROW_MASK - (keys & ROW_MASK)


def _distances(
    queries: np.ndarray, gallery: np.ndarray, scores: np.ndarray, rows: np.ndarray, norms: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Convert q.g - |g|^2 / 2 to distances, smallest first.

    Those of near pairs, where the subtraction cancels most digits, are recomputed from the difference.
    """
    found = []
    for part in split_blocks(np.arange(len(queries)), 512):
        lengths_squared = np.square(norms[0][part, None], dtype=np.float64)
        squares = lengths_squared - 2 * scores[part].astype(np.float64)
        query, rank = np.nonzero(squares < 0.01 * (lengths_squared + np.square(norms[1])[rows[part]]))
        differences = queries[part[query]].astype(np.float64) - gallery[rows[part[query], rank]]
        squares[query, rank] = np.einsum("pd,pd->p", differences, differences)
        distances = torch.from_numpy(np.sqrt(squares).astype(np.float32))
        found.append(_keys_of(-distances, torch.from_numpy(rows[part])).sort(dim=1, descending=True).values)
    keys = torch.cat(found) if found else torch.empty(rows.shape, dtype=torch.int64)
    return -_scores_of(keys).numpy(), _rows_of(keys).numpy()


def _is_fast_in_bfloat16() -> bool:
    """Return whether the processor has bfloat16 instructions; emulated, it is slower than float32."""
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in tests)


def _to(block: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(block, dtype=np.float32)).to(device)  # a copy, as mapped files are read-only


def split_blocks(array: np.ndarray, size: int = 16384) -> Iterator[np.ndarray]:
    """Yield consecutive blocks of rows, `size` at a time."""
    for first in range(0, len(array), size):
        yield array[first : first + size]
