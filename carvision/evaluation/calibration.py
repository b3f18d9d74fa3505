"""Calibration: how far a network's confidence can be trusted, and the temperature that corrects it."""

import logging
import math

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from carvision.data.table import UNKNOWN

log = logging.getLogger(__name__)

NUM_BINS = 15  # as in Guo et al. 2017
COLDEST, HOTTEST = 0.05, 20.0
BLOCK = 1 << 22


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the T between 0.05 and 20 for which softmax(logits / T) has the smallest negative log likelihood.

    logits (N, C); targets int64 (N,), UNKNOWN is ignored. Guo et al. 2017, section 4.2. If every photo is right, the
    optimum is T = 0, with which the first mistake elsewhere would cost without bound; such photos can't determine a
    temperature, and 1 is returned. The same holds without known photos and for a single class.
    """
    known = targets != UNKNOWN
    logits, targets = logits[known], targets[known]
    if not len(targets) or logits.shape[1] < 2 or not torch.isfinite(logits).all():
        log.warning("no temperature can be fitted to %d photos with %d logits each; it is 1", *logits.shape)
        return 1.0
    if (logits.argmax(dim=1) == targets).all():
        log.warning(
            "all of %s photos are right, so that they can't determine a temperature; it is 1", f"{len(targets):,}"
        )
        return 1.0
    # Of 1 / T the likelihood is concave, so that it has one maximum, also over log T.
    bounds = (math.log(COLDEST), math.log(HOTTEST))
    found = minimize_scalar(
        lambda log_t: _nll(logits, targets, math.exp(log_t)), bounds=bounds, method="bounded", options={"xatol": 1e-4}
    )
    temperature = math.exp(found.x)
    if not COLDEST * 1.001 < temperature < HOTTEST / 1.001:
        log.warning("the temperature of %s photos is at its bound, %.4g", f"{len(targets):,}", temperature)
    return temperature


def _nll(logits: Tensor, targets: Tensor, temperature: float) -> float:
    total = 0.0
    step = max(1, BLOCK // logits.shape[1])
    for part, of_part in zip(logits.split(step), targets.split(step), strict=True):
        part = part.double() / temperature
        total += float((part.logsumexp(dim=1) - part.gather(1, of_part[:, None])[:, 0]).sum())
    return total / len(targets)


def bin_of(confidence: np.ndarray, num_bins: int = NUM_BINS) -> np.ndarray:
    """Return the bin index of each confidence, int64 (N,); bins have equal width and include only their upper edge."""
    edges = np.arange(1, num_bins) / num_bins
    return np.searchsorted(edges, np.asarray(confidence, np.float64), side="left")


def reliability(probs: Tensor, targets: Tensor, num_bins: int = NUM_BINS) -> pd.DataFrame:
    """Tabulate the probability of the most probable class by bins: low, high, photos, confidence (mean), accuracy.

    probs (N, C); targets int64 (N,), all known. Confidence and accuracy are NaN in an empty bin.
    """
    confidence, likeliest = (values.numpy() for values in probs.max(dim=1))
    right = likeliest == targets.numpy()
    bins = bin_of(confidence, num_bins)
    photos = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(bins, values, num_bins) / photos for values in (confidence.astype(float), right)]
    low = np.arange(num_bins) / num_bins
    return pd.DataFrame(
        {"low": low, "high": low + 1 / num_bins, "photos": photos, "confidence": means[0], "accuracy": means[1]}
    )


def calibration_error(bins: pd.DataFrame) -> float:
    """Return the expected calibration error: |accuracy - confidence|, weighted by photos (Guo et al. 2017, eq. 3)."""
    distance = (bins["accuracy"] - bins["confidence"]).abs()
    return float((distance.fillna(0) * bins["photos"]).sum() / bins["photos"].sum()) if bins["photos"].any() else np.nan
