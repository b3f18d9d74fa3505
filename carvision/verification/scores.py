"""Scores of pairs that need no training: float (M,), higher for photos more likely to be of the same class."""

from collections.abc import Callable

import numpy as np

from carvision.verification.pairs import Pairs

BLOCK = 4096  # pairs whose embeddings are in memory at a time


def score_in_blocks(
    score: Callable[[np.ndarray, np.ndarray], np.ndarray], values: np.ndarray, pairs: Pairs
) -> np.ndarray:
    """Apply score(values of first photos, values of second photos) to blocks of pairs; return one array."""
    starts = range(0, len(pairs), BLOCK)
    return np.concatenate(
        [score(values[pairs.first[i : i + BLOCK]], values[pairs.second[i : i + BLOCK]]) for i in starts]
    )


def products(values: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Return the scalar product of the two rows (D,) of values (N, D) for each pair."""
    return score_in_blocks(lambda a, b: np.einsum("md,md->m", a, b), values, pairs)


def cosine(embeddings: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Return the cosine of the angle between both embeddings, -1 to 1; 0 if one of them is 0."""
    lengths = np.linalg.norm(embeddings, axis=1).clip(min=np.finfo(np.float32).tiny)
    return products(embeddings, pairs) / lengths[pairs.first] / lengths[pairs.second]


def l2(embeddings: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Return the negative Euclidean distance. For embeddings of length 1 it orders pairs as the cosine does."""
    return score_in_blocks(lambda a, b: -np.linalg.norm(a - b, axis=1), embeddings, pairs)
