"""A finished run is trained further, ends as if planned so, and is never lost on the way."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from carvision.errors import InputError
from carvision.training.run.folder import EXTENDING, is_finished
from tests.small_runs import demo, train
from tests.training.run.test_killed_runs import assert_equal
from tests.training.run.test_resume import ENDED, cut, start_and_cut  # noqa: F401  cut is a fixture

PLAIN = ["logger=none", "optimizer.lr=0.01", "trainer.max_epochs=1", "model.trunk.hidden=[16]"]
MORE = ["run.allow_changes=true", "trainer.max_epochs=2"]


@pytest.fixture(scope="module")
def finished(demo_photos, tmp_path_factory):
    """(overrides, the folder of a finished run of one epoch)"""
    overrides = [*demo(demo_photos), *PLAIN, "schedule=constant", "callbacks.ema_decay=0.9", "augment=mixup"]
    return overrides, train(tmp_path_factory.mktemp("finished") / "run", *overrides)


@pytest.fixture(scope="module")
def planned(finished, tmp_path_factory):
    """The folder of a run that had two epochs from the beginning."""
    return train(tmp_path_factory.mktemp("planned") / "run", *finished[0], "trainer.max_epochs=2")


def assert_as_planned(ours: Path, theirs: Path) -> None:
    """Require equal bits; only best.ckpt may be older than the extension, with fewer epochs in its configuration."""
    frames = [pd.read_csv(folder / "history.csv", dtype=str).drop(columns="seconds") for folder in (ours, theirs)]
    pd.testing.assert_frame_equal(*frames)
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (ours, theirs)]
    assert [m.pop("seconds") for m in metrics] and metrics[0] == metrics[1]
    assert_equal(*(load_file(folder / "model.safetensors") for folder in (ours, theirs)), "weights")
    last, best = (
        [torch.load(folder / "checkpoints" / name, weights_only=True) for folder in (ours, theirs)]
        for name in ("last.ckpt", "best.ckpt")
    )
    assert_equal(*last, "last.ckpt")
    assert best[0]["epoch"] == best[1]["epoch"]
    assert_equal(best[0]["state_dict"], best[1]["state_dict"], "best.ckpt")


def contents(folder) -> dict[str, bytes]:
    """Return the contents of all files that a refused command must leave alone."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "run.log"}


def test_a_longer_run_equals_a_run_planned_so(finished, planned, tmp_path):
    overrides, run = finished
    folder = shutil.copytree(run, tmp_path / "run")
    train(folder, *overrides, *MORE)
    assert_as_planned(folder, planned)
    assert is_finished(folder) and not (folder / "seconds.json").exists()
    log = (folder / "run.log").read_text()
    assert "trainer.max_epochs=1 became 2" in log and "over 2 epochs: the next step has lr" in log
    seconds = [json.loads((each / "metrics.json").read_text())["seconds"] for each in (run, folder)]
    assert seconds[1]["total"] > seconds[0]["total"] and seconds[1]["test"] > seconds[0]["test"]


def test_an_interrupted_extension_keeps_the_first_end_and_resumes(cut, finished, planned, tmp_path):  # noqa: F811
    overrides, run = finished
    folder = shutil.copytree(run, tmp_path / "run")
    cut(1, 3)
    start_and_cut(folder, *overrides, *MORE)
    for name in ("metrics.json", "model.safetensors", "model.json", "results.txt"):
        assert (folder / name).read_bytes() == (run / name).read_bytes()
    assert (folder / EXTENDING).exists() and not is_finished(folder)
    train(folder, *overrides, "trainer.max_epochs=2")  # which is the run's own configuration now
    assert_as_planned(folder, planned)
    assert is_finished(folder)


@pytest.mark.parametrize(("extra", "line"), [
    (["trainer.max_epochs=2"], r"exists already.*a finished run.*run\.allow_changes=true.*trainer\.max_epochs=<more>"),
    ([], r"exists already.*finished run.*model\.weights="),
    (["run.allow_changes=true"], r"all of its 1 epochs are trained, and 1 are asked for.*trainer\.max_epochs"),
    ([*MORE, "optimizer=sgd"], r"optimizer\.name=adamw can't become sgd"),
    ([*MORE, "run.seeds=[0,1]"], "holds a single run"),
])  # fmt: skip
def test_a_command_that_would_not_train_further_is_refused_in_one_line(extra, line, finished, tmp_path):
    overrides, run = finished
    folder = shutil.copytree(run, tmp_path / "run")
    with pytest.raises(InputError, match=line) as refused:
        train(folder, *overrides, *extra)
    assert "\n" not in str(refused.value) and "remove" not in str(refused.value)
    assert contents(folder) == contents(run)


def test_fewer_epochs_than_were_trained_are_refused(planned, finished, tmp_path):
    folder = shutil.copytree(planned, tmp_path / "run")
    with pytest.raises(InputError, match=r"trainer\.max_epochs: the run has trained 2 epochs already.*give 2 or more"):
        train(folder, *finished[0], "run.allow_changes=true")
    (folder / "metrics.json").unlink()  # nor where the run is not finished
    with pytest.raises(InputError, match=r"trainer\.max_epochs: the run has trained 2 epochs already.*give 2 or more"):
        train(folder, *finished[0], "run.allow_changes=true")


