"""Phases of a run, runs in several starts, averaged weights, sharpness-aware steps."""

import json

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from carvision.errors import InputError
from carvision.evaluate import evaluate
from carvision.training.optim import build_phases
from carvision.training.trainer import trainer_values
from tests.small_runs import config, demo, refuse, train
from tests.training.run.test_killed_runs import assert_same_run

PHASES = [
    "+phases.head={epochs:1,train_layers:none,optimizer:{lr:0.01}}",
    "+phases.upper={epochs:2,train_layers:partial,optimizer:{name:sgd,lr:0.001,momentum:0.5},schedule:{name:r0}}",
    "trainer.max_epochs=null", "callbacks.monitor=train/loss", "callbacks.ema_decay=0.9",
]  # fmt: skip


def test_phases_inherit_what_they_do_not_set():
    cfg = config("+phases.a={epochs:3,optimizer:{lr:0.5}}", "+phases.b={epochs:4}", "trainer.max_epochs=5")
    first, second = build_phases(cfg)
    assert first["optimizer"] == {**cfg["optimizer"], "lr": 0.5} and first["schedule"] == cfg["schedule"]
    assert second["optimizer"] == cfg["optimizer"] and first["train_layers"] == second["train_layers"] == "all"
    assert (first["epochs"], second["epochs"]) == (3, 2)  # trainer.max_epochs ends the whole
    assert build_phases(config())[0]["epochs"] == 2
    with pytest.raises(InputError, match=r"trainer.max_epochs: must be given"):
        build_phases(config("trainer.max_epochs=null"))
    for phase, line in (
        ("{train_layers:none}", r"^phases\.a\.epochs: must be given"),
        ("{epochs:1,optimizer:{rate:1}}", r"^phases\.a\.optimizer\.rate: there is no such key"),
    ):
        with pytest.raises(InputError, match=line):
            config(f"+phases.a={phase}")


@pytest.fixture(scope="module")
def two_phases(demo_photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "phases"
    return train(folder, *demo(demo_photos), *PHASES, pictures=True)


def test_each_phase_has_its_epochs_rates_and_layers(two_phases):
    history = pd.read_csv(two_phases / "history.csv")
    assert list(history["epoch"]) == [0, 1, 2] and list(history["phase"]) == ["head", "upper", "upper"]
    assert history["lr"][1:].tolist() == pytest.approx([1e-6, 1e-6 + (1e-3 - 1e-6) / 6], rel=1e-4)  # from its own start
    assert "upper: 2 epochs, sgd, lr 0.001; trained: partial" in (two_phases / "run.log").read_text()
    last = torch.load(two_phases / "checkpoints" / "last.ckpt", weights_only=True)
    assert (last["phase"], last["phase_begun"], last["epoch"]) == (1, 1, 2)
    assert {group["momentum"] for group in last["optimizer_states"][0]["param_groups"]} == {0.5}


def test_a_run_in_three_starts_equals_the_run_in_one(two_phases, demo_photos, tmp_path):
    folder = tmp_path / "parts"
    for start in (1, 2, 3):
        train(folder, *demo(demo_photos), *PHASES, "run.max_epochs_per_start=1")
        assert (folder / "metrics.json").exists() == (start == 3)
        assert len(pd.read_csv(folder / "history.csv")) == start
    assert_same_run(folder, two_phases)


@pytest.mark.parametrize(("upper", "line"), [
    ("{epochs:2,train_layers:'from:layer9'}", "phases.upper.train_layers: the backbone has no module 'layer9'"),
    ("{epochs:2,schedule:{patience:3}}", "phases.upper.schedule: cosine can't be built with"),
])  # fmt: skip
def test_a_mistake_in_a_later_phase_is_reported_before_the_first_begins(upper, line, demo_photos, tmp_path):
    refuse(f"^{line}", tmp_path / "run", *demo(demo_photos), "+phases.head={epochs:1}", f"+phases.upper={upper}")
    assert not (tmp_path / "run").exists()


def test_early_stopping_ends_a_phase_for_the_next_start_too(demo_photos, tmp_path):
    never_better = ["callbacks.monitor=val/loss", "callbacks.patience=1", "callbacks.mode=max", "optimizer.lr=0.01"]
    never_better += ["+phases.a={epochs:9,train_layers:none}", "+phases.b={epochs:9}", "trainer.max_epochs=null"]
    stopped_early = train(tmp_path / "whole", *demo(demo_photos), *never_better)
    folder = tmp_path / "run"
    while not (folder / "metrics.json").exists():
        train(folder, *demo(demo_photos), *never_better, "run.max_epochs_per_start=1")
    parts, whole = (pd.read_csv(f / "history.csv")["phase"].tolist() for f in (folder, stopped_early))
    assert parts == whole and set(whole) == {"a", "b"} and len(whole) < 18
    assert "stopped after epoch" in (stopped_early / "run.log").read_text()


def test_the_averaged_weights_of_the_best_epoch_are_evaluated_and_saved(demo_photos, tmp_path):
    worse = ["callbacks.monitor=train/loss", "callbacks.mode=max", "trainer.max_epochs=3"]  # so that the first is best
    folder = train(tmp_path / "run", *demo(demo_photos), "callbacks.ema_decay=0.9", "optimizer.lr=0.01", *worse)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["best_epoch"] == 0
    evaluate([str(folder), "--samples", "0", "--device", "cpu", "--out", str(folder / "again")])
    again = json.loads((folder / "again" / "evaluation.json").read_text())["figures"]
    assert metrics["test"]["loss"] == pytest.approx(again["loss"], rel=1e-4)
    assert json.loads((folder / "model.json").read_text())["weights"]["kind"] == "averaged"
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    averaged, raw = best["state_dict"], best["current_model_state"]
    name = "head_make.output.weight"
    assert not torch.equal(averaged[f"model.{name}"], raw[f"model.{name}"])
    assert torch.equal(load_file(folder / "model.safetensors")[name], averaged[f"model.{name}"])


def test_sharpness_aware_steps_count_each_photo_once(demo_photos, tmp_path):
    once = [*demo(demo_photos), "trainer.max_epochs=1", "optimizer.lr=1e-9"]
    runs = [train(tmp_path / rho, *once, f"optimizer.sam_rho={rho}") for rho in ("0.05", "null")]
    ours, theirs = (pd.read_csv(folder / "history.csv").iloc[0] for folder in runs)
    # with a rate of nearly nothing both see the same network in each step
    assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-4)
    assert ours["val/loss"] == pytest.approx(theirs["val/loss"], rel=1e-3)
    for key, value in (("trainer.accumulate_grad_batches", 2), ("trainer.precision", "16-mixed")):
        with pytest.raises(InputError, match=f"optimizer.sam_rho: can't be combined with {key}"):
            trainer_values(cfg := config("optimizer.sam_rho=0.05", f"{key}={value}"), build_phases(cfg))
