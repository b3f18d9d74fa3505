"""A finished run is trained further, ends as if planned so, and is never lost on the way."""

import json
import shutil

import pandas as pd
import pytest

from carvision.training.run.folder import EXTENDING, is_finished
from tests.small_runs import demo, refuse, train
from tests.training.run.test_killed_runs import assert_same_run
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


def contents(folder) -> dict[str, bytes]:
    """Return the contents of all files that a refused command must leave alone."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "run.log"}


def test_an_interrupted_extension_keeps_the_first_end_and_resumes(cut, finished, planned, tmp_path):  # noqa: F811
    overrides, run = finished
    folder = shutil.copytree(run, tmp_path / "run")
    cut(1, 3)
    start_and_cut(folder, *overrides, *MORE)
    for name in ("metrics.json", "model.safetensors", "model.json", "results.txt"):
        assert (folder / name).read_bytes() == (run / name).read_bytes()
    assert (folder / EXTENDING).exists() and not is_finished(folder)
    train(folder, *overrides, "trainer.max_epochs=2")  # which is the run's own configuration now
    assert_same_run(folder, planned, extended=True)
    assert is_finished(folder) and not (folder / "seconds.json").exists()
    assert "trainer.max_epochs=1 became 2" in (folder / "run.log").read_text()
    seconds = [json.loads((each / "metrics.json").read_text())["seconds"]["test"] for each in (run, folder)]
    assert seconds[1] > seconds[0]


@pytest.mark.parametrize(("extra", "line"), [
    (["trainer.max_epochs=2"], r"exists already.*a finished run.*run\.allow_changes=true.*trainer\.max_epochs=<more>"),
    (["run.allow_changes=true"], r"all of its 1 epochs are trained, and 1 are asked for.*trainer\.max_epochs"),
    ([*MORE, "optimizer=sgd"], r"optimizer\.name=adamw can't become sgd"),
    ([*MORE, "run.seeds=[0,1]"], "holds a single run"),
])  # fmt: skip
def test_a_command_that_would_not_train_further_is_refused_in_one_line(extra, line, finished, tmp_path):
    overrides, run = finished
    folder = shutil.copytree(run, tmp_path / "run")
    refuse(line, folder, *overrides, *extra)
    assert contents(folder) == contents(run)


def test_a_run_whose_checkpoints_are_gone_is_left_alone(finished, planned, tmp_path):
    overrides, folder = [*finished[0], "trainer.max_epochs=2"], shutil.copytree(planned, tmp_path / "run")
    refuse(r"the run has trained 2 epochs already.*give 2 or more", folder, *finished[0], "run.allow_changes=true")
    shutil.rmtree(folder / "checkpoints")
    before = contents(folder)
    more = [*overrides, "run.allow_changes=true", "trainer.max_epochs=3"]
    refuse(r"its checkpoints are gone; use a new run\.dir.*model\.weights=", folder, *more)
    assert contents(folder) == before
    (folder / "metrics.json").unlink()
    (folder / "model.safetensors").unlink()
    refuse(r"holds a history of 2 epochs, and its checkpoints are gone; use a new run\.dir", folder, *overrides)


def test_the_schedule_follows_the_new_end(demo_photos, tmp_path):
    overrides = [*demo(demo_photos), *PLAIN, "schedule=one_cycle", "callbacks.patience=3", "data.batch_size=48"]
    train(tmp_path / "run", *overrides)
    train(tmp_path / "run", *overrides, "trainer.max_epochs=3", "run.allow_changes=true")
    train(tmp_path / "planned", *overrides, "trainer.max_epochs=3")
    ours, theirs = (pd.read_csv(tmp_path / name / "history.csv") for name in ("run", "planned"))
    assert ours["epoch"].tolist() == [0, 1, 2]
    assert ours["lr"][1:].tolist() == pytest.approx(theirs["lr"][1:].tolist(), rel=1e-5)


def test_the_last_phase_may_be_longer_and_others_may_follow(demo_photos, tmp_path):
    overrides = [*demo(demo_photos), *PLAIN, "trainer.max_epochs=null", "schedule=constant", "features.keep=false"]
    overrides += ["+phases.head={epochs:1,train_layers:none}"]
    more = [*overrides, "run.allow_changes=true"]
    once, twice = (f"+phases.all={{epochs:{num},optimizer:{{lr:0.003}}}}" for num in (1, 2))
    run, planned = train(tmp_path / "run", *overrides, once), train(tmp_path / "planned", *overrides, twice)
    longer = shutil.copytree(run, tmp_path / "longer")
    refuse(r"all of its 2 epochs are trained.*phases\.all\.epochs", longer, *more, once, "trainer.max_epochs=5")
    assert_same_run(train(longer, *more, twice), planned, extended=True)
    train(run, *more, once, "+phases.third={epochs:1}")
    assert pd.read_csv(run / "history.csv")["phase"].tolist() == ["head", "all", "third"]


def test_a_run_that_stopped_early_needs_more_patience(demo_photos, tmp_path):
    overrides = [*demo(demo_photos), *PLAIN, "trainer.max_epochs=4", "schedule=constant"]
    overrides += ["callbacks.monitor=train/loss", "callbacks.mode=max"]  # the first epoch stays the best
    more = [*overrides, "run.allow_changes=true"]
    folder = train(tmp_path / "run", *overrides, "callbacks.patience=1")
    assert len(pd.read_csv(folder / "history.csv")) == 2
    line = r"early stopping ended it after 2 epochs.*callbacks\.patience=1 would"
    refuse(line, folder, *more, "callbacks.patience=1", "trainer.max_epochs=6")
    train(folder, *more, "callbacks.patience=2")
    assert_same_run(folder, train(tmp_path / "planned", *overrides, "callbacks.patience=2"), extended=True)


def test_each_seed_is_trained_further_once(cut, demo_photos, tmp_path):  # noqa: F811
    seeds = [*demo(demo_photos), *PLAIN, "schedule=constant", "run.seeds=[0,1]"]
    folder = train(tmp_path / "run", *seeds)
    cut(1, 3)
    start_and_cut(folder, *seeds, *MORE)
    assert not is_finished(folder)
    train(folder, *seeds, "trainer.max_epochs=2")
    planned = train(tmp_path / "planned", *seeds, "trainer.max_epochs=2")
    for part in ("seed_0", "seed_1"):
        assert_same_run(folder / part, planned / part, extended=True)
    ours, theirs = (json.loads((run / "metrics.json").read_text())["test"] for run in (folder, planned))
    assert ours == theirs and is_finished(folder)
    refuse("all of its 2 epochs are trained", folder, *seeds, *MORE)
