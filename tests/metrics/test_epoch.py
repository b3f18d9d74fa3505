"""The metrics of a head and of an epoch, recomputed photo by photo or by scikit-learn."""

import math
import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
import torch

from carvision.data.table import UNKNOWN
from carvision.metrics import EpochMetrics, HeadMetrics, metric_names
from carvision.models.decoding import RULES, decode
from tests.evaluation.made import CODES, HEAD_WEIGHTS, LABELS, made, photo_losses

PARENTS = {"model": ("make", torch.tensor(CODES))}
OUTPUTS = {"make": 3, "model": 7, "speed": None}
CLASS_HEADS = ("make", "model")
NUM_CLASSES = 6  # of a single head


def head_batch(num: int, num_classes: int, occurring: list[int], predicted: list[int]) -> dict:
    """Return photos of the classes `occurring`, predicted as those of `predicted`; a fifth has weight 0."""
    random = torch.Generator().manual_seed(0)
    draw = lambda choices: torch.tensor(choices)[torch.randint(len(choices), (num,), generator=random)]  # noqa: E731
    weights = torch.rand(num, generator=random) + 0.5
    weights[::5] = 0
    given = {"predicted": draw(predicted), "logits": 2 * torch.randn(num, num_classes, generator=random)}
    return given | {"targets": draw(occurring), "losses": torch.rand(num, generator=random), "weights": weights}


def computed(num_classes: int, *batches: dict) -> dict[str, float]:
    metrics = HeadMetrics(num_classes)
    for batch in batches:
        metrics.update(**batch)
    return metrics.compute()


def scikit_learns(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Return accuracy, balanced accuracy, and precision, recall and F1 with their three averages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accuracy, balanced = sk.accuracy_score(true, predicted), sk.balanced_accuracy_score(true, predicted)
        metrics = {"top1": accuracy, "balanced_accuracy": balanced}
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


def epoch() -> dict:
    """Return what LitClassifier counts in an epoch of 60 photos; some are unreadable, some labels are unknown."""
    predictions = made(60)
    weights = {name: predictions.known(name).float() for name in OUTPUTS}
    given = {"logits": predictions.logits, "targets": predictions.targets, "losses": photo_losses(predictions)}
    return {**given, "weights": weights, "valid": predictions.valid}


def part(batch: dict, rows: slice) -> dict:
    return {k: {n: v[rows] for n, v in v.items()} if isinstance(v, dict) else v[rows] for k, v in batch.items()}


def epoch_metrics(rule: str = "independent", compare_rules: bool = False, with_auc: bool = False) -> EpochMetrics:
    return EpochMetrics(OUTPUTS, HEAD_WEIGHTS, PARENTS, rule, compare_rules, with_auc)


def updated(metrics: EpochMetrics, *batches: dict, penalty: float = 0.0) -> EpochMetrics:
    for batch in batches:
        metrics.update(**{"penalty": torch.tensor(penalty)} | batch)
    return metrics


@pytest.mark.parametrize("rule", RULES)
def test_metrics_of_an_epoch(rule):
    batch = epoch()
    metrics = updated(epoch_metrics(rule, compare_rules=True), batch, penalty=0.125)
    found = metrics.compute()
    predicted = {k: v.numpy() for k, v in decode({n: batch["logits"][n] for n in CLASS_HEADS}, PARENTS, rule).items()}
    counted = {name: weights.numpy() > 0 for name, weights in batch["weights"].items()}
    expected = {}
    for name in CLASS_HEADS:
        values = scikit_learns(batch["targets"][name][counted[name]].numpy(), predicted[name][counted[name]])
        expected |= {f"{name}/{metric}": value for metric, value in values.items()}
    both = [i for i in range(60) if counted["make"][i] and counted["model"][i]]
    hits = [all(predicted[name][i] == batch["targets"][name][i] for name in CLASS_HEADS) for i in both]
    fits = [CODES[predicted["model"][i]] == predicted["make"][i] for i in range(60) if batch["valid"][i]]
    expected |= {"joint/top1": np.mean(hits), "joint/consistent": np.mean(fits)}
    error = (batch["logits"]["speed"][:, 0] - batch["targets"]["speed"]).numpy()[counted["speed"]]
    expected |= {"speed/mae": np.abs(error).mean(), "speed/rmse": np.sqrt((error**2).mean())}
    losses = {name: batch["losses"][name].numpy()[counted[name]].mean() for name in OUTPUTS}
    expected |= {f"{name}/loss": loss for name, loss in losses.items()}
    loss = 0.5 * losses["make"] + 2.0 * losses["model"] + 0.25 * losses["speed"]
    expected |= {"loss": loss, "loss_total": loss + 0.125}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)

    assert set(metrics.compute_rules()) == set(RULES)
    for other, values in metrics.compute_rules().items():
        alone = updated(epoch_metrics(other), batch)
        assert values == pytest.approx({name: alone.compute()[name] for name in values})
        assert alone.compute_rules() == {other: values}