def test_a_run_whose_checkpoints_are_gone_is_left_alone(finished, tmp_path):
    overrides, run = finished
    folder = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    before = contents(folder)
    with pytest.raises(InputError, match=r"its checkpoints are gone; use a new run\.dir.*model\.weights="):
        train(folder, *overrides, *MORE)
    assert contents(folder) == before
    (folder / "metrics.json").unlink()
    with pytest.raises(
        InputError, match=r"holds model\.safetensors, and its last checkpoint is gone; use a new run\.dir"
    ):
        train(folder, *overrides)


def test_the_schedule_follows_the_new_end(demo_photos, tmp_path):
    overrides = [*demo(demo_photos), *PLAIN, "schedule=cosine", "callbacks.patience=3"]
    train(tmp_path / "run", *overrides)
    train(tmp_path / "run", *overrides, "trainer.max_epochs=3", "run.allow_changes=true")
    train(tmp_path / "planned", *overrides, "trainer.max_epochs=3")
    ours, theirs = (pd.read_csv(tmp_path / name / "history.csv") for name in ("run", "planned"))
    assert ours["epoch"].tolist() == [0, 1, 2]
    assert ours["lr"][1:].tolist() == pytest.approx(theirs["lr"][1:].tolist(), rel=1e-5)


def test_the_last_phase_may_be_longer_and_others_may_follow(demo_photos, tmp_path):
    overrides = [*demo(demo_photos), *PLAIN, "trainer.max_epochs=null", "schedule=constant", "features.keep=false"]
    overrides += ["+phases.head={epochs:1,train_layers:none}"]
    last = "+phases.all={{epochs:{},optimizer:{{lr:0.003}}}}"
    train(tmp_path / "run", *overrides, last.format(1))
    train(tmp_path / "planned", *overrides, last.format(2))
    longer = shutil.copytree(tmp_path / "run", tmp_path / "longer")
    with pytest.raises(InputError, match=r"all of its 2 epochs are trained.*phases\.all\.epochs"):
        train(longer, *overrides, last.format(1), "trainer.max_epochs=5", "run.allow_changes=true")
    train(longer, *overrides, last.format(2), "run.allow_changes=true")
    assert_as_planned(longer, tmp_path / "planned")
    train(tmp_path / "run", *overrides, last.format(1), "+phases.third={epochs:1}", "run.allow_changes=true")
    assert pd.read_csv(tmp_path / "run" / "history.csv")["phase"].tolist() == ["head", "all", "third"]


def test_a_run_that_stopped_early_needs_more_patience(demo_photos, tmp_path):
    overrides = [*demo(demo_photos), *PLAIN, "trainer.max_epochs=4", "schedule=constant"]
    overrides += ["callbacks.monitor=train/loss", "callbacks.mode=max"]  # the first epoch stays the best
    folder = train(tmp_path / "run", *overrides, "callbacks.patience=1")
    assert len(pd.read_csv(folder / "history.csv")) == 2
    with pytest.raises(InputError, match=r"early stopping ended it after 2 epochs.*callbacks\.patience=1 would"):
        train(folder, *overrides, "callbacks.patience=1", "trainer.max_epochs=6", "run.allow_changes=true")
    train(folder, *overrides, "callbacks.patience=2", "run.allow_changes=true")
    train(tmp_path / "planned", *overrides, "callbacks.patience=2")
    assert_as_planned(folder, tmp_path / "planned")


def test_each_seed_is_trained_further_once(cut, demo_photos, tmp_path):  # noqa: F811
    seeds = [*demo(demo_photos), *PLAIN, "schedule=constant", "run.seeds=[0,1]"]
    folder = train(tmp_path / "run", *seeds)
    before = (folder / "metrics.json").read_bytes()
    cut(1, 3)
    start_and_cut(folder, *seeds, *MORE)
    assert (folder / "metrics.json").read_bytes() == before and not is_finished(folder)
    train(folder, *seeds, "trainer.max_epochs=2")
    train(tmp_path / "planned", *seeds, "trainer.max_epochs=2")
    for part in ("seed_0", "seed_1"):
        assert_as_planned(folder / part, tmp_path / "planned" / part)
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text())["test"] for name in ("run", "planned")]
    assert metrics[0] == metrics[1] and is_finished(folder)
    with pytest.raises(InputError, match="all of its 2 epochs are trained"):
        train(folder, *seeds, *MORE)


def test_one_cycle_continues_on_the_longer_curve(demo_photos, tmp_path):
    overrides = [*demo(demo_photos), *PLAIN, "schedule=one_cycle", "data.batch_size=48"]
    train(tmp_path / "run", *overrides)
    train(tmp_path / "run", *overrides, *MORE, "run.max_epochs_per_start=1")
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    train(tmp_path / "planned", *overrides, "trainer.max_epochs=2")
    other = torch.load(tmp_path / "planned" / "checkpoints" / "last.ckpt", weights_only=True)
    ours, theirs = (each["lr_schedulers"][0] for each in (state, other))
    assert ours["last_epoch"] == theirs["last_epoch"] and ours["total_steps"] == theirs["total_steps"]
    assert ours["_last_lr"] == theirs["_last_lr"]
    log = (tmp_path / "run" / "run.log").read_text()
    assert "schedule one_cycle over 2 epochs: the next step has lr" in log
