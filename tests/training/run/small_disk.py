"""Run by test_checkpoints.py in a process that has mounted a small disk on `sys.argv[1]`: what a run does there."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from carvision.errors import InputError
from carvision.files.log import start_log
from carvision.training import trainer as build_trainer
from carvision.training.callbacks import Curves
from carvision.training.run.resume import is_intact
from tests.small_runs import demo, train
from tests.training.run.test_killed_runs import assert_same_run

DISK, PHOTOS, OTHER_DISK = map(Path, sys.argv[1:])
OVERRIDES = [*demo(PHOTOS), "logger=none", "trainer.max_epochs=3", "optimizer.lr=0.01"]
FILLER = DISK / "filler"


def fill() -> None:
    with FILLER.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"0" * 4096)
        except OSError:
            pass


def refused(folder: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as error:
        train(folder, *OVERRIDES, *overrides)
    return str(error.value)


# Foreseen, before anything is trained
message = refused(DISK / "large", "model.backbone=resnet18")
assert "MB free, and the checkpoints of this network need about" in message, message
assert not (DISK / "large").exists()

# Full in the middle: after the first epoch's checkpoint nothing more fits
run = DISK / "run"


class Filling(Curves):
    def on_validation_start(self, trainer, module):
        if trainer.current_epoch == 1 and not FILLER.exists():
            fill()


build_trainer.Curves = Filling
message = refused(run)
assert "no space is left on the disk" in message and "resumes the run" in message, message
assert is_intact(run / "checkpoints" / "last.ckpt")
assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 0
assert not list(run.rglob("*.partial"))
FILLER.unlink()

# TensorBoard writes in a thread of its own
message = refused(run, "logger=tensorboard")
assert "no space is left on the disk" in message, message
FILLER.unlink()

# A disk that can be read only
start_log(None)  # closes run.log
subprocess.run(["mount", "-o", "remount,ro", DISK], check=True)
for folder in (run, DISK / "new"):
    message = refused(folder)
    assert "Read-only file system" in message and "run.dir" in message, message
subprocess.run(["mount", "-o", "remount,rw", DISK], check=True)

# Once the disk is fixed, the run ends as if undisturbed
build_trainer.Curves = Curves
train(run, *OVERRIDES)
train(OTHER_DISK / "whole", *OVERRIDES)
assert_same_run(run, OTHER_DISK / "whole")
print("all is well")
