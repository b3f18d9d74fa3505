"""The covariances, likelihood and scores of Joint Bayes equal those computed photo by photo."""

import itertools

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from carvision.data.table import UNKNOWN
from carvision.embedding.joint_bayes import Covariances, create_joint_bayes, estimate_covariances, fit_joint_bayes
from carvision.embedding.pairs import Pairs
from carvision.errors import InputError

BETWEEN = np.array([[3.0, 1.0, 0.0], [1.0, 2.0, -0.5], [0.0, -0.5, 0.5]])
WITHIN = np.array([[1.0, -0.4, 0.2], [-0.4, 1.5, 0.0], [0.2, 0.0, 0.6]])


def drawn(num_classes: int, most_photos: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw photos of the model with these covariances, one to most_photos of each class."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(num_classes), rng.integers(1, most_photos + 1, num_classes))
    mu = rng.multivariate_normal(np.zeros(3), BETWEEN, num_classes)
    return mu[codes] + rng.multivariate_normal(np.zeros(3), WITHIN, len(codes)), codes


def stacked(between, within, num: int) -> np.ndarray:
    """Return (num * D, num * D), the covariance of num photos of one class, stacked."""
    return np.kron(np.ones((num, num)), between) + np.kron(np.eye(num), within)


def naive_step(x, codes, between, within) -> tuple[np.ndarray, np.ndarray]:
    """One step of EM, class by class, from the joint normal distribution of mu and all photos of the class."""
    of_classes, of_photos = np.zeros((3, 3)), np.zeros((3, 3))
    for c in np.unique(codes):
        photos = x[codes == c]
        with_mu = np.tile(between, len(photos))  # covariance of mu with the photos beside each other
        gain = with_mu @ np.linalg.inv(stacked(between, within, len(photos)))
        mu, left = gain @ photos.ravel(), between - gain @ with_mu.T
        of_classes += np.outer(mu, mu) + left
        for photo in photos:
            of_photos += np.outer(photo - mu, photo - mu) + left
    return of_classes / len(np.unique(codes)), of_photos / len(x)


def test_likelihood_and_steps_equal_a_loop():
    x, codes = drawn(12, 4)
    steps = [estimate_covariances(x, codes, 0, max_steps) for max_steps in (1, 2, 3)]
    for one, next_one in itertools.pairwise(steps):
        covariances = [stacked(one.between, one.within, num) for num in np.bincount(codes)]
        each = [multivariate_normal.logpdf(x[codes == c].ravel(), cov=cov) for c, cov in enumerate(covariances)]
        assert next_one.log_likelihoods[-1] == pytest.approx(sum(each) / len(x))
        between, within = naive_step(x, codes, one.between, one.within)
        np.testing.assert_allclose(next_one.between, between, atol=1e-12)
        np.testing.assert_allclose(next_one.within, within, atol=1e-12)


def test_the_prior_counts_as_photos_of_equal_variance_in_all_directions_and_the_likelihood_never_falls():
    for prior_photos in (0, 5, None):
        steps = np.diff(estimate_covariances(*drawn(15, 3), prior_photos).log_likelihoods)
        assert len(steps) > 3 and (steps > -1e-12).all()
    x, codes = drawn(40, 5)
    one, two = (estimate_covariances(x, codes, 7, max_steps) for max_steps in (1, 2))
    without = naive_step(x, codes, one.between, one.within)[1]
    added = (len(x) + 7) * two.within - len(x) * without
    scatter = sum(np.square(x[codes == c] - x[codes == c].mean(axis=0)).sum() for c in range(40))
    np.testing.assert_allclose(added, 7 * scatter / (len(x) - 40) / 3 * np.eye(3), rtol=1e-6, atol=1e-9)


def test_scores_are_the_ratio_of_the_densities():
    rng = np.random.default_rng(0)
    mean, directions = rng.normal(size=3), np.linalg.qr(rng.normal(size=(3, 3)))[0]
    x = 2 * rng.normal(size=(9, 3)) + mean
    pairs = Pairs(rng.integers(0, 9, 40), rng.integers(0, 9, 40), np.ones(40, bool))
    for rank in (3, 2, 1):  # `between` of a few classes has no full rank
        low = np.linalg.cholesky(BETWEEN)[:, :rank]
        between = low @ low.T
        scores = create_joint_bayes(Covariances(between, WITHIN, []), mean, directions).scores(x, pairs)
        z = (x - mean) @ directions
        alone = multivariate_normal(cov=between + WITHIN)
        together = multivariate_normal(cov=stacked(between, WITHIN, 2))
        for score, i, j in zip(scores, pairs.first, pairs.second, strict=True):
            wanted = together.logpdf(np.concatenate([z[i], z[j]])) - alone.logpdf(z[i]) - alone.logpdf(z[j])
            assert score == pytest.approx(wanted, abs=1e-6)


def test_constant_and_copied_directions_unknown_photos_and_a_shift_do_not_matter():
    x, codes = drawn(60, 5)
    pairs = Pairs(np.arange(20), np.arange(20) + 20, np.ones(20, bool))
    plain = fit_joint_bayes(x, codes).scores(x, pairs)
    wide = np.concatenate([x, np.full((len(x), 2), 7.0), x[:, :1]], axis=1).astype(np.float32) + 1
    wide = np.concatenate([wide, wide[:1] + 50])
    found = fit_joint_bayes(wide, np.append(codes, UNKNOWN))
    assert found.projection.shape == (6, 3)
    assert np.corrcoef(found.scores(wide, pairs), plain)[0, 1] > 0.99


@pytest.mark.parametrize(("num", "dims"), [(3, 40), (200, 1)])
def test_few_photos_with_many_dimensions(num, dims):
    rng = np.random.default_rng(0)
    codes = np.arange(num) // 2
    x = (rng.normal(size=(num // 2 + 1, dims))[codes] + 0.1 * rng.normal(size=(num, dims))).astype(np.float32)
    found = fit_joint_bayes(x, codes)
    scores = found.scores(x, Pairs(np.array([0, 0]), np.array([1, 2]), np.array([True, False])))
    assert np.isfinite(scores).all() and scores[0] > scores[1]
    assert len(found.ratios) <= max(1, num // 8)


def test_too_few_classes_or_photos_are_errors():
    x = np.random.default_rng(0).normal(size=(4, 3))
    for codes in ([0, 0, 0, 0], [0, 1, 2, 3], [0, 0, UNKNOWN, UNKNOWN]):
        with pytest.raises(InputError, match=r"joint_bayes: \d training photos of \d classes are too few"):
            fit_joint_bayes(x, np.array(codes))
    with pytest.raises(InputError, match="the embeddings of all 4 training photos are the same"):
        fit_joint_bayes(np.ones((4, 3)), np.array([0, 0, 1, 1]))
