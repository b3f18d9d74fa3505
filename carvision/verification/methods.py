"""Scoring methods by name, fitted to training photos if they need it."""

from collections.abc import Callable, Sequence

import numpy as np

from carvision.verification.joint_bayes import fit_joint_bayes
from carvision.verification.linear_svm import fit_linear_svm
from carvision.verification.pairs import Pairs
from carvision.verification.scores import cosine, l2

Score = Callable[[np.ndarray, Pairs], np.ndarray]  # of embeddings (N, D) and M pairs of their rows -> float (M,)


def fit_methods(methods: Sequence[str], embeddings: np.ndarray, codes: np.ndarray, pairs: Pairs) -> dict[str, Score]:
    """Return {method: scoring function}, fitted to the training photos.

    embeddings float (N, D), codes int (N,) of their classes, pairs of their rows.
    """
    return {method: _fit(method, embeddings, codes, pairs) for method in methods}


def _fit(method: str, embeddings: np.ndarray, codes: np.ndarray, pairs: Pairs) -> Score:
    match method:
        case "cosine":
            return cosine
        case "l2":
            return l2
        case "svm":
            return fit_linear_svm(embeddings, pairs).scores
        case "joint_bayes":
            return fit_joint_bayes(embeddings, codes).scores
    raise ValueError(method)
