"""A loss that is inf or NaN: reported with its photos, and kept out of every checkpoint."""

import pandas as pd
import pytest
import torch

from carvision.errors import InputError
from carvision.training.module import LitClassifier
from tests.small_runs import demo, refuse, train


@pytest.fixture
def poisoned(monkeypatch):
    """Give the batch with row 7 of the training photos a loss of NaN in epoch 1, and batch norm's statistics, too; a
    list that gets the rows of these batches."""
    met, step = [], LitClassifier.training_step

    def training_step(self, batch, batch_idx):
        bad = self.current_epoch == 1 and 7 in batch["index"].tolist()
        if bad:
            met.append(batch["index"].tolist())
            self.normalise.mean += float("nan")  # what the network sees, and with it batch norm's statistics
        loss = step(self, batch, batch_idx)
        self.normalise.mean.nan_to_num_(nan=0.5)
        return loss

    monkeypatch.setattr(LitClassifier, "training_step", training_step)
    return met


def photos_of(folder, rows: list[int]) -> list[str]:
    splits = pd.read_csv(folder / "splits.csv")
    return splits.loc[splits["split"] == "train", "path"].iloc[rows].tolist()


def test_the_run_stops_names_the_photos_and_keeps_the_checkpoint_before(poisoned, demo_photos, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(InputError) as stopped:
        train(folder, *demo(demo_photos), "run.checkpoint_every_minutes=0")
    listed = pd.read_csv(folder / "nonfinite_loss.csv")
    assert listed["path"].tolist() == photos_of(folder, poisoned[0]) and set(listed["epoch"]) == {1}
    assert listed["path"][0] in str(stopped.value)
    assert f"epoch 2, batch {listed['batch'][0] + 1}" in str(stopped.value) and "\n" not in str(stopped.value)
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in last["state_dict"].values())


def test_too_high_a_learning_rate_is_found_in_the_first_epoch(demo_photos, tmp_path):
    with pytest.raises(InputError, match=r"optimizer\.lr is too large.* no checkpoint was written yet"):
        train(tmp_path / "run", *demo(demo_photos), "optimizer=sgd", "optimizer.lr=1e30")
    assert (tmp_path / "run" / "nonfinite_loss.csv").exists()
    # Without a checkpoint, the corrected command may name the same folder
    train(tmp_path / "run", *demo(demo_photos), "optimizer=sgd", "optimizer.lr=0.01", "trainer.max_epochs=1")


def test_weights_that_a_gradient_ruins_reach_no_checkpoint(demo_photos, tmp_path, monkeypatch):
    """The last step of the second epoch ruins them, so that no loss shows it before the checkpoint."""

    def on_after_backward(self):
        if self.current_epoch == 1 and self.trainer.fit_loop.batch_idx == 8:
            next(self.parameters()).grad.fill_(float("nan"))

    monkeypatch.setattr(LitClassifier, "on_after_backward", on_after_backward)
    folder = tmp_path / "run"
    refuse(r"weights are not finite after epoch 2, batch 9\..*last\.ckpt is from before", folder, *demo(demo_photos))
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 0 and all(value.isfinite().all() for value in last["state_dict"].values())