def test_the_running_metrics_of_a_bar_are_those_of_the_epoch_so_far():
    metrics, batch = epoch_metrics("joint"), epoch()
    updated(metrics, part(batch, slice(0, 20)))
    expected = metrics.compute()
    running = {name: float(value) for name, value in metrics.running().items()}
    assert running == pytest.approx({name: expected[name] for name in ("loss", "make/top1", "model/top1")})
    batch["weights"]["make"][:] = 0
    running = updated(epoch_metrics(), batch).running()
    assert running["make/top1"].isnan() and running["loss"].isfinite()


def test_batches_of_any_size_and_an_interrupted_epoch_give_the_same_metrics():
    batch = epoch()
    per_photo = torch.rand(60, generator=torch.Generator().manual_seed(2))
    one = updated(epoch_metrics("joint", True, True), batch | {"penalty": per_photo[batch["valid"]].mean()})
    many = epoch_metrics("joint", True, True)
    for rows in (slice(0, 1), slice(1, 8), slice(8, 50), slice(50, 60)):
        some = part(batch, rows)
        updated(many, some | {"penalty": per_photo[rows][some["valid"]].mean().nan_to_num()})
    assert many.compute() == pytest.approx(one.compute(), rel=1e-5)
    assert many.compute_rules() == one.compute_rules()
    many.reset()
    first, again = (updated(each, part(batch, slice(0, 10))) for each in (epoch_metrics("joint", True, True), many))
    assert again.compute() == first.compute() and again.compute_rules() == first.compute_rules()
    parts = part(batch, slice(0, 20)), part(batch, slice(20, 60))  # an epoch that is interrupted and continues
    first, second = updated(epoch_metrics(with_auc=True), parts[0], penalty=0.5), epoch_metrics(with_auc=True)
    second.set_counters(first.counters())
    found = updated(second, parts[1], penalty=0.5).compute()
    assert found == updated(epoch_metrics(with_auc=True), *parts, penalty=0.5).compute()


@pytest.mark.parametrize("compare_rules", [False, True])
@pytest.mark.parametrize("heads", [("make", "model", "speed"), ("model",), ("speed",), ("make", "speed")])
def test_metric_names_are_those_of_an_epoch(heads, compare_rules):
    labels, outputs = ({name: each[name] for name in heads} for each in (LABELS, OUTPUTS))
    parents = PARENTS if set(heads) >= {"make", "model"} else {}
    batch = {k: {n: v[n] for n in heads} if isinstance(v, dict) else v for k, v in epoch().items()}
    for with_auc in (False, True):
        metrics = EpochMetrics(outputs, HEAD_WEIGHTS, parents, "independent", compare_rules, with_auc)
        names = metric_names(labels, with_auc=with_auc)
        assert sorted(names) == sorted(updated(metrics, batch).compute())
        assert len(set(names)) == len(names)


def test_an_epoch_without_one_known_label_has_metrics_of_the_others():
    batch = epoch()
    batch["weights"]["speed"][:] = 0
    batch["targets"]["make"][:], batch["weights"]["make"][:] = UNKNOWN, 0
    found = updated(epoch_metrics(), batch).compute()
    assert found["loss"] == pytest.approx(2.0 * found["model/loss"])
    assert not [name for name in found if name.startswith(("speed/", "make/")) or name == "joint/top1"]


def test_consistent_means_that_every_child_fits_its_parent():
    outputs = {"make": 2, "model": 3, "trim": 4}
    parents = {"model": ("make", torch.tensor([0, 0, 1])), "trim": ("model", torch.tensor([0, 1, 2, 2]))}
    predicted = {"make": [0, 0, 1, 1], "model": [1, 2, 2, 0], "trim": [1, 3, 0, 3]}  # photo 0 fits, the others do not
    logits = {name: torch.eye(outputs[name])[codes] for name, codes in predicted.items()}
    targets = {name: torch.zeros(4, dtype=torch.int64) for name in outputs}
    ones = {name: torch.ones(4) for name in outputs}
    metrics = EpochMetrics(outputs, dict.fromkeys(outputs, 1.0), parents, "independent")
    metrics.update(logits, targets, ones, ones, torch.ones(4, dtype=torch.bool), torch.tensor(0.0))
    assert metrics.compute()["joint/consistent"] == 0.25
