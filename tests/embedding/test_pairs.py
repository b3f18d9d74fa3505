"""Pairs are drawn with equal probability from the possible ones, or read from lists in any spelling."""

import itertools
import logging

import numpy as np
import pandas as pd
import pytest

from carvision.data.table import UNKNOWN, Classes, Table
from carvision.embedding.pairs import generate_pairs, read_pairs
from carvision.errors import InputError

MAKES, MODELS, VIEWPOINTS = ("Audi", "BMW"), ("A4", "A6", "X3", "X5"), ("front", "rear")


def made_table(num=40, seed=0, **columns) -> Table:
    """Return a table whose models 0 and 1 are of make 0, models 2 and 3 of make 1."""
    rng = np.random.default_rng(seed)
    model = rng.integers(0, 4, num)
    rows = {"path": [f"image/{i}.jpg" for i in range(num)], "split": "test", "make": model // 2, "model": model}
    rows = pd.DataFrame({**rows, "viewpoint": rng.integers(0, 2, num), **columns})
    labels = {"make": Classes(MAKES, MAKES), "model": Classes(MODELS, MODELS, "make", (0, 0, 1, 1))}
    labels["viewpoint"] = Classes(VIEWPOINTS, VIEWPOINTS)
    return Table("made", "photos", rows, labels, "model")


def all_pairs(table, difficulty) -> dict:
    """Return {(i, j): same} of all pairs that the difficulty allows, i < j."""
    rows, found = table.rows, {}
    for i, j in itertools.combinations(range(len(rows)), 2):
        one, other = rows.iloc[i], rows.iloc[j]
        same = bool(one["model"] == other["model"])
        allowed = {"easy": one["viewpoint"] == other["viewpoint"] != UNKNOWN, "medium": True,
                   "hard": same or one["make"] == other["make"]}  # fmt: skip
        if allowed[difficulty] and UNKNOWN not in (one["model"], other["model"]):
            found[i, j] = same
    return found


def as_dict(pairs) -> dict:
    ends = np.sort(np.stack([pairs.first, pairs.second], axis=1), axis=1)
    found = {tuple(map(int, end)): bool(same) for end, same in zip(ends, pairs.same, strict=True)}
    assert len(found) == len(pairs)  # none twice
    return found


@pytest.mark.parametrize("difficulty", ["easy", "medium", "hard"])
def test_all_possible_pairs_are_drawn_and_no_others(difficulty):
    table = made_table()
    table.rows.loc[3, "model"] = table.rows.loc[7, "viewpoint"] = UNKNOWN
    possible = all_pairs(table, difficulty)
    seen = {}
    for seed in range(100):
        drawn = as_dict(generate_pairs(table, "model", difficulty, 100, seed))
        assert len(drawn) == 100 and sum(drawn.values()) == 50
        seen |= drawn
    assert seen == possible


def test_without_a_possible_pair_or_a_label_that_the_difficulty_needs_the_reason_is_named():
    for columns, difficulty, words in (
        ({"model": [0, 1, 2, 3]}, "medium", "its 4 photos have no medium pair of the same model"),
        ({"model": [0, 0, 2, 2]}, "hard", "no hard pair of a different model"),
        ({"model": [0, 0, 1, 1], "viewpoint": [0, 1, 0, 1]}, "easy", "no easy pair of the same model"),
    ):
        with pytest.raises(InputError, match=words):
            generate_pairs(made_table(4, **columns), "model", difficulty, 10, seed=0)
    table = made_table(4)
    with pytest.raises(InputError, match="no hard pairs: its make has no parent label, such as a make"):
        generate_pairs(table, "make", "hard", 10, seed=0)
    table.labels.pop("viewpoint")
    with pytest.raises(InputError, match="no easy pairs: it has no label viewpoint"):
        generate_pairs(table, "model", "easy", 10, seed=0)


def test_all_pairs_are_equally_likely():
    table = made_table(12)
    counts = np.zeros((2, 12, 12))
    for seed in range(3000):
        pairs = generate_pairs(table, "model", "medium", 10, seed)
        np.add.at(counts, (pairs.same.astype(int), pairs.first, pairs.second), 1)
    for same in (0, 1):
        seen = counts[same][counts[same] > 0]  # each order of a pair by itself
        assert len(seen) == 2 * sum(value == same for value in all_pairs(table, "medium").values())
        assert abs(seen / seen.mean() - 1).max() < 5 / np.sqrt(seen.mean())  # five standard deviations


def test_too_few_possible_pairs_are_all_taken_and_those_of_many_photos_not_enumerated():
    table = made_table(5, model=[0, 0, 0, 1, 2], make=[0, 0, 0, 0, 1])  # 3 pairs of one model, 7 of two
    pairs = generate_pairs(table, "model", "medium", 1000, seed=0)
    assert len(as_dict(pairs)) == 6 and pairs.same.sum() == 3
    pairs = generate_pairs(made_table(100_000), "model", "hard", 1000, seed=0)  # of 5 thousand million
    assert len(as_dict(pairs)) == 1000 and 0 < pairs.same[:500].sum() < 500  # in random order


def test_lists_in_all_formats_and_spellings(tmp_path):
    file = tmp_path / "list.txt"
    for text in (
        "0.jpg 3.jpg 1\n2.jpg 1.jpg 0\n",
        "\ufeffimage/0.jpg\timage/3.jpg\t1\r\n\r\nimage/2.jpg\timage/1.jpg\t0\r\n",
        "path1,path2,same,cosine\nimage/0.jpg,image/3.jpg,1,0.5\nimage/2.jpg, image/1.jpg ,0,0.4",
        "first second label\n0.jpg 3.jpg True\n2.jpg 1.jpg -1",
    ):
        file.write_text(text, encoding="utf-8")
        pairs = read_pairs(file, made_table(4))
        assert [pairs.first.tolist(), pairs.second.tolist(), pairs.same.tolist()] == [[0, 2], [3, 1], [True, False]]
    table = made_table(2, path=["a b.jpg", "Bl\u00fcte/c,d.jpg"])
    for line in (
        'a b.jpg,"Bl\u00fcte/c,d.jpg",0', "a b.jpg;Bl\u00fcte/c,d.jpg;0",
        ".\\a b.jpg\tBlu\u0308te\\c,d.jpg\t0", '"./a b.jpg", "Bl\u00fcte//c,d.jpg", 0',
    ):  # fmt: skip
        file.write_text(f"{line}\n", encoding="utf-8-sig")
        pairs = read_pairs(file, table)
        assert pairs.first.tolist() == [0] and pairs.second.tolist() == [1]


def test_missing_photos_are_an_error_or_left_out_and_lines_that_are_no_pairs_named(tmp_path, caplog):
    file = tmp_path / "list.txt"
    file.write_text("0.jpg 1.jpg 1\n\n0.jpg 9.jpg 0\n8.jpg 1.jpg 0\n")
    with pytest.raises(InputError, match=r"2 of 3 pairs name photos that made lacks \(first: 9.jpg in line 3\).*allow"):
        read_pairs(file, made_table(4))
    caplog.set_level(logging.WARNING)
    assert len(read_pairs(file, made_table(4), allow_missing=True)) == 1
    assert "2 of 3 pairs" in caplog.text
    for text, words in (
        ("8.jpg 9.jpg 1\n", "none is left; paths are relative to photos"),
        ("0.jpg 1.jpg\n", "line 1: '0.jpg 1.jpg' is not path1 path2 label"),
        ("0.jpg 1.jpg 1\n0.jpg 1.jpg 2\n", "line 2: '0.jpg 1.jpg 2' is not path1 path2 label"),
        ("path1 path2 label\n", "has no pairs"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=words):
            read_pairs(file, made_table(4), allow_missing=True)
