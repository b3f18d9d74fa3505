"""Classify by k nearest neighbours, for several k from one search, as scikit-learn's KNeighborsClassifier does."""

from collections.abc import Sequence

import numpy as np
import torch

from carvision.metrics.heads import figures_of

METRICS = {
    "accuracy": "top1",
    "balanced_accuracy": "balanced_accuracy",
    "precision": "precision_weighted",
    "recall": "recall_weighted",
    "f1": "f1_weighted",
}


def vote(
    codes: np.ndarray, distances: np.ndarray, ks: Sequence[int], votes: str, num_classes: int
) -> dict[int, np.ndarray]:
    """Return {k: the class with most votes among the k nearest, int64 (B,)}; ties go to the lowest class.

    codes int (B, K): classes of the neighbours, the nearest first. distances float (B, K). votes "uniform": one each;
    "distance": 1 / distance each; if neighbours at distance 0 exist, only these vote.
    """
    weights = np.ones(codes.shape)
    if votes == "distance":
        zero = distances <= 0
        weights = np.where(zero[:, :1], zero, 1 / np.where(zero, 1, distances).astype(np.float64))
    sums, queries, predicted = np.zeros((len(codes), num_classes)), np.arange(len(codes)), {}
    for rank in range(max(ks)):
        sums[queries, codes[:, rank]] += weights[:, rank]
        if rank + 1 in ks:
            predicted[rank + 1] = sums.argmax(axis=1)
    return predicted


def knn_metrics(true: np.ndarray, predicted: np.ndarray, num_classes: int) -> dict[str, float]:
    """Return accuracy, balanced_accuracy (mean recall of the classes that occur), and precision, recall and F1.

    The last three are weighted by class size, with 0 / 0 = 0. true, predicted: int (N,).
    """
    counts = [np.bincount(codes, minlength=num_classes) for codes in (true[true == predicted], true, predicted)]
    found = figures_of(*(torch.from_numpy(values).double() for values in counts))
    return {name: float(found[metric]) for name, metric in METRICS.items()}
