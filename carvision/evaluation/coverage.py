"""Selective accuracy: accuracy on the most confident photos, if the others are left to a person."""

import math

import numpy as np
import pandas as pd

COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)


def accuracy_by_coverage(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the accuracy on the k most confident photos, and their lowest confidence; float64 (N,) each, k = 1..N.

    Photos of equal confidence can't be ranked: each counts with their mean, as if their order were random.
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence = confidence[order].astype(np.float64)
    _, group = np.unique(-sorted_confidence, return_inverse=True)
    mean = np.bincount(group, right[order]) / np.bincount(group)
    return np.cumsum(mean[group]) / np.arange(1, len(order) + 1), sorted_confidence


def coverage_table(confidence: np.ndarray, right: np.ndarray, coverages: tuple = COVERAGES) -> pd.DataFrame:
    """Return one row per coverage: coverage, photos (rounded up), accuracy on them, threshold.

    threshold: the counted photos have at least this confidence; others that equal it exactly would pass it, too.
    """
    accuracy, sorted_confidence = accuracy_by_coverage(confidence, right)
    counts = [math.ceil(share * len(accuracy)) for share in coverages]
    last = np.array(counts) - 1
    return pd.DataFrame(
        {
            "coverage": coverages,
            "photos": counts,
            "accuracy": accuracy[last],
            "threshold": sorted_confidence[last],
        }
    )


def area_under_risk(confidence: np.ndarray, right: np.ndarray) -> float:
    """Return the mean of 1 - accuracy over all coverages (AURC, Geifman et al. 2019).

    0 is best; an uninformative confidence gives 1 - accuracy.
    """
    accuracy, _ = accuracy_by_coverage(confidence, right)
    return float(1 - accuracy.mean())
