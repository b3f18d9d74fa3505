"""Which classes of a data set are the model's, and what is reported of the others."""

import numpy as np
import pandas as pd
import pytest

from carvision.data.table import UNKNOWN, Classes, Number, Table
from carvision.errors import InputError
from carvision.evaluation.select import match_classes

LABELS = {
    "make": {"ids": ["1", "2"], "names": ["Audi", "BMW"], "parent": None, "parent_codes": []},
    "model": {"ids": ["10", "20", "30"], "names": ["A4", "X5", "Z4"], "parent": "make", "parent_codes": [0, 1, 1]},
    "speed": {"unit": "km/h", "mean": 180.0, "std": 20.0},
}
MODEL = {"model": LABELS["model"]}


def table(ids: tuple, names: tuple, codes: list[int], name: str = "model", **labels) -> Table:
    rows = pd.DataFrame({"path": [f"{i}.jpg" for i in range(len(codes))], "split": "", name: np.array(codes, np.int32)})
    for other, (label, values) in labels.items():
        rows[other] = np.array(values, np.float32 if isinstance(label, Number) else np.int32)
    return Table("mine", "photos", rows, {name: Classes(ids, names), **{n: v[0] for n, v in labels.items()}}, name)


def test_classes_match_by_id_in_any_order_and_beside_others():
    speed = (Number("km/h"), [100.0, np.nan, 200.0, np.nan, 150.0])
    found = match_classes(table(("30", "77", "10"), ("Z4", "Golf", "A4"), [0, 1, 2, UNKNOWN, 1], speed=speed), LABELS)
    assert found.targets["model"].tolist() == [2, UNKNOWN, 0, UNKNOWN, UNKNOWN]
    assert found.targets["make"].tolist() == [UNKNOWN] * 5
    assert found.targets["speed"].isnan().tolist() == [False, True, False, True, False]
    assert found.judged.tolist() == [True, False, True, False, True]  # the last by its speed
    assert found.unmatched.to_dict("records") == [
        {"head": "model", "only_in": "data", "id": "77", "name": "Golf", "photos": 2},
        {"head": "model", "only_in": "model", "id": "20", "name": "X5", "photos": 0},
    ]
    text = "\n".join(found.notes)
    assert "make: the data have no such label" in text
    assert "model: 1 of the data's 3 classes are unknown to the model; their 2 photos are not judged" in text
    assert "model: 1 of the model's 3 classes are not among the data" in text


def test_equal_classes_leave_no_notes():
    found = match_classes(table(("10", "20", "30"), ("A4", "X5", "Z4"), [2, 1, 0]), MODEL)
    assert found.targets["model"].tolist() == [2, 1, 0] and found.judged.all()
    assert not found.notes and found.unmatched.empty


def test_other_names_of_the_same_ids_are_reported():
    (note,) = match_classes(table(("10", "20", "30"), ("rose", "X5", "tulip"), [0, 1, 2]), MODEL).notes
    assert "2 of 3 classes that match by id have other names (first: id 10 is 'rose' in the data, 'A4'" in note


@pytest.mark.parametrize("by", ["id", "name"])
def test_both_forms_of_unicode_match(by):
    described = {"ids": ["Ros\u00e9", "x"], "names": ["Ros\u00e9", "x"], "parent": None, "parent_codes": []}
    found = match_classes(table(("x", "Rose\u0301"), ("x", "Rose\u0301"), [1, 0]), {"model": described}, by=by)
    assert found.targets["model"].tolist() == [0, 1] and not found.notes and found.unmatched.empty


def test_names_match_in_upper_and_lower_case():
    found = match_classes(table(("0", "1"), ("z4", "a4"), [0, 1]), MODEL, by="name")
    assert found.targets["model"].tolist() == [2, 0]


def test_a_label_of_another_name():
    given = table(("10", "20"), ("A4", "X5"), [1, 0], name="class")
    assert match_classes(given, LABELS, renamed={"model": "class"}).targets["model"].tolist() == [1, 0]
    for renamed, message in (
        ({}, "has the labels class and the model the heads make, model, speed"),
        ({"modle": "class"}, "'modle' is not a head of the model; nearest: model"),
        ({"model": "clas"}, "'clas' is not a label of mine; it has class"),
    ):
        with pytest.raises(InputError, match=message):
            match_classes(given, LABELS, renamed=renamed)


def test_a_head_without_a_common_class_is_not_judged_and_all_without_are_an_error():
    make = (Classes(("1", "2"), ("Audi", "BMW")), [0, 1])
    found = match_classes(table(("a4", "x5"), ("A4", "X5"), [0, 1], make=make), LABELS)
    assert found.targets["make"].tolist() == [0, 1] and found.targets["model"].tolist() == [UNKNOWN, UNKNOWN]
    assert "model: none of the data's 2 classes is one of the model's 3 by id" in "\n".join(found.notes)
    assert len(found.unmatched) == 5 and set(found.unmatched["head"]) == {"model"}
    alone = table(("a4", "x5"), ("A4", "X5"), [0, 1])
    with pytest.raises(InputError, match=r"no photo has a label that the model knows.*by id.*--match name"):
        match_classes(alone, LABELS)
    twice = {"model": {**LABELS["model"], "names": ["A4", "X5", "X5"]}}
    with pytest.raises(InputError, match="the name 'x5' of model stands for several classes; match by id"):
        match_classes(alone, twice, by="name")
