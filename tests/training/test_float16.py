"""16-mixed with run.on_nonfinite_loss=skip. A GPU's part, which is a fused optimizer and the scaling of the loss, is
taken by the CPU, which has both."""

import pytest
import torch
from pytorch_lightning.plugins.precision import MixedPrecision

from carvision.training import trainer as build_trainer
from carvision.training.module import LitClassifier
from tests.small_runs import demo, train


@pytest.fixture
def half(monkeypatch):
    """Runs on the CPU take 16-mixed, and fused optimizers where they are asked for. Returns what was chosen."""
    values_of, create, chosen = build_trainer.trainer_values, LitClassifier.create_phase_optimizer, []

    def trainer_values(cfg: dict) -> dict:
        values = values_of(cfg)
        del values["precision"]
        values["plugins"].append(MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1.0)))
        return values

    def create_phase_optimizer(self, fused: bool = True) -> torch.optim.Optimizer:
        chosen.append(fused)
        return create(self, fused)

    monkeypatch.setattr(build_trainer, "trainer_values", trainer_values)
    monkeypatch.setattr(LitClassifier, "create_phase_optimizer", create_phase_optimizer)
    return chosen


@pytest.mark.parametrize("kind", ["stop", "skip"])
def test_an_update_is_left_out_with_scaled_losses(half, kind, demo_photos, tmp_path, monkeypatch):
    step = LitClassifier.training_step

    def training_step(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        return loss * float("nan") if kind == "skip" and batch_idx == 1 else loss

    monkeypatch.setattr(LitClassifier, "training_step", training_step)
    overrides = [*demo(demo_photos), "trainer.max_epochs=1", f"run.on_nonfinite_loss={kind}"]
    folder = train(tmp_path / "run", *overrides)
    assert half == [kind == "stop"]
    assert ("its update is skipped" in (folder / "run.log").read_text()) == (kind == "skip")
