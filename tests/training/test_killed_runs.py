"""A run that is killed at any moment goes on, and ends as one that was never disturbed: equal to the bit."""

import json
import random
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.small_runs import demo
from tests.training.forked import printed, start, wait_for

NUM_KILLS = 20
# All that a run carries from step to step: dropout, mixing, augmentation, averages, momentum, schedules, two phases,
# accumulated gradients, the best epoch and the patience of early stopping
DEMANDING = [
    "trainer.max_epochs=null",
    "+phases.head={epochs:1,train_layers:none,optimizer:{lr:0.01}}",
    "+phases.all={epochs:3,optimizer:{lr:0.003}}",
    "schedule=plateau",
    "schedule.patience=1",
    "augment=mixup_cutmix",
    "model.trunk.hidden=[24]",
    "model.trunk.dropout=0.3",
    "callbacks.ema_decay=0.9",
    "callbacks.patience=4",
    "callbacks.monitor=val/joint/top1",
    "callbacks.mode=max",
    "trainer.accumulate_grad_batches=2",
    "logger=none",
    "run.checkpoint_every_minutes=0.003",
]


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Histories, weights, figures, and all that the last checkpoint holds but for times and paths."""
    histories = [(folder / "history.csv").read_text() for folder in (ours, theirs)]
    frames = [pd.read_csv(folder / "history.csv", dtype=str).drop(columns="seconds") for folder in (ours, theirs)]
    pd.testing.assert_frame_equal(*frames), histories
    weights = [load_file(folder / "model.safetensors") for folder in (ours, theirs)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    for name in ("last.ckpt", "best.ckpt"):
        assert_equal(*(torch.load(folder / "checkpoints" / name, weights_only=True) for folder in (ours, theirs)), name)
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (ours, theirs)]
    assert [m.pop("seconds") for m in metrics] and metrics[0] == metrics[1]


def assert_equal(ours, theirs, place: str) -> None:
    """Of plain values and tensors, to the bit; seconds are left out."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), place
        for key in ours:
            if key != "seconds":
                assert_equal(ours[key], theirs[key], f"{place} {key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), place
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(one, other, f"{place} {i}")
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), place
    else:
        assert ours == theirs, place


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_at_random_moments_it_ends_as_if_undisturbed(num_workers, demo_photos, tmp_path):
    overrides = [*demo(demo_photos), *DEMANDING, f"data.num_workers={num_workers}"]
    whole = tmp_path / "whole"
    began = time.monotonic()
    process = start(whole, *overrides)
    process.join()
    assert process.exitcode == 0, printed(whole)
    duration = time.monotonic() - began

    moments = random.Random(num_workers)
    kills = in_writing = runs = 0
    while kills < NUM_KILLS // 2:  # of each of the two tests; a run may end before
        folder = tmp_path / f"killed_{runs}"
        runs += 1
        while not (folder / "metrics.json").exists():
            process = start(folder, *overrides)
            if kills < NUM_KILLS // 2:
                if kills % 3 == 2:  # while a checkpoint is being written
                    new = folder / "checkpoints" / "new.ckpt"
                    new.unlink(missing_ok=True)
                    wait_for(new.exists, process)
                    in_writing += new.exists()
                else:
                    ends = time.monotonic() + moments.uniform(0, 0.8) * duration
                    wait_for(lambda: time.monotonic() > ends, process)  # noqa: B023
                if process.exitcode is None:
                    process.kill()
                    kills += 1
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL), printed(folder)
        assert_same_run(folder, whole)
    assert in_writing > 0
    assert "batches of the next (last.ckpt" in printed(folder)  # it did go on from inside an epoch
