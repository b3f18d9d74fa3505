"""Joint Bayesian: Chen et al., "Bayesian Face Revisited: A Joint Formulation", ECCV 2012.

An embedding is x = m + mu + eps: mu ~ N(0, between) is shared by the photos of a class, eps ~ N(0, within) is specific
to a photo. The score of two photos is the log-likelihood ratio of "one mu" against "two mus". This is PLDA with full
covariances, the "two-covariance model".

The covariances are estimated by EM. The paper's M step uses the covariances of the expected mu and eps, as if these had
been observed. Here it is exact: the posterior covariances of mu and eps, given the photos, are added. Without them both
matrices come out too small, `between` most where classes have few photos; with them the likelihood never falls.

Both matrices are diagonal in one basis, in which within is the identity and between has the entries `ratios`. There all
is computed element by element, and a step costs a few products of (D, D) matrices, however many photos there are.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy.linalg import eigh

from carvision.data.table import UNKNOWN
from carvision.embedding.pairs import Pairs
from carvision.errors import InputError

# Pair accuracy on car models not trained on, with 560 training photos (ImageNet features): 70 to 71 % with 48 to 100
# dimensions, 65 % with 256, 51 % with 512; 61 % by the cosine.
MAX_DIMS, PHOTOS_A_DIM = 256, 8
MAX_STEPS, TOLERANCE = 100, 1e-4  # stop when a step adds less than this to the log-likelihood per photo
LEAST_VARIANCE = 1e-9  # of a direction, as a fraction of the largest: below is float32's rounding


@dataclass(frozen=True)
class JointBayes:
    """A fitted model.

    mean (D,); projection (D, K) to the basis in which within is 1 and between `ratios` (K,), all above 0.
    """

    mean: np.ndarray
    projection: np.ndarray
    ratios: np.ndarray

    def scores(self, embeddings: np.ndarray, pairs: Pairs) -> np.ndarray:
        """Return log p(x1, x2 | same class) - log p(x1, x2 | different classes), float64 (M,).

        In one direction with ratio r, same photos have the covariance [[1 + r, r], [r, 1 + r]], of determinant 1 + 2 r,
        and different ones (1 + r) times the identity; the formula follows by arithmetic.
        """
        r = self.ratios
        x = (embeddings - self.mean) @ self.projection
        own = np.square(x) @ (r**2 / ((1 + r) * (1 + 2 * r)))  # the terms of single photos
        both = pairs.dot(x * np.sqrt(r / (1 + 2 * r)))
        return both - (own[pairs.first] + own[pairs.second]) / 2 + (np.log1p(r) - np.log1p(2 * r) / 2).sum()


@dataclass(frozen=True)
class Covariances:
    """Estimated covariances between, within: float64 (D, D).

    log_likelihoods: per photo, of the matrices before each step, including the prior's term.
    """

    between: np.ndarray
    within: np.ndarray
    log_likelihoods: list[float]


def fit_joint_bayes(embeddings: np.ndarray, codes: np.ndarray) -> JointBayes:
    """Fit to the embeddings, float (N, D), of photos with the class codes int (N,); UNKNOWN is ignored.

    Keeps the directions of largest variance (PCA): at most MAX_DIMS, one per PHOTOS_A_DIM photos, none constant. Raises
    InputError with fewer than two classes, or without a class that has two photos.
    """
    known = codes != UNKNOWN
    x, (_, codes) = embeddings[known].astype(np.float64), np.unique(codes[known], return_inverse=True)
    counts = np.bincount(codes)
    if len(counts) < 2 or counts.max() < 2:
        raise InputError(
            f"joint_bayes: {len(x):,} training photos of {len(counts)} classes are too few: it needs two classes or "
            "more, and two photos or more of one of them; leave it out with --methods"
        )
    mean = x.mean(axis=0)
    x -= mean
    variances, directions = np.linalg.eigh(x.T @ x / len(x))
    kept = np.flatnonzero(variances > LEAST_VARIANCE * max(variances[-1], np.finfo(float).tiny))
    kept = kept[-min(MAX_DIMS, max(1, len(x) // PHOTOS_A_DIM)) :]
    if not len(kept):
        raise InputError(f"joint_bayes: the embeddings of all {len(x):,} training photos are the same")
    directions = directions[:, kept]
    return create_joint_bayes(estimate_covariances(x @ directions, codes), mean, directions)


def create_joint_bayes(covariances: Covariances, mean: np.ndarray, directions: np.ndarray) -> JointBayes:
    """Build the model from the covariances of (x - mean) @ directions; x (D,), directions (D, K)."""
    basis, ratios = _diagonalise(covariances.between, covariances.within)
    informative = ratios > LEAST_VARIANCE * ratios.max()
    return JointBayes(mean, directions @ basis[:, informative], ratios[informative])


def estimate_covariances(
    x: np.ndarray, codes: np.ndarray, prior_photos: float | None = None, max_steps: int = MAX_STEPS
) -> Covariances:
    """Run EM on x, float64 (N, D), centred, with codes 0..C-1; every class has a photo, at least one has two.

    prior_photos: `within` is estimated as if there were so many additional photos (None: D), with the same variance in
    all directions. This keeps it invertible if classes have few photos, and directions of almost no variance have no
    influence. EM then increases the likelihood times an inverse Wishart density of `within`; with 0, the likelihood.
    """
    (num, dims), counts = x.shape, np.bincount(codes).astype(np.float64)[:, None]
    prior_photos = dims if prior_photos is None else prior_photos
    means = np.zeros((len(counts), dims))
    np.add.at(means, codes, x)
    means /= counts
    scatter = x.T @ x - (means * counts).T @ means  # of the photos around their class means
    # Initial variance of eps in any direction; not 0 even if all photos of a class are the same
    prior = (np.trace(scatter) / (num - len(counts)) + 1e-9 * np.trace(x.T @ x) / num) / dims
    between, within = means.T @ means / len(counts), _with_prior(scatter, num, prior_photos * prior, prior_photos)
    log_likelihoods: list[float] = []
    for _ in range(max_steps):
        basis, ratios = _diagonalise(between, within)
        value, of_classes, of_photos = _expect(means @ basis, basis.T @ scatter @ basis, counts, ratios)
        value -= (num + prior_photos) / 2 * np.linalg.slogdet(within)[1]
        value -= prior_photos * prior / 2 * np.square(basis).sum()
        log_likelihoods.append(float(value / num))
        if len(log_likelihoods) > 1 and log_likelihoods[-1] - log_likelihoods[-2] < TOLERANCE:
            break
        back = within @ basis  # the inverse of the basis' transpose
        between = back @ (of_classes / len(counts)) @ back.T
        within = _with_prior(back @ of_photos @ back.T, num, prior_photos * prior, prior_photos)
    return Covariances(between, within, log_likelihoods)


def _with_prior(scatter: np.ndarray, num: int, added: float, prior_photos: float) -> np.ndarray:
    return (scatter + added * np.eye(len(scatter))) / (num + prior_photos)


def _diagonalise(between: np.ndarray, within: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (basis, ratios (D,)): basis.T @ within @ basis is the identity, basis.T @ between @ basis diag(ratios)."""
    ratios, basis = cast(tuple[np.ndarray, np.ndarray], eigh((between + between.T) / 2, (within + within.T) / 2))
    return basis, ratios.clip(min=0)


def _expect(
    means: np.ndarray, scatter: np.ndarray, counts: np.ndarray, ratios: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the log-likelihood of all photos, without the determinant of `within`, which is 1 in this basis; and the
    expected sums of mu mu.T over the classes and of eps eps.T over the photos, each (D, D).

    All in the basis: class means (C, D), scatter around them (D, D), counts of photos (C, 1). The mean of n photos has
    the variance ratio + 1 / n; the scatter around it is that of eps. Given its n photos, mu of a class is normal with
    mean n r / (1 + n r) * (their mean) and variance r / (1 + n r); their eps share its uncertainty.
    """
    growth = 1 + counts * ratios
    squares = np.trace(scatter) + (counts * np.square(means) / growth).sum()
    log_likelihood = -(counts.sum() * len(ratios) * np.log(2 * np.pi) + np.log(growth).sum() + squares) / 2
    variance = ratios / growth
    mu = counts * variance * means
    rest = means - mu
    of_classes = mu.T @ mu + np.diag(variance.sum(axis=0))
    return log_likelihood, of_classes, scatter + (counts * rest).T @ rest + np.diag((counts * variance).sum(axis=0))
