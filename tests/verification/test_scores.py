"""Cosine, distance and linear SVM equal plain loops and scikit-learn's."""

import math

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from carvision.verification import pairs as pairs_module
from carvision.verification.pairs import Pairs
from carvision.verification.score import C_OF_ALL, cosine, fit_linear_svm, l2


def made(num=30, num_pairs=100, dims=6, seed=0) -> tuple[np.ndarray, np.ndarray, Pairs]:
    """Return embeddings, the codes of their classes, and pairs."""
    rng = np.random.default_rng(seed)
    codes = np.arange(num) % 5
    values = (rng.normal(size=(5, dims))[codes] + rng.normal(size=(num, dims))).astype(np.float32)
    first, second = rng.integers(0, num, (2, num_pairs))
    return values, codes, Pairs(first, second, codes[first] == codes[second])


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_cosine_and_distance_equal_a_loop_in_blocks_of_any_size(monkeypatch, block):
    monkeypatch.setattr(pairs_module, "BLOCK", block)
    values, _, pairs = made()
    cosines, distances = cosine(values, pairs), l2(values, pairs)
    assert cosines.shape == distances.shape == (100,)
    for m, (i, j) in enumerate(zip(pairs.first, pairs.second, strict=True)):
        a, b = values[i].astype(float), values[j].astype(float)
        assert cosines[m] == pytest.approx((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()), abs=1e-5)
        assert distances[m] == pytest.approx(-math.sqrt(((a - b) ** 2).sum()), abs=1e-5)
    zeros = np.array([[0, 0], [1, 2]], dtype=np.float32)
    assert cosine(zeros, Pairs(np.array([0]), np.array([1]), np.array([True]))).tolist() == [0]


def test_the_linear_svm_is_scikit_learns_on_standardised_differences():
    values, _, pairs = made()
    values[:, 2] = 3  # an element that is constant
    found = fit_linear_svm(values, pairs)
    differences = np.array([abs(values[i] - values[j]) for i, j in zip(pairs.first, pairs.second, strict=True)])
    scaler = StandardScaler().fit(differences)
    svm = LinearSVC(C=C_OF_ALL / 100, dual=False).fit(scaler.transform(differences), pairs.same)
    wanted = svm.decision_function(scaler.transform(differences))
    np.testing.assert_allclose(found.scores(values, pairs), wanted, atol=1e-4)
    assert found.weights[2] == 0
