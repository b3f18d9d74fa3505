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
def reads(tmp_path, monkeypatch):
    """A file with a line for each photo that any process reads: its path and the epoch, -1 if not for training."""
    file, read = tmp_path / "reads.csv", PhotoDataset.__getitem__
    file.write_text("path,epoch\n")

    def noted(photos: PhotoDataset, keys: list) -> dict:
        with file.open("a") as out:
            out.write("".join(f"{photos.path(row)},{epoch}\n" for row, epoch in keys if row >= 0))
        return read(photos, keys)

    monkeypatch.setattr(PhotoDataset, "__getitem__", noted)
    return file


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_photo_is_read_once_an_epoch_and_once_for_the_test(num_workers, demo_photos, tmp_path, reads):
    folder = train(tmp_path / "run", *demo(demo_photos), f"data.num_workers={num_workers}")
    splits = pd.read_csv(folder / "splits.csv").groupby("split")["path"].agg(list)
    found = pd.read_csv(reads)
    assert Counter(found["path"][found["epoch"] < 0]) == Counter(EPOCHS * splits["val"] + splits["test"])
    num_batches = -(-len(splits["train"]) // 16)
    for epoch in range(EPOCHS):
        counts = Counter(found["path"][found["epoch"] == epoch])
        assert set(counts) == set(splits["train"])
        assert counts.total() == 16 * num_batches and max(counts.values()) <= 2  # the last batch is filled up


def test_validation_photos_are_read_before_the_last_step_is_over(demo_photos, tmp_path, reads, monkeypatch):
    step, waited = LitClassifier.training_step, []

    def training_step(lit: LitClassifier, batch: dict, batch_idx: int) -> torch.Tensor:
        if batch_idx + 1 == lit.trainer.num_training_batches:
            begun = time.monotonic()
            wanted = lit.current_epoch * len(lit.trainer.datamodule.datasets["val"].paths)  # of the epochs before
            while (pd.read_csv(reads)["epoch"] < 0).sum() <= wanted and time.monotonic() < begun + 60:
                time.sleep(0.01)
            waited.append(time.monotonic() - begun)
        return step(lit, batch, batch_idx)

    monkeypatch.setattr(LitClassifier, "training_step", training_step)
    train(tmp_path / "run", *demo(demo_photos), "data.num_workers=1")
    assert len(waited) == EPOCHS and max(waited) < 60
