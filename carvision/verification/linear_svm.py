"""A linear SVM on the absolute differences of two embeddings: which elements must agree, learned from pairs."""

from dataclasses import dataclass

import numpy as np
from sklearn.svm import LinearSVC

from carvision.verification.pairs import Pairs
from carvision.verification.scores import score_in_blocks

# C times the number of training pairs. With a larger one, as scikit-learn's C=1, it learns its pairs by heart: of 5,000
# pairs of cars of other models (ImageNet features) it told 66 % rightly with 0.5, 59 % with 50, and the cosine 61 %.
C_OF_ALL = 0.5


@dataclass(frozen=True)
class LinearSvm:
    """weights float32 (D,), which hold the standardisation as well, and bias."""

    weights: np.ndarray
    bias: float

    def scores(self, embeddings: np.ndarray, pairs: Pairs) -> np.ndarray:
        """float (M,): the distance from the plane between both kinds of pairs, in units of its margin."""
        return score_in_blocks(lambda a, b: np.abs(a - b) @ self.weights, embeddings, pairs) + self.bias


def fit_linear_svm(embeddings: np.ndarray, pairs: Pairs) -> LinearSvm:
    """From the embeddings float (N, D) and pairs of either kind. Each element of |a - b| is standardised first.

    Needs 8 bytes for each pair and element several times over: 10,000 pairs of 1,280 take some 400 MB.
    """
    differences = np.abs(embeddings[pairs.first] - embeddings[pairs.second]).astype(np.float64)
    mean, std = differences.mean(axis=0), differences.std(axis=0)
    std[std <= 1e-6 * max(std.max(), np.finfo(float).tiny)] = np.inf  # an element that is constant tells nothing
    differences -= mean
    differences /= std
    # Solved in the primal, which needs no random order and with more pairs than elements is faster
    found = LinearSVC(C=C_OF_ALL / len(pairs), dual=False).fit(differences, pairs.same)
    weights = found.coef_[0] / std
    return LinearSvm(weights.astype(np.float32), float(found.intercept_[0] - weights @ mean))
