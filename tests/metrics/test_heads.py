"""Metrics of one head against scikit-learn, and loops over photos and classes."""

import math
import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
import torch

from carvision.metrics import HeadMetrics

NUM_CLASSES = 6


def head_batch(num: int, num_classes: int, occurring: list[int], predicted: list[int]) -> dict:
    """Return photos of the classes `occurring`, predicted as those of `predicted`; a fifth has weight 0."""
    random = torch.Generator().manual_seed(0)
    draw = lambda choices: torch.tensor(choices)[torch.randint(len(choices), (num,), generator=random)]  # noqa: E731
    weights = torch.rand(num, generator=random) + 0.5
    weights[::5] = 0
    return {
        "predicted": draw(predicted),
        "logits": 2 * torch.randn(num, num_classes, generator=random),
        "targets": draw(occurring),
        "losses": torch.rand(num, generator=random),
        "weights": weights,
    }


def computed(num_classes: int, *batches: dict) -> dict[str, float]:
    metrics = HeadMetrics(num_classes)
    for batch in batches:
        metrics.update(**batch)
    return metrics.compute()


def scikit_learns(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Return accuracy, balanced accuracy, and precision, recall and F1 with their three averages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metrics = {
            "top1": sk.accuracy_score(true, predicted),
            "balanced_accuracy": sk.balanced_accuracy_score(true, predicted),
        }
        for end, average in (("", "macro"), ("_micro", "micro"), ("_weighted", "weighted")):
            values = sk.precision_recall_fscore_support(true, predicted, average=average, zero_division=0)
            metrics |= {f"{name}{end}": values[i] for i, name in enumerate(("precision", "recall", "f1"))}
    return {name: float(value) for name, value in metrics.items()}


CASES = pytest.mark.parametrize(("occurring", "predicted"), [
    ([0, 2, 5], [0, 1, 2, 5]),  # 1 is predicted and never occurs, 3 and 4 do neither
    ([0, 1, 2], [2]),  # 0 and 1 are never predicted
    ([4], [1, 4]),  # 4 has no photo of another class against it
    ([1], [3]),  # nothing is right
])  # fmt: skip


@CASES
def test_metrics_of_a_head_equal_scikit_learn(occurring, predicted):
    given = head_batch(200, NUM_CLASSES, occurring, predicted)
    counted = given["weights"] > 0
    true, guess = given["targets"][counted].numpy(), given["predicted"][counted].numpy()
    expected = scikit_learns(true, guess)
    logits = given["logits"][counted].numpy()
    for k in (3, 5):
        expected[f"top{k}"] = np.mean([t in np.argsort(-row)[:k] for t, row in zip(true, logits, strict=True)])
    expected["loss"] = np.average(given["losses"].numpy(), weights=given["weights"].numpy())
    metrics = computed(NUM_CLASSES, given)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    one_hot = np.eye(NUM_CLASSES, dtype=bool)
    assert_rates(metrics, "", "_micro", one_hot[true], one_hot[guess])


def assert_rates(metrics: dict, macro: str, micro: str, true: np.ndarray, predicted: np.ndarray) -> None:
    """Check tpr, tnr, fpr and fnr against counts of photos, loop by loop. true, predicted bool (photos, classes)."""
    tp, fn, fp, tn = per_class = np.zeros((4, NUM_CLASSES))
    for is_true, is_predicted in zip(true, predicted, strict=True):
        for c in range(NUM_CLASSES):
            counts = (tp if is_predicted[c] else fn) if is_true[c] else (fp if is_predicted[c] else tn)
            counts[c] += 1
    for end, (tp, fn, fp, tn) in ((macro, per_class), (micro, per_class.sum(1, keepdims=True))):
        with np.errstate(invalid="ignore"):
            expected = {"tpr": np.nanmean(tp / (tp + fn)), "fpr": np.nanmean(fp / (fp + tn))}
        expected |= {"fnr": 1 - expected["tpr"], "tnr": 1 - expected["fpr"]}
        assert {name: metrics[f"{name}{end}"] for name in expected} == pytest.approx(expected)


@CASES
def test_metrics_at_50_are_those_of_keras(occurring, predicted):
    """Keras' Precision() and Recall(): each probability above 0.5 is a prediction, over all photos and classes."""
    given = head_batch(200, NUM_CLASSES, occurring, predicted)
    given["logits"][:5] = torch.tensor([0.0, 0, -50, -50, -50, -50])  # twice 0.5, which is not above 0.5
    metrics = computed(NUM_CLASSES, given)
    counted = given["weights"] > 0
    logits, targets = given["logits"][counted].double().tolist(), given["targets"][counted].tolist()
    probs = [[math.exp(value) / sum(map(math.exp, row)) for value in row] for row in logits]
    above = np.array([[p > 0.5 for p in row] for row in probs])
    is_true = np.array([[c == target for c in range(NUM_CLASSES)] for target in targets])
    assert not above[0].any()
    tp, fp, fn = (above & is_true).sum(), (above & ~is_true).sum(), (~above & is_true).sum()
    expected = {"precision": tp / max(tp + fp, 1), "recall": tp / (tp + fn), "f1": 2 * tp / (2 * tp + fp + fn)}
    assert {name: metrics[f"{name}_at50"] for name in expected} == pytest.approx(expected)
    assert_rates(metrics, "_at50_macro", "_at50", is_true, above)
    seen = (above | is_true).any(0)
    values = sk.precision_recall_fscore_support(is_true[:, seen], above[:, seen], average="macro", zero_division=0)
    assert [metrics[f"{name}_at50_macro"] for name in expected] == pytest.approx([float(value) for value in values[:3]])


def test_equal_logits_are_right_by_chance_and_nan_logits_are_wrong():
    ones = torch.ones(10)
    equal = torch.zeros(10, dtype=torch.int64), torch.zeros(10, 10), torch.arange(10), ones, ones
    metrics = HeadMetrics(10)
    metrics.update(*equal)
    assert [metrics.compute()[name] for name in ("top1", "top3", "top5")] == pytest.approx([0.1, 0.3, 0.5])
    for num_classes in (3, 10):
        metrics = HeadMetrics(num_classes)
        logits = torch.full((10, num_classes), torch.nan)
        metrics.update(torch.ones(10, dtype=torch.int64), logits, torch.zeros(10, dtype=torch.int64), ones, ones)
        assert [metrics.compute()[name] for name in ("top1", "top3", "top5", "recall_at50")] == [0, 0, 0, 0]
