"""The linear problems against scikit-learn's solution of them."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from carvision.data.table import UNKNOWN
from carvision.losses import cross_entropy
from carvision.training.linear_solvers import Layer, fit_layer, half_squared_error, standardise, undo


@pytest.fixture
def problem():
    """features (120, 7), targets of 4 classes, weights of which some are 0."""
    random = np.random.default_rng(0)
    centres, targets = random.normal(size=(4, 7)), random.integers(4, size=120)
    features = centres[targets] + 1.5 * random.normal(size=(120, 7))
    weights = random.choice([0.0, 1.0, 2.5], size=120)
    return torch.tensor(features), torch.tensor(targets), torch.tensor(weights)


@pytest.mark.parametrize("l2", [1.0, 0.01])
def test_classes_are_logistic_regression(problem, l2):
    features, targets, weights = problem
    layer = fit_layer(features, targets, weights, 4, cross_entropy, l2, max_steps=500)
    theirs = LogisticRegression(C=1 / (l2 * weights.sum().item()), tol=1e-10, max_iter=10_000)
    theirs.fit(features, targets, sample_weight=weights)
    np.testing.assert_allclose(layer.weight, theirs.coef_, atol=2e-3)
    ours = torch.nn.functional.linear(features, *layer).softmax(1)
    np.testing.assert_allclose(ours, theirs.predict_proba(features), atol=1e-3)


def test_numbers_are_ridge_regression(problem):
    features, _, weights = problem
    values = features @ torch.arange(7.0, dtype=torch.float64) + 3
    layer = fit_layer(features, values, weights, 1, half_squared_error, 0.1, max_steps=500)
    theirs = Ridge(alpha=0.1 * weights.sum().item()).fit(features, values, sample_weight=weights)
    np.testing.assert_allclose(layer.weight[0], theirs.coef_, atol=2e-3)
    assert layer.bias.item() == pytest.approx(theirs.intercept_, abs=5e-3)


def test_unknown_targets_of_weight_zero_change_nothing(problem):
    features, targets, _ = problem
    known = torch.arange(120) < 100
    some = torch.where(known, targets, UNKNOWN)
    ours = fit_layer(features, some, known.double(), 4, cross_entropy, 0.1)
    theirs = fit_layer(features[:100], targets[:100], torch.ones(100).double(), 4, cross_entropy, 0.1)
    torch.testing.assert_close(ours.weight, theirs.weight, atol=1e-3, rtol=0)


def test_a_better_start_ends_in_the_same_place(problem):
    features, targets, weights = problem
    first = fit_layer(features, targets, weights, 4, cross_entropy, 1.0)
    warm = fit_layer(features, targets, weights, 4, cross_entropy, 0.1, first, max_steps=300)
    cold = fit_layer(features, targets, weights, 4, cross_entropy, 0.1, max_steps=300)
    torch.testing.assert_close(warm.weight, cold.weight, atol=3e-3, rtol=0)


def test_standardising_is_undone_in_the_layer():
    features = 5 + 3 * torch.randn(50, 6, dtype=torch.float64)
    mean, scale = standardise(features)
    scaled = (features - mean) / scale
    assert scaled.mean(0).abs().max() < 1e-12 and scaled.var(0, correction=0).mean().item() == pytest.approx(1)
    layer = Layer(torch.randn(3, 6).double(), torch.randn(3).double())
    torch.testing.assert_close(
        torch.nn.functional.linear(features, *undo(layer, mean, scale)), torch.nn.functional.linear(scaled, *layer)
    )
