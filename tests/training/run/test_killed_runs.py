"""A run killed or stopped by a signal at any moment resumes, and ends as if undisturbed: equal to the bit."""

import contextlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from carvision.training.run.checkpoints import BEST, LAST
from tests import forked
from tests.small_runs import SMALL, demo, train
from tests.training.distributed.processes import train_together, write_manifest

# All that a run carries from step to step: dropout, mixing, augmentation, averages, momentum, schedules, two phases,
# accumulated gradients, the best epoch and the patience of early stopping
DEMANDING = [
    "trainer.max_epochs=null", "+phases.head={epochs:1,train_layers:none,optimizer:{lr:0.01}}",
    "+phases.all={epochs:3,optimizer:{lr:0.003}}", "schedule=plateau", "schedule.patience=1", "augment=mixup_cutmix",
    "model.trunk.hidden=[24]", "model.trunk.dropout=0.3", "callbacks.ema_decay=0.9", "callbacks.patience=4",
    "callbacks.monitor=val/joint/top1", "callbacks.mode=max", "trainer.accumulate_grad_batches=2", "logger=none",
    "run.checkpoint_every_minutes=0.001",
]  # fmt: skip


def assert_same_run(ours: Path, theirs: Path, extended: bool = False) -> None:
    """Require equal bits, except times and paths.

    extended: best.ckpt may be older than the extension of the run, with fewer epochs in its configuration.
    """
    frames = [pd.read_csv(folder / "history.csv", dtype=str).drop(columns="seconds") for folder in (ours, theirs)]
    pd.testing.assert_frame_equal(*frames)
    assert_equal(*(load_file(folder / "model.safetensors") for folder in (ours, theirs)), "weights")
    for name in ("last", "best"):
        states = [torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True) for folder in (ours, theirs)]
        if extended and name == "best":
            states = [{key: state[key] for key in ("epoch", "state_dict")} for state in states]
        assert_equal(*states, name)
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (ours, theirs)]
    assert [m.pop("seconds") for m in metrics] and metrics[0] == metrics[1]


def assert_equal(ours, theirs, where: str) -> None:
    """Require equal bits of nested plain values and tensors, except seconds."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours.keys() - {"seconds"}:
            assert_equal(ours[key], theirs[key], f"{where} {key}")
    elif isinstance(ours, list | tuple):
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(one, other, f"{where} {i}")
    else:
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs, where


def start(folder: Path, *overrides: str, first: str = "") -> multiprocessing.Process:
    """Start a training into `folder`, in a session of its own, after the code `first`."""
    words = [*SMALL, *overrides, f"run.dir={folder}"]
    return forked.start("carvision.train", *words, "run.report=false", cwd=folder.parent, out=folder, first=first)


def wait_for(condition: Callable[[], bool], process: multiprocessing.Process, seconds: float = 240) -> None:
    """Wait until the condition holds, or the process has ended."""
    ends = time.monotonic() + seconds
    while not condition() and process.exitcode is None:
        assert time.monotonic() < ends, "nothing happened"
        time.sleep(0.002)


def printed(folder: Path) -> str:
    """Return what the last start has printed: the log, then results."""
    files = [folder.with_name(f"{folder.name}.{stream}") for stream in ("stderr", "stdout")]
    return "".join(file.read_text(encoding="utf-8") for file in files if file.exists())


def at_any_moment(folder: Path, since: float) -> bool:
    return True


def in_writing(folder: Path, since: float) -> bool:
    """Return whether a checkpoint is being written that was begun after `since`, a time.time()."""
    for name in (BEST, LAST):
        with contextlib.suppress(FileNotFoundError):
            return (folder / "checkpoints" / f"{name}.partial").stat().st_mtime > since
    return False


def inside_an_epoch(folder: Path, since: float) -> bool:
    """Return whether last.ckpt was written after `since`, and inside an epoch."""
    file = folder / "checkpoints" / LAST
    try:
        return file.stat().st_mtime > since and torch.load(file, weights_only=True)["batches_done"] > 0
    except FileNotFoundError:
        return False


KILLED_WHEN = [inside_an_epoch, in_writing, at_any_moment]


def is_killed(folder: Path, process: multiprocessing.Process, after_s: float, when: Callable) -> bool:
    """Kill the process at the first such moment after `after_s` seconds; return False if it ended or went on before."""
    since = time.time()
    wait_for(lambda: time.time() - since > after_s, process)
    wait_for(lambda: when(folder, since), process)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL and when(folder, since)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_at_random_moments_it_ends_as_if_undisturbed(num_workers, demo_photos, tmp_path):
    overrides = [*demo(demo_photos), *DEMANDING, f"data.num_workers={num_workers}"]
    whole = tmp_path / "whole"
    process = start(whole, *overrides)
    wait_for(whole.exists, process)  # the first process of all waits for the fork server
    began = time.monotonic()
    process.join()
    assert process.exitcode == 0, printed(whole)
    duration = time.monotonic() - began

    moments = random.Random(num_workers)
    to_come = KILLED_WHEN.copy()
    for number in itertools.count():
        folder = tmp_path / f"killed_{number}"
        inside = 0
        while not (folder / "metrics.json").exists():
            process = start(folder, *overrides)
            if to_come and is_killed(folder, process, moments.uniform(0, 0.5) * duration, to_come[0]):
                inside += to_come.pop(0) is inside_an_epoch
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL), printed(folder)
        assert_same_run(folder, whole)
        resumed = (folder / "run.log").read_text(encoding="utf-8").count(f"batches of the next ({LAST}")
        assert resumed >= inside  # it did go on from there
        if not to_come:
            break
        assert number < 10, f"never {to_come[0].__name__}"


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
