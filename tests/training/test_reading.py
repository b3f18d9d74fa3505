"""How often and when a run reads each photo."""

import time
from collections import Counter

import pandas as pd
import pytest
import torch

from carvision.data.loading.dataset import PhotoDataset
from carvision.training.module import LitClassifier
from tests.small_runs import demo, train

EPOCHS = 2


@pytest.fixture
def reads(monkeypatch):
    """A list of (path, epoch) for each photo that is read, the epoch -1 if not for training."""
    found, read = [], PhotoDataset.read

    def noted(photos: PhotoDataset, batch: dict, keys: list, start: int) -> None:
        found.extend((photos.path(row), epoch) for row, epoch in keys if row >= 0)
        read(photos, batch, keys, start)

    monkeypatch.setattr(PhotoDataset, "read", noted)
    return found


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_photo_is_read_once_an_epoch_and_once_for_the_test(num_workers, demo_photos, tmp_path, reads):
    folder = train(tmp_path / "run", *demo(demo_photos), f"data.num_workers={num_workers}")
    splits = pd.read_csv(folder / "splits.csv").groupby("split")["path"].agg(list)
    assert Counter(path for path, epoch in reads if epoch < 0) == Counter(EPOCHS * splits["val"] + splits["test"])
    num_batches = -(-len(splits["train"]) // 16)
    for epoch in range(EPOCHS):
        counts = Counter(path for path, read_in in reads if read_in == epoch)
        assert set(counts) == set(splits["train"])
        assert counts.total() == 16 * num_batches and max(counts.values()) <= 2  # the last batch is filled up


def test_validation_photos_are_read_before_the_last_step_is_over(demo_photos, tmp_path, reads, monkeypatch):
    step, waited = LitClassifier.training_step, []

    def training_step(lit: LitClassifier, batch: dict, batch_idx: int) -> torch.Tensor:
        if batch_idx + 1 == lit.trainer.num_training_batches:
            begun = time.monotonic()
            wanted = lit.current_epoch * len(lit.trainer.datamodule.datasets["val"].paths)  # of the epochs before
            while sum(epoch < 0 for _, epoch in reads) <= wanted and time.monotonic() < begun + 60:
                time.sleep(0.01)
            waited.append(time.monotonic() - begun)
        return step(lit, batch, batch_idx)

    monkeypatch.setattr(LitClassifier, "training_step", training_step)
    train(tmp_path / "run", *demo(demo_photos), "data.num_workers=1")
    assert len(waited) == EPOCHS and max(waited) < 60
