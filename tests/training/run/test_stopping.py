"""Signals as schedulers and terminals send them, to one process and to one of several."""

import os
import signal
import time

import pandas as pd
import pytest
import torch

from tests.small_runs import demo, train
from tests.training.distributed.processes import train_together, write_manifest
from tests.training.run.test_killed_runs import printed, start, wait_for

OVERRIDES = ["trainer.max_epochs=300", "data.batch_size=8", "data.num_workers=1", "logger=none"]
# A step that prints "stuck" and does not end. Its thread gets no SIGINT, as if it waited for a device.
STUCK = """
import signal, time
from carvision.training.module import LitClassifier
def step(self, batch, batch_idx):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    print("stuck", flush=True)
    time.sleep(600)
LitClassifier.%s = step
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_all_processes_ends_the_run_with_a_checkpoint(number, code, demo_photos, tmp_path):
    folder = tmp_path / "run"
    process = start(folder, *demo(demo_photos), *OVERRIDES)
    wait_for((folder / "checkpoints" / "last.ckpt").exists, process)
    time.sleep(0.2)
    os.killpg(process.pid, number)  # to the workers, too, as a terminal or a scheduler does
    process.join(60)
    output = printed(folder)
    assert process.exitcode == code, output
    assert f"{signal.Signals(number).name}: stopping with a checkpoint" in output and "Traceback" not in output
    assert output.splitlines()[-1] == f"run: {folder}"
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["epoch"] >= 0 and not (folder / "metrics.json").exists()
    if number == signal.SIGTERM:  # the next start
        train(folder, *demo(demo_photos), *OVERRIDES, "run.max_epochs_per_start=1")
        assert "resuming after" in (folder / "run.log").read_text()


def test_a_signal_during_the_test_ends_it_and_the_next_start_repeats_it(demo_photos, tmp_path):
    folder = tmp_path / "run"
    overrides = [*demo(demo_photos), "trainer.max_epochs=1", "logger=none"]
    process = start(folder, *overrides, first=STUCK % "test_step")
    wait_for(lambda: "stuck" in printed(folder), process)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 143 and "not finished (SIGTERM)" in printed(folder), printed(folder)
    before = (folder / "history.csv").read_text()
    train(folder, *overrides)
    assert (folder / "metrics.json").exists() and (folder / "history.csv").read_text() == before


def test_a_second_signal_ends_the_run_at_once(demo_photos, tmp_path):
    folder = tmp_path / "run"
    process = start(folder, *demo(demo_photos), *OVERRIDES, first=STUCK % "training_step")
    for text in ("stuck", "stopping with a checkpoint"):
        wait_for(lambda: text in printed(folder), process)  # noqa: B023
        assert process.exitcode is None
        os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 130, printed(folder)


@pytest.mark.slow
@pytest.mark.parametrize("trainer, rank, number", [("ddp", 0, signal.SIGTERM), ("fsdp", 1, signal.SIGUSR1)])
def test_a_signal_to_one_process_stops_both(tmp_path, trainer, rank, number):
    settings = [
        *write_manifest(tmp_path / "data", {"train": 37, "val": 5, "test": 5}, bad=True), f"trainer={trainer}",
        "model.backbone=test_convnext", "data.batch_size=4", "trainer.accelerator=cpu", "trainer.max_epochs=3",
        "logger=none", "model.trunk.dropout=0.2", "augment=mixup",
    ]  # fmt: skip
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    train_together(2, [(cut, settings)], status=128 + number, signalled=(rank, number))
    assert 1 <= len(pd.read_csv(cut / "history.csv")) < 3 and not (cut / "metrics.json").exists()
    train_together(2, [(cut, settings), (whole, settings)])
    ours, theirs = (pd.read_csv(folder / "history.csv").drop(columns="seconds") for folder in (cut, whole))
    pd.testing.assert_frame_equal(ours, theirs)
    ours, theirs = (torch.load(folder / "checkpoints" / "last.ckpt")["state_dict"] for folder in (cut, whole))
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
