"""The summary at the end, and the random photos of the grid."""

from carvision.inference.run import ClassSample, Tally
from carvision.inference.sources import Photo

LABELS = ("make", "model")
IDS = {"make": ["3", "7"], "model": ["1", "2", "9"]}
NAMES = {"make": ["Audi", "BMW"], "model": ["A4", "X5", "X5"]}


def test_right_and_wrong_by_id_or_else_by_name():
    tally = Tally(LABELS, IDS, NAMES)
    good = {"make": "BMW", "make_id": "7", "model": "X5", "model_id": "9"}
    brief = {"make": "BMW", "model": "X5"}
    for row in (good, brief):
        tally.add(Photo("a", "a"), {"make": 1, "model": 1}, row)
    tally.add(Photo("b", "b"), {"make": 0, "model": None}, good)
    tally.add(Photo("c", "c", (0, 0, 1, 1)), {"make": 0, "model": 0}, {"error": "the file is empty"})
    assert tally.num_right == {"make": 2, "model": 1} and tally.num_judged == {"make": 3, "model": 2}
    assert tally.num_without_box == 3
    assert tally.lines() == [
        "1 of 4 photos could not be used; see the column error",
        "  c: the file is empty",
        "right: make 66.7 % of 3, model 50.0 % of 2",
    ]


def test_a_class_without_a_name_is_a_prediction():
    tally = Tally(("make",), {"make": ["3", "7"]}, {"make": ["", "BMW"]})
    row = {"make": "", "make_id": "3"}
    for known in (row, row | {"error": ""}, row | {"error": None}):  # fresh, of CSV, of JSON
        tally.add(Photo("a", "a"), {"make": 0}, known)
    assert (tally.num_bad, tally.num_right) == (0, {"make": 3}) and tally.lines() == ["right: make 100.0 % of 3"]


def test_brief_rows_that_were_read_back_are_bad_if_all_cells_are_empty():
    tally = Tally((*LABELS, "speed"), IDS, NAMES, brief=True)
    tally.add(Photo("a", "a"), {}, {"path": "a", "error": "torn"})  # fresh
    for bad in ("", None):  # of CSV, of JSON
        tally.add(Photo("b", "b"), {}, {"path": "b", "make": bad, "model": bad, "speed": bad})
    tally.add(Photo("c", "c"), {}, {"path": "c", "make": "Audi", "model": "A4", "speed": "180"})
    assert tally.lines() == [
        "3 of 4 photos could not be used; without --brief, the column error has the reasons", "  a: torn", "  b", "  b"
    ]  # fmt: skip
    unnamed = Tally(("make",), {"make": ["3", "7"]}, {"make": ["", "BMW"]}, brief=True)
    assert not unnamed.is_bad({"make": ""}) and unnamed.is_bad({"make": None})


def test_photos_of_classes_drawn_at_random():
    """Grouped by the true class, if known; the same photos give the same sample."""

    def sampled(*arguments) -> list[list[list]]:
        sample = ClassSample(*arguments)
        for i in range(60):
            sample.add(f"{i}.jpg", {"model": i % 6 if i % 6 < 5 else None}, {"model": "Z"})
        return sample.chosen()

    chosen = sampled(4, 3, "model", 1)
    assert chosen == sampled(4, 3, "model", 1) and [len(group) for group in chosen] == [3] * 4
    classes = [{truth["model"] for _, truth, _ in group} for group in chosen]
    assert all(len(one) == 1 for one in classes) and len({*map(frozenset, classes)}) == 4
    every = sampled(10, 99, "model")
    assert [len(group) for group in every] == [10] * 6
    assert {row["model"] for *_, row in every[-1]} == {"Z"}  # the predicted class of photos without a true one
