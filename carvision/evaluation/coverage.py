"""Accuracy on the photos of which a network is surest: what is gained by leaving the others to a person."""

import math

import numpy as np
import pandas as pd

COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)


def accuracy_by_coverage(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64 (N,) each: accuracy on the k surest photos, and the confidence of the least sure of them, k = 1..N.

    Photos of equal confidence can't be told apart: each counts with their mean, as if they stood in random order.
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence = confidence[order].astype(np.float64)
    _, group = np.unique(-sorted_confidence, return_inverse=True)
    mean = np.bincount(group, right[order]) / np.bincount(group)
    return np.cumsum(mean[group]) / np.arange(1, len(order) + 1), sorted_confidence


def coverage_table(confidence: np.ndarray, right: np.ndarray, coverages: tuple = COVERAGES) -> pd.DataFrame:
    """A row a coverage: coverage, photos (rounded up), accuracy on them, threshold.

    threshold: the photos whose confidence is at least this are the ones counted, and any others that equal the last.
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
    """The mean of 1 - accuracy over all coverages (AURC, Geifman et al. 2019); 0 is best, and 1 - accuracy is what a
    confidence gives that says nothing."""
    accuracy, _ = accuracy_by_coverage(confidence, right)
    return float(1 - accuracy.mean())
