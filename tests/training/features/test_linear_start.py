"""Linear-probe initialisation: better than random heads, without test photos, once a run; solvers against sklearn."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from carvision.data.loading import dataset
from carvision.errors import InputError
from carvision.losses.classification import cross_entropy
from carvision.models.classifier import Classifier, Head
from carvision.training.features import linear_start
from tests.small_runs import config, demo, train
from tests.training.distributed.processes import write_manifest
from tests.training.run.test_killed_runs import assert_same_run
from tests.training.run.test_resume import cut, start_and_cut  # noqa: F401 - cut is a fixture

START = ["model.start=linear", "optimizer.lr=1e-6", "logger=none", "trainer.max_epochs=1", "augment=none"]
HEADS = ["+model/head@model.heads.make=linear", "+model/head@model.heads.price=linear"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> list[str]:
    """Photos with some unknown labels, a number, and some that can't be read."""
    return write_manifest(tmp_path_factory.mktemp("data") / "data", {"train": 60, "val": 30, "test": 20}, bad=True)


def line_of(folder) -> str:
    return next(line for line in (folder / "run.log").read_text().splitlines() if "linear start:" in line)


@pytest.mark.parametrize("overrides", [
    ["loss.class_weights=balanced", "loss.label_smoothing=0.1", "loss.head_weights=learned"],
    ["model.trunk.hidden=[32]", "model.trunk.dropout=0.1", "model.trunk.batch_norm=true"],
    [*HEADS, "model.heads.price.hidden=[32]", "model.neck=[se]", "model.pool=gem"],
], ids=["weighted", "trunk", "neck"])  # fmt: skip
def test_the_first_heads_are_better_than_random_ones(overrides, manifest, tmp_path):
    for start in ("linear", "random"):
        own = [f"model.start={start}", "model.train_layers=none"]  # or statistics of batch norm, random too, would move
        train(tmp_path / start, *manifest, *START, *own, *overrides)
    linear, random = (pd.read_csv(tmp_path / start / "history.csv").iloc[0] for start in ("linear", "random"))
    assert linear["val/loss"] < 0.95 * random["val/loss"]
    assert linear["val/price/mae"] < 0.9 * random["val/price/mae"]
    line = line_of(tmp_path / "linear")
    assert ("L2 " in line) == (not any("hidden" in value for value in overrides)) and "val: " in line
    assert json.loads((tmp_path / "linear" / "metrics.json").read_text())["seconds"]["linear_start"] > 0


def test_it_reads_no_test_photo_and_does_not_change_the_backbone(demo_photos, tmp_path, monkeypatch):
    opened, real, seen = set(), dataset.read_file, {}
    monkeypatch.setattr(dataset, "read_file", lambda path: (opened.add(Path(path).name), real(path))[1])

    class Looking(linear_start.LinearStart):
        def on_train_start(self, trainer, module):
            before = {name: v.clone() for name, v in module.model.backbone.state_dict().items()}
            super().on_train_start(trainer, module)
            after = module.model.backbone.state_dict()
            equal = all(torch.equal(value, after[name]) for name, value in before.items())
            seen.update(opened=set(opened), training=module.model.training, equal=equal)

    monkeypatch.setattr("carvision.training.run.single_run.LinearStart", Looking)
    train(tmp_path / "run", *demo(demo_photos), *START, "augment=light", f"features.dir={tmp_path / 'features'}")
    splits = pd.read_csv(tmp_path / "run" / "splits.csv")
    test = {path.rpartition("/")[2] for path in splits.loc[splits["split"] == "test", "path"]}
    assert seen["equal"] and seen["training"] and seen["opened"] and not seen["opened"] & test


def test_a_run_is_initialised_once_before_its_first_phase_and_not_when_it_resumes(cut, manifest, tmp_path):  # noqa: F811
    overrides = [
        *manifest, *START[2:], "model.start=linear", "optimizer.lr=0.001", "callbacks.ema_decay=0.9", "augment=light",
        "model.trunk.hidden=[16]", "model.trunk.dropout=0.5", "trainer.max_epochs=null",
        "+phases.head={epochs: 1, train_layers: none}", "+phases.all={epochs: 1}",
    ]  # fmt: skip
    whole = train(tmp_path / "whole", *overrides)
    cut(1, 1)
    start_and_cut(tmp_path / "cut", *overrides)
    assert_same_run(train(tmp_path / "cut", *overrides), whole)
    for folder in (tmp_path / "cut", whole):
        assert (folder / "run.log").read_text().count("linear start:") == 1


