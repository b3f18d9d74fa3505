"""The metrics of an epoch, recomputed photo by photo or by scikit-learn."""

import numpy as np
import pytest
import torch

from carvision.data.table import UNKNOWN
from carvision.metrics import EpochMetrics, metric_names
from carvision.models.decoding import RULES, decode
from tests.evaluation.made import CODES, HEAD_WEIGHTS, LABELS, made, photo_losses
from tests.metrics.test_heads import scikit_learns

PARENTS = {"model": ("make", torch.tensor(CODES))}
OUTPUTS = {"make": 3, "model": 7, "speed": None}
CLASS_HEADS = ("make", "model")


def epoch() -> dict:
    """Return what LitClassifier counts in an epoch of 60 photos; some are unreadable, some labels are unknown."""
    predictions = made(60)
    return {
        "logits": predictions.logits,
        "targets": predictions.targets,
        "losses": photo_losses(predictions),
        "weights": {name: predictions.known(name).float() for name in OUTPUTS},
        "valid": predictions.valid,
    }


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


def test_batches_of_any_size_give_the_same_metrics():
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


def test_counting_continues_after_an_interruption():
    parts = part(epoch(), slice(0, 20)), part(epoch(), slice(20, 60))
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
