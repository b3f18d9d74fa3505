"""Linear SVM on the absolute differences of two embeddings: learns from pairs which elements must agree."""

from dataclasses import dataclass

import numpy as np
from sklearn.svm import LinearSVC

from carvision.verification.pairs import Pairs
from carvision.verification.scores import score_in_blocks

# C times the number of training pairs. Larger values, such as scikit-learn's C=1, overfit: accuracy on 5,000 pairs of
# other car models (ImageNet features) was 66 % with 0.5 and 59 % with 50; the cosine's 61 %.
C_OF_ALL = 0.5


@dataclass(frozen=True)
class LinearSvm:
    """A fitted SVM. weights: float32 (D,), with the standardisation folded in; bias."""

    weights: np.ndarray
    bias: float

    def scores(self, embeddings: np.ndarray, pairs: Pairs) -> np.ndarray:
        """Return the distance from the separating plane in units of its margin, float (M,)."""
        return score_in_blocks(lambda a, b: np.abs(a - b) @ self.weights, embeddings, pairs) + self.bias


def fit_linear_svm(embeddings: np.ndarray, pairs: Pairs) -> LinearSvm:
    """Fit to the embeddings, float (N, D), and pairs of both kinds; each element of |a - b| is standardised first.

    Memory: several times 8 bytes per pair and element; 10,000 pairs of 1,280 elements take some 400 MB.
    """
    differences = np.abs(embeddings[pairs.first] - embeddings[pairs.second]).astype(np.float64)
    mean, std = differences.mean(axis=0), differences.std(axis=0)
    std[std <= 1e-6 * max(std.max(), np.finfo(float).tiny)] = np.inf  # constant elements carry no information
    differences -= mean
    differences /= std
    # The primal needs no random order and is faster with more pairs than elements
    found = LinearSVC(C=C_OF_ALL / len(pairs), dual=False).fit(differences, pairs.same)
    weights = found.coef_[0] / std
    return LinearSvm(weights.astype(np.float32), float(found.intercept_[0] - weights @ mean))
