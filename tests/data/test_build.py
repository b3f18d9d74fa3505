"""From the configuration's `data` to the table: names of classes, one class against the rest, unseen classes."""

import json

import pandas as pd
import pytest

import carvision
from carvision.data.build import one_against_rest, with_names
from carvision.data.table import UNKNOWN, Classes
from carvision.errors import InputError
from tests.data.layouts import write_class_folders
from tests.data.test_table import create_table
from tests.small_runs import demo, train

WORDS = {"n01": "tench", "n02": "English springer", "n03": "cassette player"}


@pytest.mark.parametrize("content", ["A4,four\nA6,six\nGolf,ball", "Name;more;ID\nfour;;A4\nsix;1;A6\nball;1;Golf"])
def test_names_are_read_from_a_file(tmp_path, content):
    (tmp_path / "names.csv").write_text(content, encoding="utf-8-sig")
    named = with_names(create_table(), tmp_path / "names.csv")
    assert named.labels["model"] == Classes(("A4", "A6", "Golf"), ("four", "six", "ball"), "make", (0, 0, 1))
    assert named.labels["make"] == create_table().labels["make"]


def test_one_class_against_the_rest():
    table = create_table()
    for wanted in ("Golf", "VW Golf"):
        pair = one_against_rest(table, wanted)
        assert pair.labels["model"] == Classes(("Golf", "rest"), ("VW Golf", "rest"))
        assert pair.rows["model"].tolist() == [1, 1, 1, 1, 0, 0, UNKNOWN]
        assert pair.labels["make"] == table.labels["make"] and pair.finest == "model"
    with pytest.raises(InputError, match=r"data.one_against_rest: 'golv' is no class of cars .*; nearest: Golf"):
        one_against_rest(table, "golv")
    with pytest.raises(InputError, match="has photos of 'A4' or of others, not of both"):
        one_against_rest(table.select(table.rows["model"] == 0), "A4")
    table.labels["model"] = Classes(("A4", "A6", "Golf"), ("cat", "cat", "dog"))
    with pytest.raises(InputError, match="2 classes of model are called 'cat'; give an id: A4, A6"):
        one_against_rest(table, "cat")


def test_a_run_of_one_class_against_the_rest_with_names(tmp_path):
    """A layout like Imagenette's: official splits, folders named by ids. Classes are balanced in sampler and loss."""
    root = tmp_path / "photos"
    write_class_folders(root, {f"{split}/{name}": 6 for split in ("train", "val", "test") for name in WORDS})
    (root / "words.csv").write_text("".join(f"{key},{name}\n" for key, name in WORDS.items()), encoding="utf-8")
    chosen = ["data=folder", f"data.root={root}", "data.names=words.csv", "data.one_against_rest=tench"]
    folder = train(tmp_path / "run", *chosen, "data.sampler=balanced", "loss.class_weights=balanced")
    model = carvision.load(folder)
    assert model.classes["class"] == ["tench", "rest"] and model.class_ids["class"] == ["n01", "rest"]
    test = json.loads((folder / "metrics.json").read_text())["test"]
    assert {"class/top1", "class/precision", "class/recall", "class/auc"} <= set(test)
    splits = pd.read_csv(folder / "splits.csv")
    assert splits.groupby("split")["class"].value_counts().unstack().loc["test"].to_dict() == {"n01": 6, "rest": 12}


def test_a_run_on_unseen_classes_in_batches_per_class(tmp_path, demo_photos):
    chosen = [*demo(demo_photos), "data.sampler=per_class", "data.photos_per_class=8"]
    folder = train(tmp_path / "run", *chosen, "data.split.kind=unseen_classes")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert "model/top1" in metrics["val"] and not any("/top1" in name for name in metrics["test"])
    assert pd.read_csv(folder / "splits.csv", dtype=str)["split"].value_counts()["test"] == 120
    labels = json.loads((folder / "model.json").read_text())["labels"]
    assert len(labels["model"]["ids"]) == 6 and len(labels["make"]["ids"]) == 2
    with pytest.raises(InputError, match=r"data.batch_size: 20 is not, .* a multiple of 8 from 16 to 96"):
        train(tmp_path / "other", *chosen, "data.batch_size=20")
