"""The Table: encoding, selecting, dropping classes, and what readers are checked for."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from carvision.data import table as tables
from carvision.data.table import UNKNOWN, Classes, Number, Table, encode, validate, with_parent
from carvision.errors import InputError

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
    caplog.set_level(logging.INFO)
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows, labels: rows.drop(rows.index, inplace=True), "no photos under photos"),
        (lambda rows, labels: rows.update({"split": ["dev"] + [""] * 6}), "split 'dev' is not one of train, val, test"),
        (lambda rows, labels: rows.__setitem__("model", 3), r"codes of model outside -1..2"),
        (lambda rows, labels: rows.__setitem__("make", 1), "a photo's make is not that of its model"),
    ],
)
def test_validate_reports_what_a_reader_got_wrong(change, message):
    table = create_table()
    change(table.rows, table.labels)
    with pytest.raises(InputError, match=message):
        validate(table)
