"""Every figure against scikit-learn, or recomputed photo by photo."""

import math
import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
import torch

from carvision.data.table import UNKNOWN
from carvision.metrics import EpochMetrics, HeadMetrics, JointMetrics, NumberMetrics, figure_names, figures_of
from carvision.models.decoding import RULES, decode

CODES = [1, 0, 0, 2, 1, 2, 2]  # the make of each model
PARENTS = {"model": ("make", torch.tensor(CODES))}
OUTPUTS = {"make": 3, "model": 7, "speed": None}
LABELS = {
    "make": {"ids": ["0", "1", "2"], "parent": None},
    "model": {"ids": [*"0123456"], "parent": "make"},
    "speed": {"unit": "km/h"},
}
HEAD_WEIGHTS = {"make": 0.5, "model": 2.0, "speed": 0.25}
CLASS_HEADS = ("make", "model")


def head_batch(num: int, num_classes: int, occurring: list[int], predicted: list[int], seed: int = 0) -> dict:
    """Photos of the classes `occurring`, predicted as those of `predicted`; a fifth has weight 0."""
    random = torch.Generator().manual_seed(seed)
    draw = lambda choices: torch.tensor(choices)[torch.randint(len(choices), (num,), generator=random)]  # noqa: E731
    weights = torch.rand(num, generator=random) + 0.5
    weights[::5] = 0
    return {
        "predicted": draw(predicted),
        "logits": torch.randn(num, num_classes, generator=random),
        "targets": draw(occurring),
        "losses": torch.rand(num, generator=random),
        "weights": weights,
    }


