"""From the configuration's `data` to the table: classes that training never sees."""

import json

import numpy as np
import pandas as pd
import pytest

from carvision.data.build import build_split, build_table
from carvision.data.table import UNKNOWN
from carvision.errors import InputError
from carvision.training.build import build_datamodule
from tests import small_runs

UNSEEN = "data.split.kind=unseen_classes"
PER_CLASS = ["data.sampler=per_class", "data.photos_per_class=8"]


def test_training_knows_the_seen_classes_and_others_know_all(demo_photos):
    cfg = small_runs.config(*small_runs.demo(demo_photos), UNSEEN, "data.split.train_classes=0.4", "data.batch_size=40")
    trained = build_datamodule(cfg, None).table  # of 12 models of 4 makes the first 5: of 2 makes
    true = build_split(build_table(cfg["data"], annotations=True), cfg["data"]["split"])
    assert len(true.labels["model"]) == 12
    assert trained.labels["model"].ids == true.labels["model"].ids[:5]
    assert trained.labels["make"].ids == true.labels["make"].ids[:2]
    assert trained.rows[["path", "split"]].equals(true.rows[["path", "split"]])
    assert true.rows["split"].value_counts()["test"] == 7 * 20
    test, its_make = trained.of_split("test").rows, true.of_split("test").rows["make"]
    assert (test["model"] == UNKNOWN).all()
    assert np.array_equal(test["make"], its_make.where(its_make < 2, UNKNOWN))  # the make of one of them is trained
    assert sorted(test["make"].unique()) == [UNKNOWN, 1]
    assert (trained.rows.loc[trained.rows["split"] != "test", "model"] != UNKNOWN).all()


def test_a_run_on_unseen_classes_in_batches_per_class(tmp_path, demo_photos):
    folder = small_runs.train(tmp_path / "run", *small_runs.demo(demo_photos), UNSEEN, *PER_CLASS)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert "model/top1" in metrics["val"]
    assert not any("/top1" in figure for figure in metrics["test"])
    splits = pd.read_csv(folder / "splits.csv", dtype=str)
    assert splits["split"].value_counts()["test"] == 120
    described = json.loads((folder / "model.json").read_text())["labels"]
    assert len(described["model"]["ids"]) == 6
    assert len(described["make"]["ids"]) == 2


def test_a_batch_size_that_per_class_cannot_make_is_an_error_at_once(tmp_path, demo_photos):
    with pytest.raises(InputError, match=r"data.batch_size: 20 is not, .* a multiple of 8 from 16 to 96"):
        small_runs.train(tmp_path / "run", *small_runs.demo(demo_photos), *PER_CLASS, "data.batch_size=20")
