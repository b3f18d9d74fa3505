"""From the configuration's `data` to the table: names of classes, one class against the rest, unseen classes."""

import json

import numpy as np
import pandas as pd
import pytest

import carvision
from carvision.data.build import one_against_rest, with_names
from carvision.data.table import UNKNOWN, Classes, Table
from carvision.errors import InputError
from tests.data.layouts import write_class_folders
from tests.small_runs import demo, train

WORDS = {"n01": "tench", "n02": "English springer", "n03": "cassette player"}


def table_of(root="photos") -> Table:
    """Create twelve photos of three models of two makes; the labels of the last one are unknown."""
    model = np.array([0, 1, 2] * 4, np.int32)
    model[-1] = UNKNOWN
    rows = pd.DataFrame({"path": [f"{i}.jpg" for i in range(12)], "model": model, "split": ""})
    rows["make"] = np.array([0, 0, 1, UNKNOWN], np.int32)[model]
    ids = tuple(WORDS)
    labels = {"make": Classes(("7", "9"), ("A", "B")), "model": Classes(ids, ids, "make", (0, 0, 1))}
    return Table("some", root, rows, labels, "model")


@pytest.mark.parametrize(("separator", "header"), [(",", None), (";", ["id", "name"]), ("\t", ["Name", "more", "ID"])])
def test_names_are_read_from_a_file(tmp_path, separator, header):
    more = header is not None and "more" in header
    lines = [[name, "1", key] if more else [key, name] for key, name in WORDS.items()]
    text = "\n".join(map(separator.join, [header, *lines] if header else lines))
    (tmp_path / "names.csv").write_text(text, encoding="utf-8-sig")
    named = with_names(table_of(), tmp_path / "names.csv")
    assert named.labels["model"] == Classes(tuple(WORDS), tuple(WORDS.values()), "make", (0, 0, 1))
    assert named.labels["make"] == table_of().labels["make"]


def test_one_class_against_the_rest():
    table = table_of()
    table.labels["model"] = Classes(tuple(WORDS), tuple(WORDS.values()), "make", (0, 0, 1))
    for wanted in ("n02", "English springer"):
        pair = one_against_rest(table, wanted)
        assert pair.labels["model"] == Classes(("n02", "rest"), ("English springer", "rest"))
        assert pair.rows["model"].tolist() == [1, 0, 1] * 3 + [1, 0, UNKNOWN]
        assert pair.labels["make"] == table.labels["make"] and pair.finest == "model"


def test_an_unknown_an_only_and_an_ambiguous_class_against_the_rest_are_errors():
    table = table_of()
    with pytest.raises(InputError, match=r"data.one_against_rest: 'n04' is no class of some .*; nearest: n0"):
        one_against_rest(table, "n04")
    with pytest.raises(InputError, match="has photos of 'n01' or of others, not of both"):
        one_against_rest(table.select(table.rows["model"] == 0), "n01")
    table.labels["model"] = Classes(tuple(WORDS), ("cat", "cat", "dog"))
    with pytest.raises(InputError, match="2 classes of model are called 'cat'; give an id: n01, n02"):
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
