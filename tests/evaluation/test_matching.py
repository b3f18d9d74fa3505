"""Which classes of a data set are the model's, and what is said of the others."""

import numpy as np
import pandas as pd
import pytest
import torch

from carvision.data.table import UNKNOWN, Classes, Number, Table
from carvision.errors import InputError
from carvision.evaluation.select import match_classes

LABELS = {
    "make": {"ids": ["1", "2"], "names": ["Audi", "BMW"], "parent": None, "parent_codes": []},
    "model": {"ids": ["10", "20", "30"], "names": ["A4", "X5", "Z4"], "parent": "make", "parent_codes": [0, 1, 1]},
    "speed": {"unit": "km/h", "mean": 180.0, "std": 20.0},
}


def table(tmp_path, model: Classes, model_codes: list[int], **labels) -> Table:
    rows = pd.DataFrame({"path": [f"{i}.jpg" for i in range(len(model_codes))], "split": ""})
    rows["model"] = np.array(model_codes, np.int32)
    for name, values in labels.items():
        rows[name] = np.array(values[1], np.float32 if isinstance(values[0], Number) else np.int32)
    return Table("mine", tmp_path, rows, {"model": model, **{n: v[0] for n, v in labels.items()}}, "model")


def test_by_id_whatever_the_order_and_what_else_there_is(tmp_path):
    model = Classes(("30", "77", "10"), ("Z4", "Golf", "A4"))
    speed = (Number("km/h"), [100.0, np.nan, 200.0, np.nan, 150.0])
    found = match_classes(table(tmp_path, model, [0, 1, 2, UNKNOWN, 1], speed=speed), LABELS)
    assert found.targets["model"].tolist() == [2, UNKNOWN, 0, UNKNOWN, UNKNOWN]
    assert found.targets["make"].tolist() == [UNKNOWN] * 5
    assert torch.equal(found.targets["speed"].isnan(), torch.tensor([False, True, False, True, False]))
    assert found.judged.tolist() == [True, False, True, False, True]  # the last by its speed
    assert found.unmatched.to_dict("records") == [
        {"head": "model", "only_in": "data", "id": "77", "name": "Golf", "photos": 2},
        {"head": "model", "only_in": "model", "id": "20", "name": "X5", "photos": 0},
    ]
    text = "\n".join(found.notes)
    assert "make: the data have no such label" in text
    assert "model: 1 of the data's 3 classes are unknown to the model; their 2 photos are not judged" in text
    assert "model: 1 of the model's 3 classes are not among the data" in text


def test_all_classes_the_same_leaves_nothing_to_say(tmp_path):
    labels = {"model": LABELS["model"]}
    found = match_classes(table(tmp_path, Classes(("10", "20", "30"), ("A4", "X5", "Z4")), [2, 1, 0]), labels)
    assert found.targets["model"].tolist() == [2, 1, 0] and found.judged.all()
    assert not found.notes and found.unmatched.empty


def test_other_names_of_the_same_ids_are_told(tmp_path):
    flowers = Classes(("10", "20", "30"), ("rose", "X5", "tulip"))
    (note,) = match_classes(table(tmp_path, flowers, [0, 1, 2]), {"model": LABELS["model"]}).notes
    assert "2 of 3 classes that match by id have other names (first: id 10 is 'rose' in the data, 'A4'" in note


@pytest.mark.parametrize("by", ["id", "name"])
def test_either_form_of_unicode(tmp_path, by):
    described = {"ids": ["Ros\u00e9", "x"], "names": ["Ros\u00e9", "x"], "parent": None, "parent_codes": []}
    model = Classes(("x", "Rose\u0301"), ("x", "Rose\u0301"))
    found = match_classes(table(tmp_path, model, [1, 0]), {"model": described}, by=by)
    assert found.targets["model"].tolist() == [0, 1] and not found.notes and found.unmatched.empty


def test_by_name_whatever_its_case(tmp_path):
    model = Classes(("0", "1"), ("z4", "a4"))
    found = match_classes(table(tmp_path, model, [0, 1]), {"model": LABELS["model"]}, by="name")
    assert found.targets["model"].tolist() == [2, 0]


def test_a_label_of_another_name(tmp_path):
    given = table(tmp_path, Classes(("10", "20"), ("A4", "X5")), [1, 0])
    rows = given.rows.rename(columns={"model": "class"})
    given = Table("mine", tmp_path, rows, {"class": given.labels["model"]}, "class")
    found = match_classes(given, LABELS, renamed={"model": "class"})
    assert found.targets["model"].tolist() == [1, 0]
    with pytest.raises(InputError, match="has the labels class and the model the heads make, model, speed"):
        match_classes(given, LABELS)
    with pytest.raises(InputError, match="'modle' is not a head of the model; nearest: model"):
        match_classes(given, LABELS, renamed={"modle": "class"})
    with pytest.raises(InputError, match="'clas' is not a label of mine; it has class"):
        match_classes(given, LABELS, renamed={"model": "clas"})


def test_a_head_without_a_class_in_common_is_not_judged(tmp_path):
    labels = {"make": LABELS["make"], "model": LABELS["model"]}
    given = table(
        tmp_path, Classes(("a4", "x5"), ("A4", "X5")), [0, 1], make=(Classes(("1", "2"), ("Audi", "BMW")), [0, 1])
    )
    found = match_classes(given, labels)
    assert found.targets["make"].tolist() == [0, 1] and found.targets["model"].tolist() == [UNKNOWN, UNKNOWN]
    assert "model: none of the data's 2 classes is one of the model's 3 by id" in "\n".join(found.notes)
    assert len(found.unmatched) == 5 and set(found.unmatched["head"]) == {"model"}


def test_no_class_in_common_at_all_is_an_error(tmp_path):
    given = table(tmp_path, Classes(("a4", "x5"), ("A4", "X5")), [0, 1])
    with pytest.raises(InputError, match=r"no photo has a label that the model knows.*by id.*--match name"):
        match_classes(given, LABELS)
    twice = {"model": {**LABELS["model"], "names": ["A4", "X5", "X5"]}}
    with pytest.raises(InputError, match="the name 'x5' of model stands for several classes; match by id"):
        match_classes(given, twice, by="name")
