"""A signal to one of several processes stops all of them, and the run goes on as if it had never been cut."""

import signal
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.training.distributed.processes import train_together, write_manifest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("trainer, rank, number", [("ddp", 0, signal.SIGTERM), ("fsdp", 1, signal.SIGUSR1)])
def test_a_signal_to_one_process_stops_both(tmp_path, trainer, rank, number):
    data = write_manifest(tmp_path / "data", {"train": 37, "val": 5, "test": 5}, bad=True)
    settings = [
        *data, "model.backbone=test_convnext", "data.batch_size=4", f"trainer={trainer}", "trainer.accelerator=cpu",
        "trainer.max_epochs=3", "logger=none", "model.trunk.dropout=0.2", "augment=mixup",
    ]  # fmt: skip
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    train_together(2, [(cut, settings)], status=128 + number, signalled=(rank, number))
    assert 1 <= len(pd.read_csv(cut / "history.csv")) < 3 and not (cut / "metrics.json").exists()
    train_together(2, [(cut, settings), (whole, settings)])
    ours, theirs = (pd.read_csv(folder / "history.csv").drop(columns="seconds") for folder in (cut, whole))
    pd.testing.assert_frame_equal(ours, theirs)
    assert weights(cut).keys() == weights(whole).keys()
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(cut)[name], tensor, atol=0, rtol=0)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt")["state_dict"]
