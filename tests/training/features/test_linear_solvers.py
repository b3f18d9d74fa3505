"""The linear solvers against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge

from carvision.data.table import UNKNOWN
from carvision.losses.classification import cross_entropy
from carvision.training.features.linear_start import Layer, class_frame, fit_layer, half_squared_error, plain_frame


@pytest.fixture
def problem():
    """features (120, 7), targets of 4 classes, weights of which some are 0."""
    random = np.random.default_rng(0)
    centres, targets = random.normal(size=(4, 7)), random.integers(4, size=120)
    features = centres[targets] + 1.5 * random.normal(size=(120, 7))
    weights = random.choice([0.0, 1.0, 2.5], size=120)
    return torch.tensor(features), torch.tensor(targets), torch.tensor(weights)


@pytest.mark.parametrize("l2", [1.0, 0.01])
def test_classes_are_fitted_by_logistic_regression(problem, l2):
    features, targets, weights = problem
    layer = fit_layer(features, targets, weights, 4, cross_entropy, l2, max_steps=500)
    theirs = LogisticRegression(C=1 / (l2 * weights.sum().item()), tol=1e-10, max_iter=10_000)
    theirs.fit(features, targets, sample_weight=weights)
    np.testing.assert_allclose(layer.weight, theirs.coef_, atol=2e-3)
    ours = torch.nn.functional.linear(features, *layer).softmax(1)
    np.testing.assert_allclose(ours, theirs.predict_proba(features), atol=1e-3)


def test_numbers_are_fitted_by_ridge_regression(problem):
    features, _, weights = problem
    values = features @ torch.arange(7.0, dtype=torch.float64) + 3
    layer = fit_layer(features, values, weights, 1, half_squared_error, 0.1, max_steps=500)
    theirs = Ridge(alpha=0.1 * weights.sum().item()).fit(features, values, sample_weight=weights)
    np.testing.assert_allclose(layer.weight[0], theirs.coef_, atol=2e-3)
    assert layer.bias.item() == pytest.approx(theirs.intercept_, abs=5e-3)


def test_targets_of_weight_zero_change_nothing(problem):
    features, targets, _ = problem
    known = torch.arange(120) < 100
    some = torch.where(known, targets, UNKNOWN)
    ours = fit_layer(features, some, known.double(), 4, cross_entropy, 0.1)
    theirs = fit_layer(features[:100], targets[:100], torch.ones(100).double(), 4, cross_entropy, 0.1)
    torch.testing.assert_close(ours.weight, theirs.weight, atol=1e-3, rtol=0)


def test_a_warm_start_ends_at_the_same_minimum(problem):
    features, targets, weights = problem
    first = fit_layer(features, targets, weights, 4, cross_entropy, 1.0)
    warm = fit_layer(features, targets, weights, 4, cross_entropy, 0.1, first, max_steps=300)
    cold = fit_layer(features, targets, weights, 4, cross_entropy, 0.1, max_steps=300)
    torch.testing.assert_close(warm.weight, cold.weight, atol=3e-3, rtol=0)


def test_a_frame_is_undone_in_the_layer(problem):
    features, targets, _ = problem
    layer = Layer(torch.randn(3, 7).double(), torch.randn(3).double())
    for frame in (plain_frame(features), class_frame(features, targets, 4, 0.3)):
        framed = frame.apply(features)
        assert framed.mean(0).abs().max() < 1e-12 and framed.square().mean().item() == pytest.approx(1)
        scores = torch.nn.functional.linear(framed, *layer)
        torch.testing.assert_close(torch.nn.functional.linear(features, *frame.undo(layer)), scores)


@pytest.mark.parametrize("shrinkage", [0.0, 0.4, 1.0])
def test_the_shrunk_within_class_covariance_becomes_white(problem, shrinkage):
    features, targets, _ = problem
    frame = class_frame(features, targets, 4, shrinkage)
    within = np.concatenate([(x - x.mean(0)) for x in (features[targets == code].numpy() for code in range(4))])
    covariance = within.T @ within / len(within)
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / 7 * np.eye(7)
    matrix = frame.matrix.numpy()
    white = matrix @ shrunk @ matrix.T
    np.testing.assert_allclose(white / white[0, 0], np.eye(7), atol=1e-10)


def test_a_strong_penalty_gives_discriminant_analysis(problem):
    """The direction between two classes is that of scikit-learn's LDA, whatever the scale of single features."""
    features, targets, _ = problem
    two = targets < 2
    x, y = features[two] * torch.tensor([100.0, 1, 1, 1, 1, 1, 0.01]), targets[two]
    frame = class_frame(x, y, 2, 0.0)
    layer = frame.undo(fit_layer(frame.apply(x), y, torch.ones(len(y)).double(), 2, cross_entropy, 1e3, max_steps=500))
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y).coef_[0]
    ours = (layer.weight[1] - layer.weight[0]).numpy()
    np.testing.assert_allclose(ours / np.linalg.norm(ours), theirs / np.linalg.norm(theirs), atol=0.02)


def test_classes_of_one_or_no_photo_have_a_frame():
    features = torch.randn(3, 5)
    frame = class_frame(features, torch.tensor([0, 2, 7]), 9, 0.7)
    torch.testing.assert_close(frame.apply(features), plain_frame(features).apply(features))
