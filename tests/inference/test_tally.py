"""Counts over predictions, and the samples that are drawn."""

from carvision.inference.rows import Row
from carvision.inference.run import ClassSample, Tally
from carvision.inference.sources import Photo

IDS = {"make": ["3", "7"], "model": ["1", "2", "9"]}


def test_right_and_wrong_are_by_id():
    """Two models have the name X5."""
    tally = Tally(IDS)
    labels = {"make": [{"id": "7", "name": "BMW", "prob": 1.0}], "model": [{"id": "9", "name": "X5", "prob": 1.0}]}
    tally.add(Photo("a", "a"), {"make": 1, "model": 1}, Row("a", labels))
    tally.add(Photo("b", "b"), {"make": 0, "model": None}, Row("b", labels))
    none = Row("c", {"make": [], "model": []}, "the file is empty")
    tally.add(Photo("c", "c", (0, 0, 1, 1)), {"make": 0, "model": 0}, none)
    assert tally.num_right == {"make": 1, "model": 0} and tally.num_judged == {"make": 2, "model": 1}
    assert tally.num_without_box == 2
    assert tally.lines() == [
        "1 of 3 photos could not be used; see the column error",
        "  c: the file is empty",
        "right: make 50.0 % of 2, model 0.0 % of 1",
    ]


def test_photos_of_classes_drawn_at_random():
    """Grouped by the true class, if known; the same photos give the same sample."""

    row = Row("", {"model": [{"id": "9", "name": "Z", "prob": 1.0}]})

    def sampled(*arguments) -> list[list[list]]:
        sample = ClassSample(*arguments)
        for i in range(60):
            sample.add(f"{i}.jpg", {"model": i % 6 if i % 6 < 5 else None}, row)
        return sample.chosen()

    chosen = sampled(4, 3, "model", 1)
    assert chosen == sampled(4, 3, "model", 1) and [len(group) for group in chosen] == [3] * 4
    classes = [{truth["model"] for _, truth, _ in group} for group in chosen]
    assert all(len(one) == 1 for one in classes) and len({*map(frozenset, classes)}) == 4
    every = sampled(10, 99, "model")
    assert [len(group) for group in every] == [10] * 6
    assert {truth["model"] for _, truth, _ in every[-1]} == {None}  # grouped by the predicted class
