"""Metrics of splits without a readable photo or a known label are undefined, not 0; losses that are inf or NaN."""

import json
import math

import pandas as pd
import pytest
import torch

from carvision.errors import InputError
from carvision.reports.comparison.frame import runs_frame
from carvision.reports.comparison.runs import read_run
from carvision.search.worker import objective_values
from carvision.training.module import LitClassifier
from tests.data.layouts import write_photo
from tests.small_runs import demo, refuse, train


@pytest.fixture
def manifest(tmp_path):
    """write(unreadable split, {split: labels of the column colour}): overrides for 12 train, 6 val, 6 test photos."""

    def write(unreadable: str = "", colour: dict[str, str] | None = None) -> list[str]:
        rows = []
        for i, split in enumerate(["train", "train", "train", "train", "val", "val", "test", "test"] * 3):
            write_photo(path := tmp_path / "photos" / f"{i}.png", (24, 24))
            if split == unreadable:
                path.write_bytes(b"")
            rows.append([path, "ab"[i % 2], (colour or {}).get(split, "xy")[i % 2 :][:1], split])
        table = tmp_path / "table.csv"
        pd.DataFrame(rows, columns=["path", "kind", "colour", "split"]).to_csv(table, index=False)
        labels = "[kind,colour]" if colour else "[kind]"
        return [
            "data=manifest", f"data.root={tmp_path / 'photos'}", f"data.file={table}", f"data.labels={labels}",
            "trainer.max_epochs=1", "features.keep=false", "model.start=random", "data.on_bad_image=skip",
        ]  # fmt: skip

    return write


def test_a_split_without_a_readable_photo_ends_the_run_in_one_line(manifest, tmp_path):
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        line = f"not one of the {count} photos of the split {split!r} can be read"
        refuse(line, tmp_path / "run", *manifest(split))
        assert not (tmp_path / "run").exists()
    folder = train(tmp_path / "run", *manifest("test"), "run.test=false")
    assert json.loads((folder / "metrics.json").read_text())["test"] == {}
    line = r"data\.crop_to_box: manifest under .* comes without boxes"
    refuse(line, tmp_path / "other", *manifest(), "data.crop_to_box=true")


def test_without_a_monitor_on_validation_its_metrics_are_undefined(manifest, tmp_path, caplog):
    overrides = [*manifest("val"), "callbacks.monitor=train/loss", "trainer.max_epochs=2"]
    folder = train(tmp_path / "run", *overrides, pictures=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"loss", "kind/loss", "kind/top1"} <= set(metrics["val"]) and set(metrics["val"].values()) == {None}
    assert metrics["train"]["loss"] > 0 and "kind/top1" in metrics["test"]
    history = pd.read_csv(folder / "history.csv")
    assert history["val/loss"].isna().all() and history["val/kind/top1"].isna().all()
    assert history["train/loss"].notna().all()
    [row] = runs_frame([read_run(folder)], ["run"]).to_dict("records")
    assert math.isnan(row["lowest_val_loss"]) and math.isnan(row.get("val/loss", math.nan)) and row["train/loss"] > 0
    line = "val/loss is undefined in the best epoch, or no metric of this training"
    assert objective_values(folder, {"val/loss": "min"}) == (None, line)


def test_a_head_without_known_validation_labels_is_undefined_and_no_monitor(manifest, tmp_path):
    overrides = manifest(colour={"train": "xy", "val": "", "test": "xy"})
    metrics = json.loads((train(tmp_path / "run", *overrides) / "metrics.json").read_text())
    val = metrics["val"]
    assert {value for name, value in val.items() if name.startswith("colour/")} == {None} and val["joint/top1"] is None
    assert val["loss"] == pytest.approx(val["kind/loss"]) and "colour/top1" in metrics["test"]
    with pytest.raises(InputError, match=r"val/colour/top1 is undefined in epoch 1: the split 'val' has no readable"):
        train(tmp_path / "other", *overrides, "callbacks.monitor=val/colour/top1", "callbacks.mode=max")
    assert not (tmp_path / "other" / "checkpoints" / "best.ckpt").exists()
    overrides = manifest(colour={"train": "", "val": "xy", "test": "xy"})
    refuse(r"model\.heads\.colour: no training photo of manifest has a known colour", tmp_path / "third", *overrides)


def test_a_loss_of_nan_ends_the_run_names_its_photos_and_keeps_the_checkpoint(demo_photos, tmp_path, monkeypatch):
    rows, step = [], LitClassifier.training_step

    def training_step(self, batch, batch_idx):
        if self.current_epoch == 1 and 7 in batch["index"]:
            rows.extend(batch["index"].tolist())
        return step(self, batch, batch_idx) * (float("nan") if rows else 1)

    monkeypatch.setattr(LitClassifier, "training_step", training_step)
    folder = tmp_path / "run"
    with pytest.raises(InputError) as stopped:
        train(folder, *demo(demo_photos), "run.checkpoint_every_minutes=0")
    listed, splits = pd.read_csv(folder / "nonfinite_loss.csv"), pd.read_csv(folder / "splits.csv")
    paths = splits.loc[splits["split"] == "train", "path"].iloc[rows].tolist()
    assert listed["path"].tolist() == paths and set(listed["epoch"]) == {1} and paths[0] in str(stopped.value)
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
