"""Figures of one head against scikit-learn, loops over photos and classes, and report R2's tables."""

import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
import torch

from carvision.data.table import UNKNOWN
from carvision.metrics import HeadMetrics
from carvision.metrics.heads import metrics_at50

NUM_CLASSES = 6


def head_batch(num: int, num_classes: int, occurring: list[int], predicted: list[int], seed: int = 0) -> dict:
    """Photos of the classes `occurring`, predicted as those of `predicted`; a fifth has weight 0."""
    random = torch.Generator().manual_seed(seed)
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


def scikit_learns(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy and precision, recall and F1 with their three averages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figures = {
            "top1": sk.accuracy_score(true, predicted),
            "balanced_accuracy": sk.balanced_accuracy_score(true, predicted),
        }
        for end, average in (("", "macro"), ("_micro", "micro"), ("_weighted", "weighted")):
            values = sk.precision_recall_fscore_support(true, predicted, average=average, zero_division=0)
            figures |= {
                f"{name}{end}": value for name, value in zip(("precision", "recall", "f1"), values, strict=False)
            }
    return {name: float(value) for name, value in figures.items()}


CASES = pytest.mark.parametrize(
    ("occurring", "predicted"),
    [
        ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
        ([0, 2, 5], [0, 1, 2, 5]),  # 1 is predicted and never occurs, 3 and 4 do neither
        ([0, 1, 2], [2]),  # 0 and 1 are never predicted
        ([4], [1, 4]),  # 4 has no photo of another class against it
        ([1], [3]),  # nothing is right
    ],
)


@CASES
def test_figures_of_a_head_are_scikit_learns(occurring, predicted):
    given = head_batch(200, NUM_CLASSES, occurring, predicted)
    metrics = HeadMetrics(NUM_CLASSES)
    metrics.update(**given)
    counted = given["weights"] > 0
    true, guess = given["targets"][counted].numpy(), given["predicted"][counted].numpy()
    expected = scikit_learns(true, guess)
    logits = given["logits"][counted].numpy()
    for k in (3, 5):
        expected[f"top{k}"] = np.mean([t in np.argsort(-row)[:k] for t, row in zip(true, logits, strict=True)])
    expected["loss"] = np.average(given["losses"].numpy(), weights=given["weights"].numpy())
    figures = metrics.compute()
    assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    one_hot = np.eye(NUM_CLASSES, dtype=bool)
    assert_rates(figures, "", "_micro", one_hot[true], one_hot[guess])


def assert_rates(figures: dict, macro: str, micro: str, true: np.ndarray, predicted: np.ndarray) -> None:
    """tpr, tnr, fpr, fnr against counts of photos, loop by loop. true, predicted bool (photos, classes)."""
    tp, fn, fp, tn = of_class = np.zeros((4, NUM_CLASSES))
    for photo in range(len(true)):
        for c in range(NUM_CLASSES):
            if true[photo, c]:
                (tp if predicted[photo, c] else fn)[c] += 1
            else:
                (fp if predicted[photo, c] else tn)[c] += 1
    for end, counts in ((macro, of_class), (micro, of_class.sum(1, keepdims=True))):
        tp, fn, fp, tn = counts
        with np.errstate(invalid="ignore"):
            expected = {
                "tpr": np.nanmean(tp / (tp + fn)),
                "fnr": np.nanmean(fn / (tp + fn)),
                "fpr": np.nanmean(fp / (fp + tn)),
                "tnr": np.nanmean(tn / (fp + tn)),
            }
        assert {name: figures[f"{name}{end}"] for name in expected} == pytest.approx(expected)


@CASES
def test_figures_at_50_are_those_of_keras(occurring, predicted):
    """Keras' Precision() and Recall(): each probability above 0.5 is a prediction, over all photos and classes."""
    given = head_batch(200, NUM_CLASSES, occurring, predicted)
    given["logits"][:5] = torch.tensor([0.0, 0, -50, -50, -50, -50])  # twice 0.5, which is not above 0.5
    metrics = HeadMetrics(NUM_CLASSES)
    metrics.update(**given)
    figures = metrics.compute()
    tp = fp = fn = 0
    above, is_true = [], []
    for logits, target, weight in zip(given["logits"].double(), given["targets"], given["weights"], strict=True):
        if weight == 0:
            continue
        probs = logits.exp() / logits.exp().sum()
        above.append([bool(p > 0.5) for p in probs])
        is_true.append([c == int(target) for c in range(NUM_CLASSES)])
        for was_predicted, was_true in zip(above[-1], is_true[-1], strict=True):
            tp += was_predicted and was_true
            fp += was_predicted and not was_true
            fn += was_true and not was_predicted
    precision, recall = tp / (tp + fp) if tp + fp else 0, tp / (tp + fn)
    expected = {"precision": precision, "recall": recall, "f1": 2 * tp / (2 * tp + fp + fn)}
    assert {name: figures[f"{name}_at50"] for name in expected} == pytest.approx(expected)
    if tp:
        assert figures["f1_at50"] == pytest.approx(2 * precision * recall / (precision + recall))
    above, is_true = np.array(above), np.array(is_true)
    assert not above[0].any()
    assert_rates(figures, "_at50_macro", "_at50", is_true, above)
    seen = (above | is_true).any(0)
    values = sk.precision_recall_fscore_support(is_true[:, seen], above[:, seen], average="macro", zero_division=0)
    named = [figures[f"{name}_at50_macro"] for name in ("precision", "recall", "f1")]
    assert named == pytest.approx([float(value) for value in values[:3]])


@pytest.mark.parametrize(
    ("precision", "recall", "f1", "tnr", "fpr", "fnr"),
    [
        (0.6979, 0.3767, 0.4893, 0.9991, 0.0008, 0.6232),
        (0.8911, 0.7029, 0.7859, 0.9995, 0.0004, 0.2971),
        (0.8787, 0.8054, 0.8404, 0.9994, 0.0005, 0.1945),
    ],
)
def test_figures_at_50_agree_with_the_tables_of_r2(precision, recall, f1, tnr, fpr, fnr):
    """3,237 test photos of 196 classes, with as many right and predicted as precision and recall say.

    R2 cuts its last digit off or rounds it.
    """
    photos, classes = 3237, 196
    true = torch.full((classes,), photos / classes, dtype=torch.float64)
    right = recall * true
    figures = {name: float(value) for name, value in metrics_at50(right, true, right / precision).items()}
    expected = {"precision": precision, "recall": recall, "f1": f1, "tpr": recall, "tnr": tnr, "fpr": fpr, "fnr": fnr}
    assert {name: figures[f"{name}_at50"] for name in expected} == pytest.approx(expected, abs=1.01e-4)


def test_top_k_with_fewer_classes_than_k():
    given = head_batch(60, 4, [0, 1, 2, 3], [0, 1])
    metrics = HeadMetrics(4)
    metrics.update(**given)
    counted = given["weights"] > 0
    expected = sk.top_k_accuracy_score(given["targets"][counted], given["logits"][counted], k=3, labels=range(4))
    assert metrics.compute()["top3"] == pytest.approx(expected)
    assert metrics.compute()["top5"] == 1


def test_equal_logits_are_right_by_chance_and_none_at_all_is_wrong():
    targets, ones = torch.arange(10), torch.ones(10)
    metrics = HeadMetrics(10)
    metrics.update(torch.zeros(10, dtype=torch.int64), torch.zeros(10, 10), targets, ones, ones)
    figures = metrics.compute()
    assert [figures[name] for name in ("top1", "top3", "top5")] == pytest.approx([0.1, 0.3, 0.5])
    for num_classes in (3, 10):
        metrics = HeadMetrics(num_classes)
        logits = torch.full((10, num_classes), torch.nan)
        metrics.update(torch.ones(10, dtype=torch.int64), logits, targets * 0, ones, ones)
        figures = metrics.compute()
        assert [figures[name] for name in ("top1", "top3", "top5", "recall_at50")] == [0, 0, 0, 0]


def test_photos_of_weight_zero_do_not_count():
    """Whatever their target (also UNKNOWN), prediction, logits and loss."""
    given = head_batch(50, 4, [0, 1, 3], [0, 1, 2])
    changed = {name: values.clone() for name, values in given.items()}
    unseen = given["weights"] == 0
    changed["targets"][unseen], changed["predicted"][unseen], changed["losses"][unseen] = UNKNOWN, 3, 1e6
    changed["logits"][unseen] = torch.tensor([9.0, 0, 0, 0])
    figures = []
    for batch in (given, changed):
        metrics = HeadMetrics(4)
        metrics.update(**batch)
        figures.append(metrics.compute())
    assert figures[0] == figures[1]
    empty = HeadMetrics(4)
    empty.update(**{**given, "weights": torch.zeros(50)})
    assert empty.compute() == {}
