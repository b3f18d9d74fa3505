"""Linear-probe initialisation: better than random heads, without test photos, once a run; solvers against sklearn."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from carvision.data.loading import dataset
from carvision.data.loading.dataset import CachedFeatures
from carvision.errors import InputError
from carvision.losses.classification import cross_entropy
from carvision.models.classifier import Classifier, Head
from carvision.training.features import linear_start
from carvision.training.features.linear_start import choose_layer, fit_layer, half_squared_error, wants_linear_start
from carvision.training.features.store import digest_of_tensors
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


@pytest.mark.parametrize("overrides", [
    ["loss.class_weights=balanced", "loss.label_smoothing=0.1", "loss.head_weights=learned"], ["loss=focal_sigmoid"],
    ["model.trunk.hidden=[32]", "model.trunk.dropout=0.1", "model.trunk.batch_norm=true"],
    [*HEADS, "model.heads.price.hidden=[32]", "model.neck=[se]", "model.pool=gem"],
], ids=["weighted", "focal", "trunk", "neck"])  # fmt: skip
def test_the_first_heads_are_better_than_random_ones(overrides, manifest, tmp_path):
    for start in ("linear", "random"):
        own = [f"model.start={start}", "model.train_layers=none"]  # or statistics of batch norm, random too, would move
        train(tmp_path / start, *manifest, *START, *own, *overrides)
    linear, random = (pd.read_csv(tmp_path / start / "history.csv").iloc[0] for start in ("linear", "random"))
    assert linear["val/loss"] < 0.95 * random["val/loss"]
    assert linear["val/price/mae"] < 0.9 * random["val/price/mae"]
    line = next(line for line in (tmp_path / "linear" / "run.log").read_text().splitlines() if "linear start:" in line)
    assert ("L2 " in line) == (not any("hidden" in value for value in overrides)) and "val: " in line
    assert json.loads((tmp_path / "linear" / "metrics.json").read_text())["seconds"]["linear_start"] > 0


def test_it_reads_no_test_photo_and_does_not_change_the_backbone(demo_photos, tmp_path, monkeypatch):
    opened, real, seen = set(), dataset.read_file, {}
    monkeypatch.setattr(dataset, "read_file", lambda path: opened.add(Path(path).name) or real(path))

    class Looking(linear_start.LinearStart):
        def on_train_start(self, trainer, module):
            before = digest_of_tensors(module.model.backbone.state_dict())
            super().on_train_start(trainer, module)
            seen["opened"], seen["training"] = set(opened), module.model.training
            seen["equal"] = digest_of_tensors(module.model.backbone.state_dict()) == before

    monkeypatch.setattr("carvision.training.run.single_run.LinearStart", Looking)
    train(tmp_path / "run", *demo(demo_photos), *START, "augment=light", f"features.dir={tmp_path / 'features'}")
    splits = pd.read_csv(tmp_path / "run" / "splits.csv")
    test = {path.rpartition("/")[2] for path in splits.loc[splits["split"] == "test", "path"]}
    assert seen["equal"] and seen["training"] and seen["opened"] and not seen["opened"] & test


def test_a_run_is_initialised_once_before_its_first_phase_and_not_when_it_resumes(cut, manifest, tmp_path):  # noqa: F811
    overrides = [*manifest, *START[2:], "model.start=linear", "optimizer.lr=0.001", "callbacks.ema_decay=0.9"]
    overrides += ["model.trunk.hidden=[16]", "model.trunk.dropout=0.5", "augment=light", "trainer.max_epochs=null"]
    overrides += ["+phases.head={epochs: 1, train_layers: none}", "+phases.all={epochs: 1}"]
    train(tmp_path / "whole", *overrides)
    for epoch in (0, 1):
        cut(epoch, 1)
        start_and_cut(tmp_path / "cut", *overrides)
    train(tmp_path / "cut", *overrides)
    for name in ("whole", "cut"):
        assert (tmp_path / name / "run.log").read_text().count("linear start:") == 1
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_the_linear_solution_is_saved_where_fine_tuning_is_worse(demo_photos, tmp_path):
    words = ["experiment=quick", *demo(demo_photos), f"features.dir={tmp_path / 'features'}", "run.report=false"]
    metrics = {}
    for name, rate in {"worse": 10, "better": 1e-3}.items():  # SMALL: two epochs, one of each phase
        folder = train(tmp_path / name, *words, f"optimizer.lr={rate}", "callbacks.ema_decay=null")
        metrics[name] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    history = pd.read_csv(tmp_path / "worse" / "history.csv")
    assert metrics["worse"]["best_epoch"] == 0 and history["val/loss"][0] < history["val/loss"][1]
    assert metrics["worse"]["val"]["loss"] == pytest.approx(history["val/loss"][0], rel=1e-5)  # which is rounded
    for name, origin in {"worse": "computing the features of", "better": "photos from"}.items():
        text = (tmp_path / name / "run.log").read_text(encoding="utf-8")
        begins = text.index("expected time of the 2 epochs: about")
        assert text.index(origin) < begins < text.index("epoch 1/2")


def test_auto_is_linear_if_only_the_backbone_has_weights():
    model = Classifier("test_resnet", {"make": Head(4)}, 32)
    wanted = {"model.weights=pretrained": True, "model.weights=pretrained model.start=random": False, "seed=0": False}
    for words, linear in {**wanted, "model.weights=some.safetensors": True, "model.start=linear": True}.items():
        assert wants_linear_start(config(*words.split()), model) == linear
    with pytest.raises(InputError, match=r"model.start: linear is not possible with trainer=fsdp"):
        wants_linear_start(config("model.start=linear", "trainer.strategy=fsdp"), model)
    model.heads_are_trained = True  # see test_earlier_weights.py
    assert not wants_linear_start(config("model.weights=some.safetensors"), model)


def test_the_strength_is_chosen_on_validation_photos_if_there_are_any():
    random = torch.Generator().manual_seed(0)
    truth, features = torch.ones(8), {"train": torch.randn(10, 8, generator=random)}
    features["val"] = torch.randn(200, 8, generator=random)
    exact = {split: (x @ truth, torch.ones(len(x))) for split, x in features.items()}
    known = {split: (y + 3 * torch.randn(len(y), generator=random), ones) for split, (y, ones) in exact.items()}
    noisy, clear = (choose_layer(features, of_split, 1, half_squared_error, 0) for of_split in (known, exact))
    assert noisy[1] > clear[1]
    none = {**known, "val": (known["val"][0], torch.zeros(200))}
    layer, strength = choose_layer(features, none, 1, half_squared_error, 0)
    assert layer.weight.isfinite().all() and strength == linear_start.DEFAULT_STRENGTH


def test_bad_and_unknown_photos_have_no_weight():
    values = {"labels": {"make": {"ids": "ab"}}, "class_weights": {"make": [1.0, 3.0]}, "class_loss": None}
    lit = SimpleNamespace(device="cpu", **values)
    part = CachedFeatures(torch.zeros(4, 2), np.arange(4), {1: "empty"}, {"make": torch.tensor([0, 0, -1, 1])})
    _, found = linear_start.head_problem(lit, "make", {"train": part, "val": part})
    assert found["train"][1].tolist() == [1, 0, 0, 3] and found["val"][1].tolist() == [1, 0, 0, 1]


@pytest.fixture
def problem():
    """features (120, 7), targets of 4 classes, weights of which some are 0."""
    random = np.random.default_rng(0)
    centres, targets = random.normal(size=(4, 7)), random.integers(4, size=120)
    features, weights = centres[targets] + 1.5 * random.normal(size=(120, 7)), random.choice([0.0, 1.0, 2.5], size=120)
    return torch.tensor(features), torch.tensor(targets), torch.tensor(weights)


def test_layers_are_those_of_logistic_and_ridge_regression(problem):
    features, targets, weights = problem
    layer = fit_layer(features, targets, weights, 4, cross_entropy, 0.01, max_steps=500)
    theirs = LogisticRegression(C=1 / (0.01 * weights.sum().item()), tol=1e-10, max_iter=10_000)
    theirs.fit(features, targets, sample_weight=weights)
    np.testing.assert_allclose(layer.weight, theirs.coef_, atol=2e-3)
    ours = torch.nn.functional.linear(features, *layer).softmax(1)
    np.testing.assert_allclose(ours, theirs.predict_proba(features), atol=1e-3)
    values = features @ torch.arange(7.0, dtype=torch.float64) + 3
    layer = fit_layer(features, values, weights, 1, half_squared_error, 0.1, max_steps=500)
    theirs = Ridge(alpha=0.1 * weights.sum().item()).fit(features, values, sample_weight=weights)
    np.testing.assert_allclose(layer.weight[0], theirs.coef_, atol=2e-3)
    assert layer.bias.item() == pytest.approx(theirs.intercept_, abs=5e-3)


def test_a_frame_is_undone_in_the_layer(problem):
    features, targets, _ = problem
    layer = linear_start.Layer(torch.randn(3, 7).double(), torch.randn(3).double())
    few = linear_start.class_frame(features[:3], torch.tensor([0, 2, 7]), 9, 0.7)  # classes of one or no photo
    torch.testing.assert_close(few.apply(features), linear_start.plain_frame(features[:3]).apply(features))
    for frame in (linear_start.plain_frame(features), linear_start.class_frame(features, targets, 4, 0.3)):
        framed = frame.apply(features)
        assert framed.mean(0).abs().max() < 1e-12 and framed.square().mean().item() == pytest.approx(1)
        scores = torch.nn.functional.linear(framed, *layer)
        torch.testing.assert_close(torch.nn.functional.linear(features, *frame.undo(layer)), scores)


def test_the_shrunk_within_class_covariance_becomes_white(problem):
    (features, targets, _), shrinkage = problem, 0.4
    frame = linear_start.class_frame(features, targets, 4, shrinkage)
    within = np.concatenate([(x - x.mean(0)) for x in (features[targets == code].numpy() for code in range(4))])
    covariance = within.T @ within / len(within)
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / 7 * np.eye(7)
    white = frame.matrix.numpy() @ shrunk @ frame.matrix.numpy().T
    np.testing.assert_allclose(white / white[0, 0], np.eye(7), atol=1e-10)
