"""Runs with splits without a readable photo or a known label: their metrics are undefined, not 0."""

import json
import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from pytorch_lightning.trainer.states import TrainerFn

import carvision
from carvision.errors import InputError
from carvision.evaluation import run as evaluation
from carvision.reports.comparison.frame import runs_frame
from carvision.reports.comparison.runs import read_run
from carvision.reports.plots import plot_curves
from carvision.search.worker import objective_values
from carvision.training.callbacks import Patience
from tests.data.layouts import write_photo
from tests.small_runs import train


@pytest.fixture
def manifest(tmp_path):
    """write(unreadable, colour): 24 photos (12 train, 6 val, 6 test) and their table; returns its overrides.

    unreadable: a split. colour: labels of the column of this name, by split.
    """

    def write(unreadable: str = "", colour: dict[str, str] | None = None) -> list[str]:
        rows = []
        for i in range(24):
            split = ("train", "train", "val", "test")[i // 2 % 4]
            path = tmp_path / "photos" / f"{i}.png"
            write_photo(path, (24, 24))
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


def metrics_of(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize(("split", "count", "how"), [("train", 12, "skip"), ("val", 6, "blank"), ("test", 6, "skip")])
def test_a_split_without_a_readable_photo_ends_the_run_in_one_line(manifest, tmp_path, split, count, how):
    with pytest.raises(InputError) as caught:
        train(tmp_path / "run", *manifest(split), f"data.on_bad_image={how}")
    text = str(caught.value)
    assert f"not one of the {count} photos of the split {split!r} can be read" in text and "\n" not in text
    assert "the file is empty" in text and str(tmp_path / "photos") in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("overrides", [["model.train_layers=none", "features.keep=true"], ["model.start=linear"]])
def test_cached_features_and_a_linear_start_end_it_too(manifest, tmp_path, overrides):
    with pytest.raises(InputError, match="6 photos of the split 'val'"):
        train(tmp_path / "run", *manifest("val"), *overrides)


def test_test_photos_may_be_unreadable_without_a_test(manifest, tmp_path):
    assert metrics_of(train(tmp_path / "run", *manifest("test"), "run.test=false"))["test"] == {}


def test_without_a_monitor_on_validation_its_metrics_are_undefined(manifest, tmp_path, caplog):
    folder = train(tmp_path / "run", *manifest("val"), "callbacks.monitor=train/loss", "trainer.max_epochs=2")
    metrics = metrics_of(folder)
    assert {"loss", "kind/loss", "kind/top1"} <= set(metrics["val"]) and set(metrics["val"].values()) == {None}
    assert metrics["train"]["loss"] > 0 and "kind/top1" in metrics["test"]
    history = pd.read_csv(folder / "history.csv")
    assert history["val/loss"].isna().all() and history["val/kind/top1"].isna().all()
    assert history["train/loss"].notna().all()
    plot_curves(history, tmp_path)
    assert carvision.load(folder).classes == {"kind": ["a", "b"]}
    [row] = runs_frame([read_run(folder)], ["run"]).to_dict("records")
    assert math.isnan(row["lowest_val_loss"]) and math.isnan(row.get("val/loss", math.nan)) and row["train/loss"] > 0
    assert objective_values(folder, {"val/loss": "min"}) == (
        None, "val/loss is undefined in the best epoch, or no metric of this training"
    )  # fmt: skip
    assert "val loss –  kind top1 –" in (folder / "run.log").read_text(encoding="utf-8")


def test_a_head_without_known_validation_labels_is_undefined(manifest, tmp_path):
    folder = train(tmp_path / "run", *manifest(colour={"train": "xy", "val": "", "test": "xy"}))
    val = metrics_of(folder)["val"]
    assert {value for name, value in val.items() if name.startswith("colour/")} == {None} and val["joint/top1"] is None
    assert val["loss"] == pytest.approx(val["kind/loss"])
    assert "colour/top1" in metrics_of(folder)["test"]


def test_an_undefined_monitor_ends_the_run(manifest, tmp_path):
    overrides = manifest(colour={"train": "xy", "val": "", "test": "xy"})
    with pytest.raises(InputError, match=r"val/colour/top1 is undefined in epoch 1: the split 'val' has no readable"):
        train(tmp_path / "run", *overrides, "callbacks.monitor=val/colour/top1", "callbacks.mode=max")
    assert not (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()


@pytest.mark.parametrize(("mode", "values"), [("min", [2.0, 1.0]), ("max", [1.0, 2.0])])
def test_nan_counts_as_no_improvement_for_early_stopping(mode, values):
    patience = Patience("val/loss", mode, 2)
    trainer = SimpleNamespace(
        state=SimpleNamespace(fn=TrainerFn.FITTING), sanity_checking=False, fast_dev_run=False, should_stop=False,
        strategy=SimpleNamespace(reduce_boolean_decision=lambda value, all: value, root_device="cpu"), current_epoch=0,
    )  # fmt: skip
    stopped = []
    for value in (math.nan, values[0], math.nan, values[1], math.nan, math.nan):
        trainer.callback_metrics = {"val/loss": torch.tensor(value)}
        patience.on_validation_end(trainer, None)
        stopped.append(trainer.should_stop)
    assert stopped == [False] * 5 + [True] and float(patience.best_score) == values[1]


def test_a_head_without_known_training_labels_is_refused(manifest, tmp_path):
    overrides = manifest(colour={"train": "", "val": "xy", "test": "xy"})
    with pytest.raises(InputError, match=r"model\.heads\.colour: no training photo of manifest has a known colour"):
        train(tmp_path / "run", *overrides)


def test_an_evaluation_of_unreadable_photos_ends_in_one_line(manifest, tmp_path):
    folder = train(tmp_path / "run", *manifest())
    for row in pd.read_csv(folder / "splits.csv").query("split == 'test'").itertuples():
        (tmp_path / "photos" / row.path).write_bytes(b"")
    arguments = {"split": "test", "out": tmp_path / "out", "ensemble": [], "tta": "none", "match": "id", "label": {}}
    with pytest.raises(InputError, match="not one of the 6 photos of the split 'test' can be read"):
        evaluation.run(folder, [], **arguments, samples=0, temperature="none", device="cpu")
