"""k-nearest-neighbour classification, for several k from one search, as scikit-learn's KNeighborsClassifier does it."""

from collections.abc import Sequence

import numpy as np
import torch

from carvision.metrics.heads import figures_of

VOTES = ("uniform", "distance")
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
    """{k: the class with most votes among the k nearest, int64 (B,)}; of equal votes the lowest class.

    codes int (B, K): of the neighbours, the nearest first. distances float (B, K). votes "uniform": each has one;
    "distance": 1 / its distance; where there are neighbours at a distance of 0, these alone vote.
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
    """accuracy; balanced_accuracy, the mean recall of the classes that occur; precision, recall and F1 weighted by the
    size of the classes, 0 where they are 0 / 0. int (N,) both."""
    counts = [np.bincount(codes, minlength=num_classes) for codes in (true[true == predicted], true, predicted)]
    found = figures_of(*(torch.from_numpy(values).double() for values in counts))
    return {name: float(found[metric]) for name, metric in METRICS.items()}