def scikit_learns(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
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


@pytest.mark.parametrize(
    ("occurring", "predicted"),
    [
        ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
        ([0, 2, 5], [0, 1, 2, 5]),  # 1 is predicted and never occurs, 3 and 4 do neither
        ([0, 1, 2], [2]),  # 0 and 1 are never predicted
        ([4], [1, 4]),
        ([1], [3]),  # nothing is right
    ],
)
def test_figures_of_a_head_are_scikit_learns(occurring, predicted):
    given = head_batch(200, 6, occurring, predicted)
    metrics = HeadMetrics(6)
    metrics.update(**given)
    counted = given["weights"] > 0
    true, guess = given["targets"][counted].numpy(), given["predicted"][counted].numpy()
    expected = scikit_learns(true, guess)
    logits = given["logits"][counted].numpy()
    for k in (3, 5):
        expected[f"top{k}"] = np.mean([t in np.argsort(-row)[:k] for t, row in zip(true, logits, strict=True)])
    expected["loss"] = np.average(given["losses"].numpy(), weights=given["weights"].numpy())
    assert metrics.compute() == pytest.approx(expected, rel=1e-6)
    assert metrics.matrix().tolist() == sk.confusion_matrix(true, guess, labels=range(6)).tolist()
    figures = {name: float(value) for name, value in figures_of(metrics.matrix()).items()}
    assert figures == pytest.approx(scikit_learns(true, guess))


def test_top_k_with_fewer_classes_than_k():
    given = head_batch(60, 4, [0, 1, 2, 3], [0, 1])
    metrics = HeadMetrics(4)
    metrics.update(**given)
    counted = given["weights"] > 0
    expected = sk.top_k_accuracy_score(given["targets"][counted], given["logits"][counted], k=3, labels=range(4))
    assert metrics.compute()["top3"] == pytest.approx(expected)
    assert metrics.compute()["top5"] == 1


def test_photos_of_weight_zero_do_not_count():
    """Whatever their target (also UNKNOWN), prediction and loss."""
    given = head_batch(50, 4, [0, 1, 3], [0, 1, 2])
    changed = {name: values.clone() for name, values in given.items()}
    unseen = given["weights"] == 0
    changed["targets"][unseen], changed["predicted"][unseen], changed["losses"][unseen] = UNKNOWN, 3, 1e6
    figures = []
    for batch in (given, changed):
        metrics = HeadMetrics(4)
        metrics.update(**batch)
        figures.append(metrics.compute())
    assert figures[0] == figures[1]
    empty = HeadMetrics(4)
    empty.update(**{**given, "weights": torch.zeros(50)})
    assert empty.compute() == {}


def test_number_metrics():
    metrics = NumberMetrics()
    metrics.update(torch.zeros(1, 1), torch.tensor([math.nan]), torch.zeros(1), torch.zeros(1))
    assert metrics.compute() == {}
    targets, weights = torch.tensor([200.0, math.nan, 150.0, 180.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    metrics.update(torch.tensor([[210.0], [99.0], [130.0], [0.0]]), targets, torch.tensor([0.5, 9, 1.5, 9]), weights)
    metrics.update(torch.tensor([[104.0]]), torch.tensor([100.0]), torch.tensor([0.1]), torch.ones(1))
    errors = [10, -20, 4]
    expected = {
        "loss": (0.5 + 1.5 + 0.1) / 3,
        "mae": sum(map(abs, errors)) / 3,
        "rmse": math.sqrt(sum(e * e for e in errors) / 3),
    }
    assert metrics.compute() == pytest.approx(expected)


def test_joint_metrics():
    metrics = JointMetrics(["make", "model"], has_parents=True)
    targets = {"make": torch.tensor([0, 1, 2, UNKNOWN, 1]), "model": torch.tensor([0, 1, 2, 3, 4])}
    predicted = {"make": torch.tensor([0, 1, 0, 0, 1]), "model": torch.tensor([0, 9, 2, 3, 4])}
    agree = torch.tensor([True, False, True, False, True])
    valid = torch.tensor([True, True, True, True, False])
    metrics.update(predicted, targets, agree, valid)
    # make: known and valid are photos 0, 1, 2; model: 0 to 3; both: 0, 1, 2, of which photo 0 alone is right in both
    expected = {"make/top1": 2 / 3, "model/top1": 3 / 4, "joint/top1": 1 / 3, "joint/consistent": 2 / 4}
    assert metrics.compute() == pytest.approx(expected)
    alone = JointMetrics(["make"], has_parents=False)
    alone.update(predicted, targets, agree, valid)
    assert alone.compute() == pytest.approx({"make/top1": 2 / 3, "joint/top1": 2 / 3})


def epoch(num: int = 60) -> dict:
    """What LitClassifier gives for an epoch: photo 3 in 7 can't be read, labels are unknown now and then."""
    random = torch.Generator().manual_seed(1)
    model = torch.randint(0, 7, (num,), generator=random)
    targets = {
        "make": torch.tensor(CODES)[model],
        "model": model,
        "speed": 200 + 20 * torch.randn(num, generator=random),
    }
    targets["make"][::6], targets["model"][::4], targets["speed"][::3] = UNKNOWN, UNKNOWN, math.nan
    valid = torch.arange(num) % 7 != 3
    known = {name: ~values.isnan() if name == "speed" else values != UNKNOWN for name, values in targets.items()}
    logits = {name: torch.randn(num, n or 1, generator=random) for name, n in OUTPUTS.items()}
    logits["speed"] = 200 + 20 * logits["speed"]
    return {
        "logits": logits,
        "targets": targets,
        "losses": {name: torch.rand(num, generator=random) for name in OUTPUTS},
        "weights": {name: known[name] * valid.float() for name in OUTPUTS},
        "valid": valid,
    }


def part(batch: dict, rows: slice) -> dict:
    return {k: {n: v[rows] for n, v in v.items()} if isinstance(v, dict) else v[rows] for k, v in batch.items()}


def epoch_metrics(rule: str = "independent", compare_rules: bool = False) -> EpochMetrics:
    return EpochMetrics(OUTPUTS, HEAD_WEIGHTS, PARENTS, rule, compare_rules)


@pytest.mark.parametrize("rule", RULES)
def test_figures_of_an_epoch(rule):
    batch = epoch()
    metrics = epoch_metrics(rule, compare_rules=True)
    metrics.update(**batch, penalty=torch.tensor(0.125))
    figures = metrics.compute()

    predicted = {k: v.numpy() for k, v in decode({n: batch["logits"][n] for n in CLASS_HEADS}, PARENTS, rule).items()}
    counted = {name: weights.numpy() > 0 for name, weights in batch["weights"].items()}
    for name in CLASS_HEADS:
        expected = scikit_learns(batch["targets"][name][counted[name]].numpy(), predicted[name][counted[name]])
        assert {k: figures[f"{name}/{k}"] for k in expected} == pytest.approx(expected)
    both = [i for i in range(60) if counted["make"][i] and counted["model"][i]]
    hits = [all(predicted[name][i] == batch["targets"][name][i] for name in CLASS_HEADS) for i in both]
    assert figures["joint/top1"] == pytest.approx(np.mean(hits))
    seen = [i for i in range(60) if batch["valid"][i]]
    fits = [CODES[predicted["model"][i]] == predicted["make"][i] for i in seen]
    assert figures["joint/consistent"] == pytest.approx(np.mean(fits))
    error = (batch["logits"]["speed"][:, 0] - batch["targets"]["speed"]).numpy()[counted["speed"]]
    assert figures["speed/mae"] == pytest.approx(np.abs(error).mean(), rel=1e-5)
    assert figures["speed/rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-5)
    losses = {name: batch["losses"][name].numpy()[counted[name]].mean() for name in OUTPUTS}
    assert {name: figures[f"{name}/loss"] for name in OUTPUTS} == pytest.approx(losses)
    loss = 0.5 * losses["make"] + 2.0 * losses["model"] + 0.25 * losses["speed"]
    assert (figures["loss"], figures["loss_total"]) == pytest.approx((loss, loss + 0.125))

    assert set(metrics.compute_rules()) == set(RULES)
    for other, values in metrics.compute_rules().items():
        alone = epoch_metrics(other)
        alone.update(**batch, penalty=torch.tensor(0.0))
        assert values == pytest.approx({name: alone.compute()[name] for name in values})
        assert alone.compute_rules() == {other: values}


def test_batches_of_any_size_give_the_figures_of_one():
    batch = epoch()
    one, many = epoch_metrics("joint", True), epoch_metrics("joint", True)
    per_photo = torch.rand(60, generator=torch.Generator().manual_seed(2))
    one.update(**batch, penalty=per_photo.mean())
    for rows in (slice(0, 1), slice(1, 8), slice(8, 50), slice(50, 60)):
        many.update(**part(batch, rows), penalty=per_photo[rows].mean())
    assert many.compute() == pytest.approx(one.compute(), rel=1e-5)
    assert many.compute_rules() == one.compute_rules()

    first = epoch_metrics("joint", True)
    first.update(**part(batch, slice(0, 10)), penalty=torch.tensor(0.5))
    many.reset()
    many.update(**part(batch, slice(0, 10)), penalty=torch.tensor(0.5))
    assert many.compute() == first.compute()
    assert many.compute_rules() == first.compute_rules()


@pytest.mark.parametrize("heads", [("make", "model", "speed"), ("model",), ("speed",), ("make", "speed")])
def test_figure_names_are_those_that_an_epoch_gives(heads):
    labels = {name: LABELS[name] for name in heads}
    outputs = {name: OUTPUTS[name] for name in heads}
    parents = PARENTS if set(heads) >= {"make", "model"} else {}
    batch = {k: {n: v[n] for n in heads} if isinstance(v, dict) else v for k, v in epoch().items()}
    for compare_rules in (False, True):
        metrics = EpochMetrics(outputs, HEAD_WEIGHTS, parents, "independent", compare_rules)
        metrics.update(**batch, penalty=torch.tensor(0.0))
        names = figure_names(labels)
        assert sorted(names) == sorted(metrics.compute())
        assert len(set(names)) == len(names)


def test_an_epoch_without_one_known_label_has_figures_for_the_others():
    batch = epoch()
    batch["weights"]["speed"][:] = 0
    batch["targets"]["make"][:], batch["weights"]["make"][:] = UNKNOWN, 0
    metrics = epoch_metrics()
    metrics.update(**batch, penalty=torch.tensor(0.0))
    figures = metrics.compute()
    assert figures["loss"] == pytest.approx(2.0 * figures["model/loss"])
    assert not [name for name in figures if name.startswith(("speed/", "make/")) or name == "joint/top1"]


def test_consistent_means_that_every_child_fits_its_parent():
    outputs = {"make": 2, "model": 3, "trim": 4}
    parents = {"model": ("make", torch.tensor([0, 0, 1])), "trim": ("model", torch.tensor([0, 1, 2, 2]))}
    predicted = {"make": [0, 0, 1, 1], "model": [1, 2, 2, 0], "trim": [1, 3, 0, 3]}  # 0 fits, 1, 2 and 3 do not
    logits = {name: torch.eye(outputs[name])[codes] for name, codes in predicted.items()}
    targets = {name: torch.zeros(4, dtype=torch.int64) for name in outputs}
    ones = {name: torch.ones(4) for name in outputs}
    metrics = EpochMetrics(outputs, dict.fromkeys(outputs, 1.0), parents, "independent")
    metrics.update(logits, targets, ones, ones, torch.ones(4, dtype=torch.bool), torch.tensor(0.0))
    assert metrics.compute()["joint/consistent"] == 0.25


def test_the_state_at_compcars_size_fits_memory():
    metrics = EpochMetrics({"make": 163, "model": 1716}, dict.fromkeys(CLASS_HEADS, 1.0), {}, "independent", True)
    states = [value for m in metrics.modules() if hasattr(m, "_defaults") for value in m.metric_state.values()]
    assert sum(state.nbytes for state in states) < 25e6
    batch = {name: torch.zeros(2, n) for name, n in (("make", 163), ("model", 1716))}
    targets = {"make": torch.tensor([0, 162]), "model": torch.tensor([0, 1715])}
    ones = dict.fromkeys(CLASS_HEADS, torch.ones(2))
    metrics.update(batch, targets, ones, ones, torch.ones(2, dtype=bool), torch.tensor(0.0))
    assert metrics.heads[1].matrix()[1715, 0] == 1
    assert metrics.compute()["model/top1"] == 0.5
