"""True classes, from lists and from the names of folders."""

import pytest

from carvision.inference.known import TrueClasses
from carvision.inference.sources import Photo

IDS = {"make": ["3", "7", "307"], "model": ["1", "2", "307", "9"]}
NAMES = {"make": ["Audi", "BMW", "Mazda"], "model": ["A4", "307", "X5", "X5"]}
PARENTS = {"model": ("make", [0, 1, 1, 2])}


def codes(photo, heads=("model", "make"), from_folders=False):
    truths = TrueClasses(IDS, NAMES, PARENTS, list(heads), from_folders)
    return truths.codes(photo), {head: dict(counts) for head, counts in truths.unknown.items() if counts}


@pytest.mark.parametrize(("truth", "expected"), [
    ({"make": "7", "model": "2"}, {"make": 1, "model": 1}),
    ({"make": "BMW", "model": "307"}, {"make": 1, "model": 2}),  # the id, before the name of another
    ({"make": "BMW", "model": "X5"}, {"make": 1, "model": 2}),  # of the two of that name, BMW's
    ({"model": "A4"}, {"make": None, "model": 0}),
    ({"model": "X5"}, {"make": None, "model": None}),  # two classes of this name
    ({"make": "Audi", "model": "X5"}, {"make": 0, "model": None}),  # Audi has none of this name
])  # fmt: skip
def test_classes_of_a_list(truth, expected):
    found, unknown = codes(Photo("p", "p", None, truth))
    assert found == expected
    assert unknown == {head: {value: 1} for head, value in truth.items() if expected[head] is None}


@pytest.mark.parametrize(("path", "truth", "expected"), [
    ("data/BMW/X5/2014/a.jpg", {}, {"make": 1, "model": 2}),
    ("7/2/1/a.jpg", {}, {"make": 1, "model": 1}),  # 1 is a model, but not of BMW: a year or a part
    ("BMW/Audi/a.jpg", {}, {"make": 0, "model": None}),
    ("7/2/a.jpg", {"make": "3"}, {"make": 0, "model": None}),  # lists come first
])  # fmt: skip
def test_classes_of_the_nearest_folder_that_has_a_class_name(path, truth, expected):
    found, unknown = codes(Photo(path, "", None, truth), from_folders=True)
    assert found == expected
    folder = path.split("/")[-2]
    assert unknown == {head: {folder: 1} for head, code in expected.items() if code is None}


def test_folders_in_windows_paths_other_bytes_and_either_form_of_unicode():
    ids = {"make": ["Ros\u00e9", "Bl\\xfcte"]}
    truths = TrueClasses(ids, ids, {}, ["make"], True)
    assert truths.codes(Photo("Rose\u0301/1.jpg", "Rose\u0301/1.jpg"))["make"] == 0
    assert truths.codes(Photo("Rose\u0301\\1.jpg", "Rose\u0301/1.jpg"))["make"] == 0
    assert truths.codes(Photo("Bl\\xfcte/1.jpg", "Bl\udcfcte/1.jpg"))["make"] == 1
    assert truths.codes(Photo("a.jpg", "a.jpg", None, {"make": "Rose\u0301"}))["make"] == 0


def test_with_one_class_against_the_rest_all_others_are_the_rest():
    ids = {"make": ["7", "rest"]}
    truths = TrueClasses(ids, {"make": ["BMW", "rest"]}, {}, ["make"], True, {"make": 1})
    found = [truths.codes(Photo(path, path))["make"] for path in ("x/BMW/a.jpg", "x/Audi/a.jpg", "x/7/a.jpg")]
    assert found == [0, 1, 0] and not truths.unknown["make"]
    assert truths.codes(Photo("a.jpg", "a.jpg", None, {"make": "Audi"}))["make"] == 1
