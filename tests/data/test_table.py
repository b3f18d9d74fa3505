"""The Table: encoding, selecting, dropping, naming and joining classes, and what readers are checked for."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import carvision
from carvision.data import table as tables
from carvision.data.build import one_against_rest, with_names
from carvision.data.table import UNKNOWN, Classes, Number, Table, encode, validate, with_parent
from carvision.errors import InputError
from tests.data.layouts import write_class_folders
from tests.small_runs import demo, train

MODELS = ["A4", "A4", "A4", "A6", "Golf", "Golf", None]  # of the seven photos
MAKE_OF = {"A4": "audi", "A6": "audi", "Golf": "vw", None: "vw"}


def create_table(root: Path = Path("photos")) -> Table:
    """Create seven photos of three models of two makes; the last is of an unknown model."""
    rows = pd.DataFrame({"path": [f"{i}.jpg" for i in range(7)], "split": ["train"] * 4 + ["test"] * 2 + [""]})
    rows["model"], models = encode(MODELS, {"Golf": "VW Golf"})
    rows["make"], makes = encode([MAKE_OF[model] for model in MODELS])
    rows["speed"] = np.arange(7, dtype=np.float32)
    labels = {"make": makes, "model": with_parent(rows, "model", models, "make"), "speed": Number("km/h")}
    return Table("cars", root, rows, labels, "model")


def test_encode_sorts_numbers_by_value_and_words_alphabetically_and_names_by_id():
    codes, classes = encode(["10", "2", "", "10", None, "1"])
    assert classes == Classes(("1", "2", "10"), ("1", "2", "10"))
    assert codes.tolist() == [2, 1, UNKNOWN, 2, UNKNOWN, 0] and codes.dtype == np.int32
    codes, classes = encode(pd.Series(["b", "10", "a", np.nan]))
    assert classes.ids == ("10", "a", "b") and codes.tolist() == [2, 0, 1, UNKNOWN]
    assert tables.sorted_ids(["2", "10", "1x"]) == ["10", "1x", "2"]
    assert encode(["1", "2", "3"], {"1": "Audi", "2": "", "12": "unused"})[1].names == ("Audi", "2", "3")
    for nothing in ([], ["", None]):
        codes, classes = encode(nothing)
        assert codes.tolist() == [UNKNOWN] * len(nothing) and classes.ids == ()


def test_without_empty_classes_recodes_children_and_parents_and_keeps_unknown():
    table = create_table().of_split("test").without_empty_classes()
    assert table.labels["model"] == Classes(("Golf",), ("VW Golf",), "make", (0,))
    assert table.labels["make"].ids == ("vw",) and table.labels["speed"] == Number("km/h")
    assert table.rows["model"].tolist() == table.rows["make"].tolist() == [0, 0]
    validate(table)
    with pytest.raises(InputError, match="cars: 2 photos instead of 1,000, 0 val photos instead of 5 under photos"):
        tables.check_counts(table, {"photos": 1_000, "test": 2, "val": 5, "model": 1}, False)
    table = create_table().select(np.arange(7) >= 5).without_empty_classes()
    assert table.rows["model"].tolist() == [0, UNKNOWN]


def test_only_classes_selects_by_id_and_name():
    table = create_table().only_classes(["VW Golf", "A4"])
    assert len(table) == 5 and table.labels["model"].ids == ("A4", "Golf")
    assert table.labels["model"].parent_codes == (0, 1)
    rows = pd.DataFrame({"path": ["a", "b", "c"], "split": ""})
    rows["make"], makes = encode(["1", "2", "12"], {"1": "Audi", "2": "Benz", "12": "Audi"})
    table = Table("cars", Path("photos"), rows, {"make": makes}, "make")
    assert table.only_classes(["Audi"]).labels["make"].ids == ("1", "12")  # every class of a repeated name
    assert table.only_classes([12]).labels["make"].ids == ("12",)
    with pytest.raises(InputError, match=r"data.classes: 'golv' is no model of cars .*nearest: Golf.*has 3 classes"):
        create_table().only_classes(["golv"])


def test_sparse_classes_are_dropped_with_their_photos(caplog):
    caplog.set_level("INFO")
    table = create_table().without_sparse_classes(2)
    assert table.labels["model"].ids == ("A4", "Golf")
    assert len(table) == 5  # neither A6 nor the photo of an unknown model
    assert "2 photos dropped" in caplog.text and "2 of 3 classes remain" in caplog.text
    with pytest.raises(InputError, match=r"data.min_images_per_class: 4 leaves no class of cars; .* has 3 photos"):
        create_table().without_sparse_classes(4)


def test_a_class_with_two_parents_or_none_is_an_error():
    table = create_table()
    rows = table.rows.copy()
    rows.loc[1, "make"] = 1
    with pytest.raises(InputError, match="model 'A4' has photos of more than one make"):
        with_parent(rows, "model", table.labels["model"], "make")
    rows.loc[:2, "make"] = UNKNOWN
    with pytest.raises(InputError, match="model 'A4' has no make"):
        with_parent(rows, "model", table.labels["model"], "make")
    rows.loc[0, "make"] = 0  # one photo with a known make is enough
    assert with_parent(rows, "model", table.labels["model"], "make").parent_codes == (0, 0, 1)


def test_validate_reports_what_a_reader_got_wrong():
    for change, message in (
        (lambda rows, labels: rows.drop(rows.index, inplace=True), "no photos under photos"),
        (lambda rows, labels: rows.__setitem__("model", 3), r"codes of model outside -1..2"),
        (lambda rows, labels: rows.__setitem__("make", 1), "a photo's make is not that of its model"),
    ):
        table = create_table()
        change(table.rows, table.labels)
        with pytest.raises(InputError, match=message):
            validate(table)


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
    root, words = tmp_path / "photos", {"n01": "tench", "n02": "English springer", "n03": "cassette player"}
    write_class_folders(root, {f"{split}/{name}": 6 for split in ("train", "val", "test") for name in words})
    (root / "words.csv").write_text("".join(f"{key},{name}\n" for key, name in words.items()), encoding="utf-8")
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
