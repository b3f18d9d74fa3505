"""A run resumes where an earlier start ended, and refuses to continue as another run."""

import json
import shutil
import subprocess
import sys
import unicodedata

import numpy as np
import pandas as pd
import pytest
import torch

from carvision.data.splits import write_splits
from carvision.data.table import Classes, Table
from carvision.errors import InputError
from carvision.training.run.resume import require_same_photos
from carvision.training.run.stopping import Stopping
from tests.small_runs import demo, refuse, train
from tests.training.run.test_killed_runs import assert_same_run

ENDED = 143  # by SIGTERM


@pytest.fixture
def cut(monkeypatch):
    """cut(epoch, batch): the next start gets a SIGTERM in that step, and none later."""
    asked, real = [], Stopping.on_train_batch_end

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if asked and (trainer.current_epoch, batch_idx) >= asked[0]:
            asked.clear()
            self._receive(ENDED - 128)
        real(self, trainer, module, outputs, batch, batch_idx)

    monkeypatch.setattr(Stopping, "on_train_batch_end", on_train_batch_end)
    return lambda epoch, batch: asked.append((epoch, batch))


def test_other_photos_are_refused_and_forms_of_unicode_are_equal(tmp_path, caplog):
    composed, decomposed = (unicodedata.normalize(form, "Ros\u00e9") for form in ("NFC", "NFD"))
    for name in (composed, decomposed):
        rows = pd.DataFrame({"path": [f"{name}/1.jpg", f"{name}/2.jpg"], "split": ["train", "val"]})
        rows["class"] = np.zeros(2, np.int32)
        table = Table("folder", tmp_path, rows, {"class": Classes((name,), (name,))}, "class")
        if name == composed:
            write_splits(table, tmp_path / "splits.csv")
        require_same_photos(table, tmp_path, allow_changes=False)
    moved = table.with_split(["val", "train"])
    with pytest.raises(InputError, match=r"0 more, 0 fewer, 2 in another split or class.*run\.allow_changes=true"):
        require_same_photos(moved, tmp_path, allow_changes=False)
    require_same_photos(moved, tmp_path, allow_changes=True)
    assert "as they are now, though the photos are not those the run was started with" in caplog.text


@pytest.fixture(scope="module")
def whole(demo_photos, tmp_path_factory):
    """A run of two epochs."""
    return train(tmp_path_factory.mktemp("whole") / "run", *demo(demo_photos))


def start_and_cut(folder, *overrides: str) -> None:
    with pytest.raises(SystemExit) as ended:
        train(folder, *overrides)
    assert ended.value.code == ENDED


@pytest.mark.parametrize("overrides", [
    ["optimizer.sam_rho=0.05", "model.trunk.hidden=[16]", "model.trunk.dropout=0.5", "schedule=one_cycle",
     "data.sampler=balanced", "data.num_workers=2", "augment=rand_augment"],
    ["trainer.accumulate_grad_batches=4", "callbacks.ema_decay=0.99", "loss=r0_focal", "loss.head_weights=learned",
     "augment=mixup_cutmix"],
])  # fmt: skip
def test_a_run_interrupted_inside_an_epoch_ends_as_if_undisturbed(overrides, cut, demo_photos, tmp_path):
    overrides = [*demo(demo_photos), "optimizer.lr=0.01", "data.batch_size=8", *overrides]
    whole, folder = train(tmp_path / "whole", *overrides), tmp_path / "cut"
    for epoch, batch in ((0, 3), (1, 9)):
        cut(epoch, batch)
        start_and_cut(folder, *overrides)
    assert len(pd.read_csv(folder / "history.csv")) == 1
    assert_same_run(train(folder, *overrides), whole)
    log = (folder / "run.log").read_text()
    assert "resuming after 0 of 2 epochs and 4 batches of the next (last.ckpt of 20" in log
    assert f"the run is not finished (SIGTERM); the same command with run.dir={folder} resumes it" in log


