"""Cosine, distance and linear SVM, against plain loops."""

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from carvision.verification import pairs as of_pairs
from carvision.verification.pairs import Pairs
from carvision.verification.score import C_OF_ALL, cosine, fit_linear_svm, fit_methods, l2


def made(num=30, num_pairs=100, dims=6, seed=0) -> tuple[np.ndarray, np.ndarray, Pairs]:
    """Embeddings, codes of their classes, pairs."""
    rng = np.random.default_rng(seed)
    codes = np.arange(num) % 5
    values = (rng.normal(size=(5, dims))[codes] + rng.normal(size=(num, dims))).astype(np.float32)
    first, second = rng.integers(0, num, (2, num_pairs))
    return values, codes, Pairs(first, second, codes[first] == codes[second])


@pytest.mark.parametrize("block", [1, 7, 100, 4096])
def test_cosine_and_distance_in_blocks_as_one_by_one(monkeypatch, block):
    monkeypatch.setattr(of_pairs, "BLOCK", block)
    values, _, pairs = made()
    cosines, distances = cosine(values, pairs), l2(values, pairs)
    assert cosines.shape == distances.shape == (100,)
    for m, (i, j) in enumerate(zip(pairs.first, pairs.second, strict=True)):
        a, b = values[i].tolist(), values[j].tolist()
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        lengths = sum(x * x for x in a) ** 0.5 * sum(y * y for y in b) ** 0.5
        assert cosines[m] == pytest.approx(dot / lengths, abs=1e-5)
        assert distances[m] == pytest.approx(-(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5), abs=1e-5)


def test_an_embedding_of_zeros_has_a_cosine_of_0():
    values = np.array([[0, 0], [1, 2]], dtype=np.float32)
    assert cosine(values, Pairs(np.array([0]), np.array([1]), np.array([True]))).tolist() == [0]


def test_linear_svm_is_that_of_scikit_learn_on_standardised_differences():
    values, _, pairs = made()
    values[:, 2] = 3  # an element that is constant
    found = fit_linear_svm(values, pairs)
    differences = np.array([abs(values[i] - values[j]) for i, j in zip(pairs.first, pairs.second, strict=True)])
    scaler = StandardScaler().fit(differences)
    svm = LinearSVC(C=C_OF_ALL / 100, dual=False).fit(scaler.transform(differences), pairs.same)
    wanted = svm.decision_function(scaler.transform(differences))
    np.testing.assert_allclose(found.scores(values, pairs), wanted, atol=1e-4)
    assert found.weights[2] == 0


def test_all_methods_score_pairs_of_one_class_higher():
    values, codes, pairs = made(num=200, num_pairs=500)
    for name, score in fit_methods(["joint_bayes", "cosine", "svm", "l2"], values, codes, pairs).items():
        other_values, _, other = made(num=200, num_pairs=500)
        of_pairs = score(other_values, other)
        assert of_pairs.shape == (500,) and np.isfinite(of_pairs).all()
        assert of_pairs[other.same].mean() > of_pairs[~other.same].mean() + 0.1, name
