"""Areas under the ROC curve from histograms, against scikit-learn and Keras' way of counting."""

import numpy as np
import pytest
import sklearn.metrics as sk
import torch

from carvision.data.table import UNKNOWN
from carvision.metrics import ScoreHistograms


def scores(num: int, num_classes: int, spread: float, gain: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and targets of a network, more or less sure, whose true class has `gain` more than the others."""
    random = torch.Generator().manual_seed(num_classes)
    targets = torch.randint(num_classes, (num,), generator=random)
    logits = spread * torch.randn(num, num_classes, generator=random)
    logits[torch.arange(num), targets] += gain
    return logits * (0.5 + torch.rand(num, 1, generator=random)), targets


def counted(logits: torch.Tensor, targets: torch.Tensor) -> ScoreHistograms:
    metric = ScoreHistograms(logits.shape[1])
    for part in torch.arange(len(targets)).split(300):
        metric.update(logits[part], targets[part], torch.ones(len(part)))
    return metric


@pytest.mark.parametrize(("spread", "gain"), [(0.02, 0.01), (0.5, 0.5), (2, 6), (10, 10)])
@pytest.mark.parametrize(("num", "num_classes"), [(1000, 2), (1000, 10), (1500, 196), (1200, 1716)])
def test_areas_are_scikit_learns(num, num_classes, spread, gain):
    """From a network that has hardly learned, with almost equal probabilities, to one that is always sure."""
    logits, targets = scores(num, num_classes, spread, gain)
    exact = logits.double().softmax(1).numpy()
    metrics = counted(logits, targets).compute()
    is_true = np.eye(num_classes, dtype=bool)[targets]
    present = np.flatnonzero(is_true.any(0))
    # The area by its definition; scikit-learn takes a second for each 500 classes
    expected = np.mean([(exact[~is_true[:, c], c] < exact[is_true[:, c], c][:, None]).mean() for c in present])
    assert metrics["auc"] == pytest.approx(expected, abs=5e-4)
    if num_classes < 1716:
        expected = sk.roc_auc_score(is_true.ravel(), exact.ravel())
        assert metrics["auc_micro"] == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("num_classes", [2, 10, 196])
@pytest.mark.parametrize(("spread", "gain"), [(0.5, 0.5), (2, 4), (4, 8)])
def test_auc_keras_is_what_keras_counts(num_classes, spread, gain):
    """Keras' AUC(): true and false positives above each of 200 thresholds, and the trapezoids between them."""
    logits, targets = scores(800, num_classes, spread, gain)
    probs = logits.double().softmax(1).numpy().ravel()
    is_true = np.eye(num_classes, dtype=bool)[targets].ravel()
    thresholds = [-1e-7, *(i / 199 for i in range(1, 199)), 1 + 1e-7]
    tpr = [np.mean(probs[is_true] > t) for t in thresholds]
    fpr = [np.mean(probs[~is_true] > t) for t in thresholds]
    area = sum((tpr[i] + tpr[i + 1]) / 2 * (fpr[i] - fpr[i + 1]) for i in range(199))
    assert counted(logits, targets).compute()["auc_keras"] == pytest.approx(area, abs=2e-3)


def test_weights_unknown_targets_and_classes_that_do_not_occur():
    logits, targets = scores(200, 8, 2, 3)
    targets[targets == 5] = 6  # 5 never occurs
    weights = torch.ones(200)
    weights[::4] = 0
    metric = ScoreHistograms(8)
    for target, weight in ((UNKNOWN, 0.0), (1, 1.0)):
        metric.update(torch.randn(5, 8), torch.full((5,), target), torch.full((5,), weight))
        assert metric.compute() == {}  # no photos on both sides
    metric.reset()
    unknown = torch.where(weights > 0, targets, UNKNOWN)
    metric.update(torch.where(weights[:, None] > 0, logits, torch.nan), unknown, weights)
    alone = counted(logits[weights > 0], targets[weights > 0])
    assert metric.compute() == alone.compute()
    assert (metric.photos.sum(), metric.positives.sum()) == (150 * 8, 150)
