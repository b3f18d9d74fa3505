"""A loss that is inf or NaN: reported with its photos, and kept out of every checkpoint."""

import json

import pandas as pd
import pytest
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from safetensors.torch import load_file

from carvision.errors import InputError
from carvision.training import trainer as build_trainer
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
    assert listed["path"][0] in str(stopped.value) and "run.on_nonfinite_loss=skip" in str(stopped.value)
    assert f"epoch 2, batch {listed['batch'][0] + 1}" in str(stopped.value) and "\n" not in str(stopped.value)
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in last["state_dict"].values())


@pytest.mark.parametrize("extra", ["optimizer.sam_rho=0.05", "trainer.accumulate_grad_batches=2"])
def test_with_skip_the_update_is_left_out(poisoned, extra, demo_photos, tmp_path):
    overrides = [*demo(demo_photos), "run.on_nonfinite_loss=skip", "data.batch_size=8", extra]
    together = 2 if "accumulate" in extra else 1  # batches of an update
    folder = train(tmp_path / "run", *overrides)
    listed = pd.read_csv(folder / "nonfinite_loss.csv")
    assert set(photos_of(folder, poisoned[0])) <= set(listed["path"])
    assert len(listed) == 8 * together
    assert "the loss or its gradient is not finite; its update is skipped" in (folder / "run.log").read_text()
    assert all(value.isfinite().all() for value in load_file(folder / "model.safetensors").values())
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    assert {int(values["step"]) for values in state.values()} == {2 * 18 / together - 1}
    history = pd.read_csv(folder / "history.csv")
    assert history.filter(like="loss").notna().all(axis=None)
    assert json.loads((folder / "metrics.json").read_text())["test"]["loss"] > 0


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


def test_an_update_is_left_out_with_scaled_losses_and_without_fused_kernels(demo_photos, tmp_path, monkeypatch):
    """On the CPU, which takes 16-mixed here."""
    values_of, step, fused = build_trainer.trainer_values, LitClassifier.training_step, []

    def trainer_values(cfg: dict) -> dict:
        values = values_of(cfg)
        del values["precision"]
        values["plugins"].append(MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1.0)))
        return values

    def training_step(self, batch, batch_idx):
        fused.append(self.trainer.optimizers[0].defaults["fused"])
        return step(self, batch, batch_idx) * (float("nan") if batch_idx == 1 else 1)

    monkeypatch.setattr(build_trainer, "trainer_values", trainer_values)
    monkeypatch.setattr(LitClassifier, "training_step", training_step)
    folder = train(tmp_path / "run", *demo(demo_photos), "trainer.max_epochs=1", "run.on_nonfinite_loss=skip")
    assert not any(fused) and "its update is skipped" in (folder / "run.log").read_text()
