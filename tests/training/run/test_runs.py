"""Small whole runs: what the folder holds, and what is refused."""

import hashlib
import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import carvision
from carvision.run_report.write import write_report
from carvision.system.versions import name_of, requirements
from carvision.training.run.single_run import metrics_of
from carvision.training.trainer import stop_rule
from tests import forked
from tests.small_runs import SMALL, config, demo, refuse, train


def test_the_folder_holds_what_the_contract_says(demo_run):
    names = {str(path.relative_to(demo_run)) for path in demo_run.rglob("*") if path.is_file()}
    assert {
        "config.yaml", "splits.csv", "history.csv", "metrics.json", "run.log", "summary.txt", "results.txt", "loss.png",
        "model.safetensors", "model.json", "accuracy.png", "metrics.png",
    } <= names  # fmt: skip
    assert {path.name for path in (demo_run / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert any("tensorboard/events" in name for name in names)
    assert not any(name.endswith(".partial") for name in names)
    best = json.loads((demo_run / "metrics.json").read_text())["best_epoch"]
    described = json.loads((demo_run / "model.json").read_text())
    assert described["weights"] == {"file": "model.safetensors", "kind": "raw", "epoch": best}
    assert described["crop_to_box"] and carvision.load(demo_run).crop_to_box


def test_history_has_a_row_an_epoch_and_metrics_are_those_of_the_best(demo_run):
    metrics = json.loads((demo_run / "metrics.json").read_text())
    history = pd.read_csv(demo_run / "history.csv")
    assert history["epoch"].tolist() == [0, 1]
    assert {"val/model/auc_keras", "val/joint/consistent", "val/speed/mae", "val/loss_total"} <= set(history.columns)
    assert history["lr"].between(0, 0.01).all() and (history["seconds"] > 0).all()
    best = history.loc[history["val/loss"].idxmin()]
    assert metrics["best_epoch"] == best["epoch"] and metrics["seconds"]["training"] > 0
    checkpoint = torch.load(demo_run / "checkpoints" / "best.ckpt")
    for split in ("train", "val"):
        assert metrics[split] == checkpoint["metrics"][split]  # in full precision, unlike the history
        row = {name.removeprefix(f"{split}/"): best[name] for name in history if name.startswith(f"{split}/")}
        assert metrics[split] == pytest.approx(row, rel=1e-5) and metrics[split] != row
    of_rows = metrics_of({"callbacks": checkpoint["callbacks"]})  # of an earlier version
    assert of_rows["val"] == pytest.approx(metrics["val"]) and of_rows["train"] == pytest.approx(metrics["train"])
    for split in ("val", "test"):
        of_split = metrics["decodings"][split]
        assert set(of_split) == {"independent", "joint", "marginal"} and of_split["joint"]["joint/consistent"] == 1
        expected = {name: metrics[split][name] for name in of_split["independent"]}
        assert of_split["independent"] == pytest.approx(expected)


def test_all_folds_are_trained_and_their_mean_reported(demo_photos, tmp_path):
    overrides = [*demo(demo_photos), "data.split.kind=kfold", "data.split.num_folds=3", "trainer.max_epochs=1"]
    folder = train(tmp_path / "folds", *overrides, "data.split.val_fraction=0.25", "run.price_per_hour=10")
    folds = ["fold_0", "fold_1", "fold_2"]
    metrics, *each = (json.loads((folder / name / "metrics.json").read_text()) for name in ("", *folds))
    assert metrics["cost"] == pytest.approx(sum(part["cost"] for part in each))
    assert metrics["seconds"]["total"] == pytest.approx(sum(part["seconds"]["total"] for part in each), abs=0.01)
    summary, values = metrics["test"]["model/top1"], [part["test"]["model/top1"] for part in each]
    assert summary["mean"] == pytest.approx(np.mean(values)) and summary["std"] == pytest.approx(np.std(values, ddof=1))
    splits = pd.concat([pd.read_csv(folder / name / "splits.csv") for name in folds])
    assert sorted(splits.loc[splits["split"] == "test", "path"]) == sorted(set(splits["path"]))
    text = write_report(folder, ["data.num_workers=0"], "cpu").read_text(encoding="utf-8")
    assert f"{100 * summary['mean']:.1f}&nbsp;% of the photos" in text
    assert all((folder / name / "report.html").exists() and f'href="{name}/report.html"' in text for name in folds)
    tested = {name: pd.read_csv(folder / name / "splits.csv").query("split == 'test'")["path"] for name in folds}
    errors = pd.read_csv(folder / "label_errors_model.csv")
    assert len(errors) and all(
        path in set(tested[fold]) for fold, path in zip(errors["split"], errors["path"], strict=True)
    )


@pytest.mark.parametrize(("override", "message"), [
    ("+model/head@model.heads.colour=linear", "model.heads.colour: demo has no label 'colour'"),
    ("callbacks.monitor=val/model/aucc", "callbacks.monitor: 'val/model/aucc' .*nearest: val/model/auc"),
    ("trainer=gpu", "trainer: this machine can't run trainer.accelerator=gpu"),
])  # fmt: skip
def test_a_mistake_is_refused_in_one_line(demo_photos, tmp_path, override, message):
    if override == "trainer=gpu" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    refuse(message, tmp_path / "run", *demo(demo_photos), override)
    assert not (tmp_path / "run").exists()  # so that the corrected command can name it again


def test_early_stopping_watches_a_metric_of_its_own(demo_photos, tmp_path):
    """The loss falls at every epoch: with the monitor that chooses the best epoch, training would not end."""
    kept = ["callbacks.monitor=train/loss", "callbacks.mode=min", "callbacks.patience=2", "optimizer.lr=0.01"]
    stop = ["callbacks.stop_monitor=train/loss", "callbacks.stop_mode=max"]
    folder = train(tmp_path / "run", *demo(demo_photos), *kept, *stop, "trainer.max_epochs=9")
    losses = pd.read_csv(folder / "history.csv")["train/loss"]
    assert len(losses) == 3 and losses.is_monotonic_decreasing
    assert json.loads((folder / "metrics.json").read_text())["best_epoch"] == 2
    assert "stopped after epoch 3: no better train/loss" in (folder / "run.log").read_text()
    callbacks = config("callbacks.monitor=val/class/top3", "callbacks.mode=max")["callbacks"]
    assert stop_rule(callbacks | {"stop_monitor": "val/loss_total"}) == ("val/loss_total", "min")


def test_an_unexpected_error_ends_the_command_though_workers_are_alive(tmp_path, demo_photos):
    overrides = [*demo(demo_photos), *SMALL, "data.num_workers=1", "run.dir=run"]
    broken = "import carvision.metrics.epoch as epoch; epoch.EpochMetrics.compute = lambda self: 1 / 0"
    process = forked.start("carvision.train", *overrides, cwd=tmp_path, out=tmp_path / "out", first=broken)
    (done,) = forked.finish([process], [tmp_path / "out"], timeout_s=120)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


def test_a_resumed_run_records_both_starts(demo_photos, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "carvision.train", "run.dir=a b"])
    train(run, *demo(demo_photos), "run.max_epochs_per_start=1", "seed=3", "logger=none")
    train(run, *demo(demo_photos), "seed=3", "data.num_workers=1", "logger=none")
    first, second = json.loads((run / "environment.json").read_text())
    assert first["command"] == "python -m carvision.train 'run.dir=a b'" and first["seed"] == second["seed"] == 3
    digest = hashlib.sha256((run / "splits.csv").read_bytes()).hexdigest()
    assert first["splits_sha256"] == second["splits_sha256"] == digest
    assert {name_of(line) for line in requirements()} <= set(first["versions"])
    assert first["precision"] == "32-true" and first["world_size"] == 1 and first["devices"] == ["cpu"]
    assert set(first["carvision"]) == {"version", "commit", "changed"}
