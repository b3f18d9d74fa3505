"""Linear-probe initialisation: better than random heads, without test photos, once a run; solvers against sklearn."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge

from carvision.data.loading import dataset
from carvision.data.loading.dataset import CachedFeatures
from carvision.data.table import UNKNOWN
from carvision.errors import InputError
from carvision.losses.classification import cross_entropy
from carvision.models.classifier import Classifier, Head
from carvision.training.features import linear_start
from carvision.training.features.linear_start import (
    Layer,
    choose_layer,
    class_frame,
    fit_layer,
    half_squared_error,
    plain_frame,
    wants_linear_start,
)
from carvision.training.module import LitClassifier
from carvision.training.optim import build_phases
from tests.small_runs import config, demo, train
from tests.training.distributed.processes import train_together, write_manifest
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
            seen["opened"], seen["training"] = set(opened), module.model.training
            after = module.model.backbone.state_dict()
            seen["equal"] = all(torch.equal(value, after[name]) for name, value in before.items())

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
    cut(1, 1)
    start_and_cut(tmp_path / "cut", *overrides)
    train(tmp_path / "cut", *overrides)
    for name in ("whole", "cut"):
        assert (tmp_path / name / "run.log").read_text().count("linear start:") == 1
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_auto_is_linear_if_only_the_backbone_has_weights():
    model = Classifier("test_resnet", {"make": Head(4)}, 32)
    assert wants_linear_start(config("model.weights=some.safetensors"), model)
    assert wants_linear_start(config("model.weights=pretrained"), model)
    assert not wants_linear_start(config(), model)
    assert not wants_linear_start(config("model.weights=pretrained", "model.start=random"), model)
    assert wants_linear_start(config("model.start=linear"), model)
    with pytest.raises(InputError, match=r"model.start: linear is not possible with trainer=fsdp"):
        wants_linear_start(config("model.start=linear", "trainer.strategy=fsdp"), model)
    model.heads_are_trained = True  # see test_earlier_weights.py
    assert not wants_linear_start(config("model.weights=some.safetensors"), model)


def test_the_strength_is_chosen_on_validation_photos_if_there_are_any():
    random = torch.Generator().manual_seed(0)
    truth = torch.randn(8, generator=random)
    features = {split: torch.randn(num, 8, generator=random) for split, num in {"train": 10, "val": 200}.items()}
    known = {
        split: (x @ truth + 3 * torch.randn(len(x), generator=random), torch.ones(len(x)))
        for split, x in features.items()
    }
    _, noisy = choose_layer(features, known, 1, half_squared_error, 0)
    exact = {split: (x @ truth, torch.ones(len(x))) for split, x in features.items()}
    _, clear = choose_layer(features, exact, 1, half_squared_error, 0)
    assert noisy > clear
    none = {**known, "val": (known["val"][0], torch.zeros(200))}
    layer, strength = choose_layer(features, none, 1, half_squared_error, 0)
    assert layer.weight.isfinite().all() and strength == linear_start.DEFAULT_STRENGTH


def test_the_strength_is_chosen_on_some_of_many_photos(monkeypatch):
    monkeypatch.setattr(linear_start, "MAX_SELECTION_PHOTOS", 20)
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    known = (x.sum(1), torch.ones(100))
    layer, _ = choose_layer({"train": x, "val": x}, {"train": known, "val": known}, 1, half_squared_error, 0)
    np.testing.assert_allclose(layer.weight[0], [1, 1, 1], atol=0.02)


def test_bad_and_unknown_photos_have_no_weight():
    labels = {"make": {"ids": ["a", "b"], "names": ["a", "b"], "parent": None, "parent_codes": []}}
    model = Classifier("test_resnet", {"make": Head(2)}, 32)
    cfg = config()
    lit = LitClassifier(
        model.description, labels, {"size_px": 32, "mean": [0.5] * 3, "std": [0.5] * 3}, {"name": "cross_entropy"},
        build_phases(cfg), {**cfg["augment"]}, {"make": [1.0, 3.0]}, model=model,
    )  # fmt: skip
    part = CachedFeatures(torch.zeros(4, 2), np.arange(4), {1: "empty"}, {"make": torch.tensor([0, 0, -1, 1])})
    _, found = linear_start.head_problem(lit, "make", {"train": part, "val": part})
    assert found["train"][1].tolist() == [1, 0, 0, 3] and found["val"][1].tolist() == [1, 0, 0, 1]


@pytest.mark.slow
def test_two_processes_are_initialised_as_one(manifest, tmp_path):
    overrides = [*manifest, *START, "model.train_layers=none", "schedule=constant"]
    own = {
        1: ["data.batch_size=16"],
        2: ["data.batch_size=8", "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"],
    }
    for num, more in own.items():
        dirs = [f"features.dir={tmp_path / f'features_{num}'}", "trainer.max_epochs=1"]
        train_together(num, [(tmp_path / str(num), [*overrides, *more, *dirs])])
    one, two = (pd.read_csv(tmp_path / str(num) / "history.csv").iloc[0] for num in own)
    assert two["val/loss"] == pytest.approx(one["val/loss"], rel=0.01)
    assert line_of(tmp_path / "1").split("(")[0][24:] == line_of(tmp_path / "2").split("(")[0][24:]


@pytest.fixture
def problem():
    """features (120, 7), targets of 4 classes, weights of which some are 0."""
    random = np.random.default_rng(0)
    centres, targets = random.normal(size=(4, 7)), random.integers(4, size=120)
    features = centres[targets] + 1.5 * random.normal(size=(120, 7))
    weights = random.choice([0.0, 1.0, 2.5], size=120)
    return torch.tensor(features), torch.tensor(targets), torch.tensor(weights)


@pytest.mark.parametrize("l2", [1.0, 0.01])
def test_classes_are_fitted_by_logistic_regression(problem, l2):
    features, targets, weights = problem
    layer = fit_layer(features, targets, weights, 4, cross_entropy, l2, max_steps=500)
    theirs = LogisticRegression(C=1 / (l2 * weights.sum().item()), tol=1e-10, max_iter=10_000)
    theirs.fit(features, targets, sample_weight=weights)
    np.testing.assert_allclose(layer.weight, theirs.coef_, atol=2e-3)
    ours = torch.nn.functional.linear(features, *layer).softmax(1)
    np.testing.assert_allclose(ours, theirs.predict_proba(features), atol=1e-3)


def test_numbers_are_fitted_by_ridge_regression(problem):
    features, _, weights = problem
    values = features @ torch.arange(7.0, dtype=torch.float64) + 3
    layer = fit_layer(features, values, weights, 1, half_squared_error, 0.1, max_steps=500)
    theirs = Ridge(alpha=0.1 * weights.sum().item()).fit(features, values, sample_weight=weights)
    np.testing.assert_allclose(layer.weight[0], theirs.coef_, atol=2e-3)
    assert layer.bias.item() == pytest.approx(theirs.intercept_, abs=5e-3)


def test_targets_of_weight_zero_change_nothing(problem):
    features, targets, _ = problem
    known = torch.arange(120) < 100
    some = torch.where(known, targets, UNKNOWN)
    ours = fit_layer(features, some, known.double(), 4, cross_entropy, 0.1)
    theirs = fit_layer(features[:100], targets[:100], torch.ones(100).double(), 4, cross_entropy, 0.1)
    torch.testing.assert_close(ours.weight, theirs.weight, atol=1e-3, rtol=0)


def test_a_warm_start_ends_at_the_same_minimum(problem):
    features, targets, weights = problem
    first = fit_layer(features, targets, weights, 4, cross_entropy, 1.0)
    warm = fit_layer(features, targets, weights, 4, cross_entropy, 0.1, first, max_steps=300)
    cold = fit_layer(features, targets, weights, 4, cross_entropy, 0.1, max_steps=300)
    torch.testing.assert_close(warm.weight, cold.weight, atol=3e-3, rtol=0)


def test_a_frame_is_undone_in_the_layer(problem):
    features, targets, _ = problem
    layer = Layer(torch.randn(3, 7).double(), torch.randn(3).double())
    for frame in (plain_frame(features), class_frame(features, targets, 4, 0.3)):
        framed = frame.apply(features)
        assert framed.mean(0).abs().max() < 1e-12 and framed.square().mean().item() == pytest.approx(1)
        scores = torch.nn.functional.linear(framed, *layer)
        torch.testing.assert_close(torch.nn.functional.linear(features, *frame.undo(layer)), scores)


@pytest.mark.parametrize("shrinkage", [0.0, 0.4, 1.0])
def test_the_shrunk_within_class_covariance_becomes_white(problem, shrinkage):
    features, targets, _ = problem
    frame = class_frame(features, targets, 4, shrinkage)
    within = np.concatenate([(x - x.mean(0)) for x in (features[targets == code].numpy() for code in range(4))])
    covariance = within.T @ within / len(within)
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / 7 * np.eye(7)
    matrix = frame.matrix.numpy()
    white = matrix @ shrunk @ matrix.T
    np.testing.assert_allclose(white / white[0, 0], np.eye(7), atol=1e-10)


def test_a_strong_penalty_gives_discriminant_analysis(problem):
    """The direction between two classes is that of scikit-learn's LDA, whatever the scale of single features."""
    features, targets, _ = problem
    two = targets < 2
    x, y = features[two] * torch.tensor([100.0, 1, 1, 1, 1, 1, 0.01]), targets[two]
    frame = class_frame(x, y, 2, 0.0)
    layer = frame.undo(fit_layer(frame.apply(x), y, torch.ones(len(y)).double(), 2, cross_entropy, 1e3, max_steps=500))
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y).coef_[0]
    ours = (layer.weight[1] - layer.weight[0]).numpy()
    np.testing.assert_allclose(ours / np.linalg.norm(ours), theirs / np.linalg.norm(theirs), atol=0.02)


def test_classes_of_one_or_no_photo_have_a_frame():
    features = torch.randn(3, 5)
    frame = class_frame(features, torch.tensor([0, 2, 7]), 9, 0.7)
    torch.testing.assert_close(frame.apply(features), plain_frame(features).apply(features))
