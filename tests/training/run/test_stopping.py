"""Signals as schedulers and terminals send them, to real processes."""

import os
import signal
import time

import pytest
import torch

from tests.small_runs import demo
from tests.training.run.forked import printed, start, wait_for

OVERRIDES = ["trainer.max_epochs=300", "data.batch_size=8", "data.num_workers=1", "logger=none"]


def is_stuck(folder) -> bool:
    return folder.with_suffix(".out").exists() and "stuck" in printed(folder)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130)])
def test_a_signal_to_all_processes_ends_with_a_checkpoint_of_the_step(number, code, demo_photos, tmp_path):
    folder = tmp_path / "run"
    process = start(folder, *demo(demo_photos), *OVERRIDES)
    wait_for((folder / "checkpoints" / "last.ckpt").exists, process)
    time.sleep(0.2)
    os.killpg(process.pid, number)  # as a terminal does, or a scheduler: to the readers of photos, too
    process.join(60)
    told = printed(folder)
    assert process.exitcode == code, told
    assert f"{signal.Signals(number).name}: stopping with a checkpoint" in told and "Traceback" not in told
    assert told.splitlines()[-1] == f"run: {folder}"
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["epoch"] >= 0 and not (folder / "metrics.json").exists()
    if number == signal.SIGTERM:  # the next start
        process = start(folder, *demo(demo_photos), *OVERRIDES, "run.max_epochs_per_start=1")
        process.join(120)
        assert process.exitcode == 0, printed(folder)
        assert "resuming after" in printed(folder)


def test_the_test_after_training_ends_at_once_and_is_made_up_for(demo_photos, tmp_path):
    folder = tmp_path / "run"
    overrides = [*demo(demo_photos), "trainer.max_epochs=1", "logger=none"]
    process = start(folder, *overrides, stuck="test_step")
    wait_for(lambda: is_stuck(folder), process)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 143 and "not finished (SIGTERM)" in printed(folder), printed(folder)
    before = (folder / "history.csv").read_text()
    process = start(folder, *overrides)
    process.join(240)
    assert process.exitcode == 0 and (folder / "history.csv").read_text() == before, printed(folder)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_ends_at_once(number, code, demo_photos, tmp_path):
    folder = tmp_path / "run"
    process = start(folder, *demo(demo_photos), *OVERRIDES, stuck="training_step")
    wait_for(lambda: is_stuck(folder), process)
    os.kill(process.pid, number)
    wait_for(lambda: "stopping with a checkpoint" in printed(folder), process)
    time.sleep(0.3)
    assert process.exitcode is None
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == code, printed(folder)