def test_run_max_minutes_ends_each_start_with_a_checkpoint(demo_photos, tmp_path):
    overrides = [*demo(demo_photos), "trainer.max_epochs=1", "data.batch_size=48", "logger=none"]  # three steps
    whole, parts = train(tmp_path / "whole", *overrides), tmp_path / "parts"
    for start in range(4):  # one for each step, and with the last one the validation; then the test
        train(parts, *overrides, "run.max_minutes=0.0001")
        assert (parts / "metrics.json").exists() == (start == 3)
    assert_same_run(parts, whole)
    assert "not finished (run.max_minutes)" in (parts / "run.log").read_text()
    seconds = json.loads((parts / "metrics.json").read_text())["seconds"]
    assert seconds["total"] == pytest.approx(sum(seconds[s] for s in ("reading", "building", "training", "test")))


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])  # one_cycle: test_more_epochs.py
def test_new_values_are_refused_unless_allowed_and_take_effect(schedule, demo_photos, tmp_path):
    overrides = [*demo(demo_photos), f"schedule={schedule}", "callbacks.patience=2"]
    new = ["optimizer.lr=0.5", "optimizer.betas=[0.8,0.99]", "callbacks.patience=7", "trainer.max_epochs=3"]
    folder = train(tmp_path / "run", *overrides, "run.max_epochs_per_start=1")
    refuse(r"optimizer\.lr=0.001 became 0.5.*run\.allow_changes=true", folder, *overrides, *new)
    train(folder, *overrides, *new, "run.allow_changes=true", "run.max_epochs_per_start=1")
    log = (folder / "run.log").read_text()
    assert "resuming with a changed configuration: " in log and "optimizer.lr=0.001 became 0.5" in log
    fresh = train(tmp_path / "fresh", *overrides, *new, "run.max_epochs_per_start=2")
    ours, theirs = (pd.read_csv(each / "history.csv")["lr"][1] for each in (folder, fresh))
    assert ours == pytest.approx(theirs, rel=1e-5)
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert tuple(state["optimizer_states"][0]["param_groups"][0]["betas"]) == (0.8, 0.99)
    (patience,) = (values for name, values in state["callbacks"].items() if name.startswith("Patience"))
    assert patience["patience"] == 7


def test_a_damaged_checkpoint_is_replaced_by_the_newest_whole_one(demo_photos, tmp_path):
    overrides = [*demo(demo_photos), "optimizer.lr=0.01", "trainer.max_epochs=3"]
    overrides += ["callbacks.monitor=train/loss", "callbacks.mode=max"]  # the first epoch stays the best
    folder, whole = tmp_path / "run", train(tmp_path / "whole", *overrides)
    last = train(folder, *overrides, "run.max_epochs_per_start=2") / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 3] ^= 1
    last.write_bytes(content)
    earlier = shutil.copytree(folder, tmp_path / "earlier")
    (earlier / "checkpoints" / "last.ckpt").unlink()
    (earlier / "checkpoints" / "best.ckpt").rename(earlier / "checkpoints" / "previous.ckpt")  # as earlier versions did
    for run, name in ((folder, "best.ckpt"), (earlier, "previous.ckpt")):
        train(run, *overrides)
        assert f"resuming after 1 of 3 epochs ({name} of" in (run / "run.log").read_text()
    assert "last.ckpt is not a complete checkpoint" in (folder / "run.log").read_text()
    assert_same_run(folder, whole)
    assert json.loads((earlier / "metrics.json").read_text())["best_epoch"] == 1  # of those that have a checkpoint


def test_a_best_checkpoint_that_is_newer_than_the_last_is_resumed(whole, demo_photos, tmp_path):
    """As after a kill between the two."""
    folder = train(tmp_path / "run", *demo(demo_photos), "run.max_epochs_per_start=1")
    for run in (folder, other := shutil.copytree(folder, tmp_path / "other")):
        (run / "checkpoints" / "last.ckpt").unlink()
    shutil.copy(folder / "checkpoints" / "best.ckpt", other / "checkpoints" / "last.ckpt")
    shutil.copy(whole / "checkpoints" / "best.ckpt", other / "checkpoints")
    shutil.copy(whole / "history.csv", other)
    for run in (folder, other):
        assert_same_run(train(run, *demo(demo_photos)), whole)
    assert "resuming after 2 of 2 epochs (best.ckpt of" in (other / "run.log").read_text()


def test_a_run_killed_before_its_first_checkpoint_starts_over_in_its_folder(whole, demo_photos, tmp_path):
    for name in ("config.yaml.partial", "config.yaml"):  # as far as it came
        folder = tmp_path / name
        folder.mkdir()
        (folder / ".lock").touch()
        shutil.copy(whole / "config.yaml", folder / name)
        assert_same_run(train(folder, *demo(demo_photos)), whole)


def test_finished_folds_are_kept(cut, demo_photos, tmp_path):
    folds = [*demo(demo_photos), "data.split.kind=kfold", "data.split.num_folds=2"]
    run, whole = tmp_path / "run", train(tmp_path / "whole", *folds)
    cut(0, 3)
    start_and_cut(run, *folds)
    train(run, *folds, "run.max_minutes=0.0001")  # the first fold again: not a step more than one
    shutil.copytree(whole / "fold_0", run / "fold_0", dirs_exist_ok=True)
    before = (run / "fold_0" / "metrics.json").stat().st_mtime_ns
    train(run, *folds)
    assert (run / "fold_0" / "metrics.json").stat().st_mtime_ns == before
    assert_same_run(run / "fold_1", whole / "fold_1")
    ours, theirs = (json.loads((folder / "metrics.json").read_text())["test"] for folder in (run, whole))
    assert ours == theirs


def test_a_second_start_at_the_same_time_is_refused(demo_photos, tmp_path):
    held = f"from carvision.files.locks import *; kept = lock_folder(Path({str(tmp_path)!r}), ''); print(); input()"
    with subprocess.Popen([sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline()
        refuse("another process is training into", tmp_path, *demo(demo_photos))
        other.communicate(b"\n")