def test_auto_is_linear_if_only_the_backbone_has_weights():
    model = Classifier("test_resnet", {"make": Head(4)}, 32)
    for overrides, wanted in (
        (["model.weights=some.safetensors"], True), (["model.weights=pretrained"], True), ([], False),
        (["model.weights=pretrained", "model.start=random"], False), (["model.start=linear"], True),
    ):  # fmt: skip
        assert linear_start.wants_linear_start(config(*overrides), model) == wanted
    with pytest.raises(InputError, match=r"model.start: linear is not possible with trainer=fsdp"):
        linear_start.wants_linear_start(config("model.start=linear", "trainer.strategy=fsdp"), model)
    model.heads_are_trained = True  # see test_earlier_weights.py
    assert not linear_start.wants_linear_start(config("model.weights=some.safetensors"), model)


def test_the_strength_is_chosen_on_validation_photos_if_there_are_any():
    random = torch.Generator().manual_seed(0)
    truth = torch.randn(8, generator=random)
    features = {split: torch.randn(num, 8, generator=random) for split, num in (("train", 10), ("val", 200))}
    noises = {split: 3 * torch.randn(len(x), generator=random) for split, x in features.items()}

    def chosen(noise: float, val_weight: float = 1):
        weights = {"train": torch.ones(10), "val": torch.full((200,), val_weight)}
        known = {split: (x @ truth + noise * noises[split], weights[split]) for split, x in features.items()}
        return linear_start.choose_layer(features, known, 1, linear_start.half_squared_error, 0)

    assert chosen(noise=1)[1] > chosen(noise=0)[1]
    layer, strength = chosen(noise=1, val_weight=0)
    assert layer.weight.isfinite().all() and strength == linear_start.DEFAULT_STRENGTH


@pytest.fixture
def problem():
    """features (120, 7), targets of 4 classes, weights of which some are 0."""
    random = np.random.default_rng(0)
    centres, targets = random.normal(size=(4, 7)), random.integers(4, size=120)
    features = centres[targets] + 1.5 * random.normal(size=(120, 7))
    weights = random.choice([0.0, 1.0, 2.5], size=120)
    return torch.tensor(features), torch.tensor(targets), torch.tensor(weights)


@pytest.mark.parametrize("l2", [1.0, 0.01])
def test_layers_are_those_of_logistic_and_ridge_regression(problem, l2):
    features, targets, weights = problem
    layer = linear_start.fit_layer(features, targets, weights, 4, cross_entropy, l2, max_steps=500)
    theirs = LogisticRegression(C=1 / (l2 * weights.sum().item()), tol=1e-10, max_iter=10_000)
    theirs.fit(features, targets, sample_weight=weights)
    np.testing.assert_allclose(layer.weight, theirs.coef_, atol=2e-3)
    ours = torch.nn.functional.linear(features, *layer).softmax(1)
    np.testing.assert_allclose(ours, theirs.predict_proba(features), atol=1e-3)
    values = features @ torch.arange(7.0, dtype=torch.float64) + 3
    layer = linear_start.fit_layer(features, values, weights, 1, linear_start.half_squared_error, 0.1, max_steps=500)
    theirs = Ridge(alpha=0.1 * weights.sum().item()).fit(features, values, sample_weight=weights)
    np.testing.assert_allclose(layer.weight[0], theirs.coef_, atol=2e-3)
    assert layer.bias.item() == pytest.approx(theirs.intercept_, abs=5e-3)


@pytest.mark.parametrize("shrinkage", [0.0, 0.4])
def test_the_shrunk_within_class_covariance_becomes_white(problem, shrinkage):
    features, targets, _ = problem
    frame = linear_start.class_frame(features, targets, 4, shrinkage)
    within = np.concatenate([(x - x.mean(0)) for x in (features[targets == code].numpy() for code in range(4))])
    covariance = within.T @ within / len(within)
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / 7 * np.eye(7)
    matrix = frame.matrix.numpy()
    white = matrix @ shrunk @ matrix.T
    np.testing.assert_allclose(white / white[0, 0], np.eye(7), atol=1e-10)


def test_classes_of_one_or_no_photo_have_a_frame():
    features = torch.randn(3, 5)
    frame = linear_start.class_frame(features, torch.tensor([0, 2, 7]), 9, 0.7)
    torch.testing.assert_close(frame.apply(features), linear_start.plain_frame(features).apply(features))
