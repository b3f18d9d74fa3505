"""Splits have the right size in every class and keep together what belongs together; splits.csv; copies."""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from carvision.data import splits
from carvision.data.splits import (
    equal_bytes,
    file_split,
    kfold_split,
    official_split,
    stratified_split,
    unseen_classes_split,
    without_unseen_classes,
    write_splits,
)
from carvision.data.table import UNKNOWN, Classes, Number, Table
from carvision.errors import InputError

R0 = (0.675, 0.225, 0.1)


def table_of(root, codes, split="", groups=None, contents=None) -> Table:
    """Create a photo for each code. contents: the bytes of each photo; None: no files, for tests with `unequal`."""
    paths = [f"{i:04d}.jpg" for i in range(len(codes))]
    for path, content in zip(paths, contents or [], strict=bool(contents)):
        (root / path).write_bytes(content)
    rows = pd.DataFrame({"path": paths, "class": np.asarray(codes, np.int32), "split": split})
    if groups is not None:
        rows["group"] = groups
    ids = tuple(f"id{i}" for i in range(max(codes) + 1))
    return Table("some", root, rows, {"class": Classes(ids, tuple(f"name {i}" for i in range(len(ids))))}, "class")


@pytest.fixture
def unequal(monkeypatch):
    """Pretend that all photos differ."""
    monkeypatch.setattr(splits, "equal_bytes", lambda table: np.arange(len(table)))


def sizes(table: Table) -> pd.DataFrame:
    return pd.crosstab(table.rows["class"], table.rows["split"])


def paths_of(table: Table, split: str) -> set[str]:
    return set(table.of_split(split).rows["path"])


def assert_kept_together(table: Table, by: dict[str, object]) -> None:
    """Check that photos with the same value in `by`, {path: value}, are in one split."""
    assert (table.rows.groupby(table.rows["path"].map(by))["split"].nunique() == 1).all()


DIVIDE = {  # (table, seed, whether groups are kept together) -> the divided table
    "stratified": lambda table, seed, keep: stratified_split(table, R0, seed, keep),
    "kfold": lambda table, seed, keep: kfold_split(table, 3, 1, 0.2, seed, keep),
    "official": lambda table, seed, keep: official_split(table, 0.2, seed, keep, False),
    "unseen_classes": lambda table, seed, keep: unseen_classes_split(table, 0.5, 0.2, seed, keep),
}
COUNTS = [3, 4, 5, 7, 10, 11, 16, 23, 40, 41, 97, 200]
CODES = np.repeat(np.arange(len(COUNTS)), COUNTS)


@pytest.mark.parametrize("fractions", [R0, (0.6, 0.2, 0.2), (0.8, 0.2, 0.0), (1 / 3, 1 / 3, 1 / 3)])
def test_stratified_fractions_hold_in_every_class(tmp_path, unequal, fractions):
    found = sizes(stratified_split(table_of(tmp_path, CODES), fractions, 0, False))
    wanted = dict(zip(("train", "val", "test"), fractions, strict=True))
    for code, count in enumerate(COUNTS):
        row = found.loc[code]
        assert row.sum() == count
        for split, fraction in wanted.items():
            if fraction == 0:
                assert split not in row
            elif min(f * count for f in fractions if f > 0) >= 1:
                assert abs(row[split] - fraction * count) < 1
            else:
                assert row[split] >= 1


def test_stratified_fractions_hold_over_many_small_classes(tmp_path, unequal):
    """15 photos by 67.5 / 22.5 / 10 % are 10.125, 3.375 and 1.5: rounding each the same way would miss the total."""
    found = sizes(stratified_split(table_of(tmp_path, np.repeat(np.arange(400), 15)), R0, 3, False)).sum()
    for split, fraction in zip(("train", "val", "test"), R0, strict=True):
        assert found[split] == pytest.approx(6000 * fraction, abs=45)


@pytest.mark.parametrize("kind", DIVIDE)
def test_the_seed_decides_the_split(tmp_path, unequal, kind):
    table = table_of(tmp_path, CODES, "train")
    first, second, other = (DIVIDE[kind](table, seed, True).rows["split"].tolist() for seed in (7, 7, 8))
    assert first == second != other
    assert table.rows["split"].tolist() == ["train"] * len(table)


def test_every_photo_can_be_in_any_split(tmp_path, unequal):
    table = table_of(tmp_path, [0] * 20 + [1] * 20)
    divided = [stratified_split(table, (0.5, 0.25, 0.25), seed, False) for seed in range(40)]
    assert all(sizes(d).to_numpy().tolist() == [[5, 10, 5]] * 2 for d in divided)  # test, train, val
    share = np.mean([d.rows["split"] == "train" for d in divided], axis=0)
    assert share.min() > 0.15 and share.max() < 0.85


@pytest.mark.parametrize("num_folds", [2, 3, 5])
def test_kfold_tests_every_photo_once(tmp_path, unequal, num_folds):
    counts = [max(count, num_folds + 1) for count in COUNTS]
    table = table_of(tmp_path, np.repeat(np.arange(len(counts)), counts))
    tests, found = [], []
    for fold in range(num_folds):
        divided = kfold_split(table, num_folds, fold, 0.25, 4, False)
        assert len(divided) == len(table)
        tests.append(paths_of(divided, "test"))
        found.append(sizes(divided))
        for _, row in found[-1].iterrows():
            rest = row["train"] + row["val"]
            assert abs(row["val"] - 0.25 * rest) < 1 or row["val"] == 1 or rest == 1
    assert set.union(*tests) == set(table.rows["path"])
    assert sum(map(len, tests)) == len(table)
    of_class = np.stack([f["test"].to_numpy() for f in found])
    assert (of_class.max(0) - of_class.min(0) <= 1).all()
    assert (of_class.sum(0) == counts).all()


@pytest.mark.parametrize("kind", DIVIDE)
def test_groups_are_kept_together(tmp_path, unequal, kind):
    codes = np.repeat(np.arange(6), 60)
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(360), random.integers(1, 5, 360))[:360].astype(str)  # of one to four photos
    groups[random.random(360) < 0.1] = ""
    by = {f"{i:04d}.jpg": group or f"alone {i}" for i, group in enumerate(groups)}
    table = table_of(tmp_path, codes, "train", groups)
    kept = DIVIDE[kind](table, 0, True)
    if kind == "unseen_classes":  # a group with classes on both sides is divided, as the classes are
        kept = kept.select(kept.rows["class"] < 3)
    assert_kept_together(kept, by)
    assert (sizes(kept) > 0).all(axis=None)
    with pytest.raises(AssertionError):
        assert_kept_together(DIVIDE[kind](table, 0, False), by)


def test_a_class_that_is_one_group_stays_in_train_and_is_logged(tmp_path, unequal, caplog):
    table = table_of(tmp_path, np.repeat([0, 1], [30, 6]), groups=[""] * 30 + ["car"] * 6)
    assert sizes(stratified_split(table, R0, 0, True)).loc[1].tolist() == [0, 6, 0]  # test, train, val
    assert "1 of 2 classes are wholly in train" in caplog.text


@pytest.mark.parametrize("kind", ["stratified", "kfold", "official"])
@pytest.mark.parametrize("keep_groups", [False, True])
def test_equal_bytes_are_never_in_two_splits(tmp_path, kind, keep_groups):
    """Not even those of two classes; with groups, neither photos that a chain of groups and copies connects."""
    codes = np.repeat(np.arange(4), 40)
    contents = [f"photo {i}".encode() * 3 for i in np.random.default_rng(0).integers(0, 100, len(codes))]
    groups = [str(i // 2) if i % 10 < 4 else "" for i in range(len(codes))]
    table = table_of(tmp_path, codes, "train", groups, contents)
    divided = DIVIDE[kind](table, 0, keep_groups)
    assert len(divided) == len(table) and set(divided.rows["split"]) >= {"train", "val"}
    assert_kept_together(divided, dict(zip(table.rows["path"], contents, strict=True)))
    if keep_groups:
        assert_kept_together(divided, connected(table.rows["path"], contents, groups))


def connected(paths, contents, groups) -> dict[str, int]:
    """Find the sets of photos that equal bytes and groups connect, {path: number}, by repeated painting."""
    paint = list(range(len(paths)))
    changed = True
    while changed:
        changed = False
        for marks in (contents, [group or i for i, group in enumerate(groups)]):
            lowest: dict = {}
            for mark, colour in zip(marks, paint, strict=True):
                lowest[mark] = min(colour, lowest.get(mark, colour))
            new = [lowest[mark] for mark in marks]
            changed, paint = changed or new != paint, new
    return dict(zip(paths, paint, strict=True))


def test_official_leaves_out_copies_across_splits(tmp_path, caplog):
    split = ["train"] * 6 + ["val"] * 3 + ["test"] * 2 + [""]
    contents = [b"a", b"b", b"c", b"d", b"b", b"other", b"a", b"v", b"t1", b"t1", b"b", b"c"]
    table = table_of(tmp_path, [0] * 12, split, contents=contents)
    divided = official_split(table, 0.2, 0, False, False)
    # Copies: 0 of one in val, 1 and 4 of one in test, 8 of val of one in test; 2 of one in no split, which stays
    assert paths_of(divided, "train") == {"0002.jpg", "0003.jpg", "0005.jpg"}
    assert paths_of(divided, "val") == {"0006.jpg", "0007.jpg"}
    assert paths_of(divided, "test") == {"0009.jpg", "0010.jpg"}
    assert "3 train photos are left out, as their bytes equal those of val or test photos" in caplog.text
    assert "1 val photos are left out, as their bytes equal those of test photos" in caplog.text


FIVE_CLASSES = np.tile(np.arange(5), 40)
HALVES = np.arange(200) < 100


def test_official_takes_val_from_train_and_never_from_test(tmp_path, unequal):
    table = table_of(tmp_path, FIVE_CLASSES, np.where(HALVES, "train", "test"))
    divided = official_split(table, 0.15, 0, False, False)
    assert paths_of(divided, "test") == paths_of(table, "test")
    assert paths_of(divided, "train") | paths_of(divided, "val") == paths_of(table, "train")
    assert sizes(divided)["val"].between(2, 4).all()  # 15 % of 20
    own_val = table_of(tmp_path, FIVE_CLASSES, np.tile(["train", "val", "test", ""], 50))
    divided = official_split(own_val, 0.15, 0, False, False)
    assert divided.rows["split"].value_counts().to_dict() == {"train": 50, "val": 50, "test": 50}


def test_val_as_test(tmp_path, unequal):
    table = table_of(tmp_path, FIVE_CLASSES, np.where(HALVES, "train", "val"))
    divided = official_split(table, 0.2, 0, False, True)
    assert paths_of(divided, "test") == paths_of(table, "val")
    assert paths_of(divided, "val") < paths_of(table, "train") and len(paths_of(divided, "val")) == 20
    for wrong in (["train", "test"], ["train", "val", "test"], ["train"]):
        with pytest.raises(InputError, match=r"data\.split\.val_as_test: some has .* validation and .* test photos"):
            official_split(table_of(tmp_path, [0] * 12, np.resize(wrong, 12)), 0.2, 0, False, True)


def test_test_as_train(tmp_path, unequal):
    table = table_of(tmp_path, FIVE_CLASSES, np.where(HALVES, "train", "test"))
    divided = official_split(table, 0.2, 0, False, False, test_as_train=True)
    assert paths_of(divided, "train") | paths_of(divided, "val") == set(table.rows["path"])
    assert len(paths_of(divided, "val")) == 40 and not paths_of(divided, "test")
    table = table_of(tmp_path, FIVE_CLASSES, np.tile(["train", "val", "test", ""], 50))
    divided = official_split(table, 0.2, 0, False, False, test_as_train=True)
    assert paths_of(divided, "train") == paths_of(table, "train") | paths_of(table, "test")
    assert paths_of(divided, "val") == paths_of(table, "val")
    with pytest.raises(InputError, match=r"data\.split\.test_as_train: contradicts"):
        official_split(table, 0.2, 0, False, True, test_as_train=True)


def test_photos_of_unknown_class_are_divided_and_only_a_missing_test_split_is_logged(tmp_path, unequal, caplog):
    caplog.set_level(logging.INFO)
    assert (sizes(stratified_split(table_of(tmp_path, [0] * 20 + [UNKNOWN] * 20), R0, 0, False)) > 0).all(axis=None)
    assert caplog.text == ""
    stratified_split(table_of(tmp_path, CODES), (0.8, 0.2, 0), 0, False)
    assert "there are no test photos" in caplog.text


@pytest.mark.parametrize(
    ("divide", "message"),
    [
        (lambda t: stratified_split(t, (0.5, 0.5, 0.5), 0, False), r"data\.split\.fractions: .*add up to 1"),
        (lambda t: stratified_split(t, (1.2, -0.1, -0.1), 0, False), r"data\.split\.fractions"),
        (lambda t: stratified_split(t, (0.5, 0.5), 0, False), r"data\.split\.fractions"),
        (lambda t: stratified_split(t, (0.0, 0.5, 0.5), 0, False), "the train split of some is empty"),
        (lambda t: stratified_split(t, (0.9, 0.0, 0.1), 0, False), r"the val split of some is empty; .*val_fraction"),
        (lambda t: kfold_split(t, 3, 3, 0.2, 0, False), r"data\.split\.fold: 3 is not one of 0 to 2"),
        (lambda t: kfold_split(t, 3, -1, 0.2, 0, False), r"data\.split\.fold: -1 is not one of 0 to 2"),
        (lambda t: kfold_split(t, 3, 0, 0.0, 0, False), r"the val split of some is empty; .*val_fraction"),
        (lambda t: official_split(t, 0.2, 0, False, False), r"comes without a split of its own; use .*stratified"),
        (lambda t: official_split(t.with_split(["test"] * len(t)), 0.2, 0, False, False), "the train split"),
        (lambda t: official_split(t.with_split(["train"] * len(t)), 0.0, 0, False, False), "the val split"),
    ],
)  # fmt: skip
def test_what_cannot_be_divided_is_an_error(tmp_path, unequal, divide, message):
    with pytest.raises(InputError, match=message) as raised:
        divide(table_of(tmp_path, CODES))
    assert "\n" not in str(raised.value)


def test_a_class_with_too_few_photos_names_the_fix(tmp_path, unequal):
    table = table_of(tmp_path, [0] * 20 + [2] + [3] * 20)
    for fix, divide in {
        3: lambda table: stratified_split(table, R0, 0, False),
        2: lambda table: stratified_split(table, (0.8, 0.2, 0.0), 0, False),
        5: lambda table: kfold_split(table, 5, 0, 0.2, 0, False),
    }.items():
        expected = rf"class 'name 2' of some has 1 photos?, too few .*data\.min_images_per_class={fix}$"
        with pytest.raises(InputError, match=expected):
            divide(table)
        assert len(divide(table.without_sparse_classes(fix))) == 40


def test_kfold_spreads_the_groups_of_a_class_with_fewer_groups_than_folds(tmp_path, unequal):
    """Else a fold would test a class without training photos, although it has two groups."""
    codes = [0] * 8 + [1] * 20
    groups = ["a"] * 4 + ["b"] * 4 + [""] * 20
    table = table_of(tmp_path, codes, groups=groups)
    tested = []
    for fold in range(4):
        part = kfold_split(table, 4, fold, 0.2, 0, True)
        assert (part.of_split("train").rows["class"] == 0).any()
        tested += part.of_split("test").rows.loc[lambda rows: rows["class"] == 0, "group"].unique().tolist()
    assert sorted(tested) == ["a", "b"]


@pytest.mark.parametrize(
    ("num_classes", "train_classes", "wanted"),
    [(196, 0.5, 98), (196, 98, 98), (11, 0.5, 6), (10, 0.7, 7), (5, 0.3, 2), (5, 4, 4), (100, 0.07, 7), (3, 2, 2)],
)
def test_unseen_classes_are_the_last(tmp_path, unequal, num_classes, train_classes, wanted):
    """0.7 * 10 and 0.07 * 100 are a little more than 7 in floating point."""
    codes = np.random.default_rng(0).permutation(np.repeat(np.arange(num_classes), 8))
    table = table_of(tmp_path, codes, np.resize(["train", "test", "val", ""], len(codes)))
    divided = unseen_classes_split(table, train_classes, 0.25, 0, False)
    assert len(divided) == len(table)  # also photos outside of the own split
    found = sizes(divided)
    assert (found.loc[: wanted - 1, ["test", "train", "val"]] == [0, 6, 2]).all(axis=None)
    assert (found.loc[wanted:, ["test", "train", "val"]] == [8, 0, 0]).all(axis=None)


def test_unseen_classes_leave_out_copies_and_photos_of_unknown_class(tmp_path, caplog):
    codes = [0] * 6 + [1] * 6 + [2] * 3 + [UNKNOWN] * 2
    contents = [str(i).encode() for i in range(len(codes))]
    contents[3] = contents[12]  # one of train, one of test
    contents[4] = contents[5] = contents[0]
    divided = unseen_classes_split(table_of(tmp_path, codes, contents=contents), 2, 0.3, 0, False)
    assert set(divided.rows["path"]) == {f"{i:04d}.jpg" for i in range(15)} - {"0003.jpg"}
    assert paths_of(divided, "test") == {"0012.jpg", "0013.jpg", "0014.jpg"}
    assert_kept_together(divided, dict(zip([f"{i:04d}.jpg" for i in range(17)], contents, strict=True)))
    assert "1 train photos are left out, as their bytes equal those of test photos" in caplog.text
    assert "2 photos are left out, as their class is not known" in caplog.text


@pytest.mark.parametrize("train_classes", [12, 40, 0.999, 0.01])
def test_too_few_or_too_many_training_classes_are_an_error(tmp_path, unequal, train_classes):
    message = rf"data\.split\.train_classes: {train_classes} are \d+ of the 12 classes of class of some; training needs"
    with pytest.raises(InputError, match=message):
        unseen_classes_split(table_of(tmp_path, CODES), train_classes, 0.2, 0, False)
    with pytest.raises(InputError, match=r"the val split of some is empty; .*val_fraction"):
        unseen_classes_split(table_of(tmp_path, CODES), 0.5, 0.0, 0, False)


def makes_and_models() -> Table:
    """Create six photos: make a has the models 0 and 1, b the model 2; some labels are unknown."""
    rows = pd.DataFrame(
        {
            "path": list("uvwxyz"),
            "make": np.array([0, 0, 1, 0, 1, UNKNOWN], np.int32),
            "model": np.array([1, 0, 2, UNKNOWN, 2, UNKNOWN], np.int32),
            "colour": np.array([1, 0, 0, 2, 1, UNKNOWN], np.int32),
            "speed": np.float32(100),
            "split": ["train", "test", "test", "val", "test", "test"],
        }
    )
    labels = {
        "make": Classes(("a", "b"), ("A", "B")),
        "model": Classes(("0", "1", "2"), ("zero", "one", "two"), "make", (0, 0, 1)),
        "colour": Classes(("r", "g", "b"), ("red", "green", "blue")),
        "speed": Number("km/h"),
    }
    return Table("some", Path("nowhere"), rows, labels, "model")


def test_without_unseen_classes(caplog):
    caplog.set_level(logging.INFO)
    table = makes_and_models()
    seen = without_unseen_classes(table)
    assert seen.labels == {
        "make": Classes(("a",), ("A",)),
        "model": Classes(("1",), ("one",), "make", (0,)),
        "colour": Classes(("g", "b"), ("green", "blue")),
        "speed": table.labels["speed"],
    }
    assert seen.rows["make"].tolist() == [0, 0, UNKNOWN, 0, UNKNOWN, UNKNOWN]
    assert seen.rows["model"].tolist() == [0, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN]
    assert seen.rows["colour"].tolist() == [0, UNKNOWN, UNKNOWN, 1, 0, UNKNOWN]
    assert all(seen.rows[name].dtype == np.int32 for name in seen.class_labels)
    assert "3 test photos are of 2 classes that are not trained" in caplog.text and "carvision.retrieve" in caplog.text
    pd.testing.assert_frame_equal(table.rows, makes_and_models().rows)  # unchanged
    caplog.clear()
    table = table.with_split(["train"] * 6)
    seen = without_unseen_classes(table)  # all classes are trained
    assert seen.labels == table.labels and caplog.text == ""
    pd.testing.assert_frame_equal(seen.rows, table.rows)


# splits.csv, and copies


def test_file_split_repeats_what_write_splits_wrote(tmp_path):
    codes = np.where(np.arange(60) % 9, np.arange(60) % 3, UNKNOWN)
    table = table_of(tmp_path, codes, np.resize(["train", "val", "test", "train", ""], 60))
    paths = ["NA", *(f'a, "b"/é {path}' for path in table.rows["path"][1:])]
    rows = table.rows.assign(path=paths, speed=np.float32(200))
    table = Table("some", tmp_path, rows, {**table.labels, "speed": Number("km/h")}, "class")
    divided = table.select(rows["split"] != "")
    write_splits(divided, tmp_path / "splits.csv")
    again = file_split(table.with_split(["train"] * 60), tmp_path / "splits.csv")
    pd.testing.assert_frame_equal(again.rows, divided.rows)

    written = pd.read_csv(tmp_path / "splits.csv", keep_default_na=False)
    assert list(written) == ["path", "split", "class"]
    assert written["path"].tolist() == divided.rows["path"].tolist()
    assert written["class"].tolist() == [f"id{i}" if i != UNKNOWN else "" for i in divided.rows["class"]]


def test_boxes_are_written_if_there_are_any(tmp_path):
    boxes = pd.DataFrame({"left": [1.0, 2.5], "top": [2.0, 3], "right": [30.0, 40], "bottom": [20, np.nan]})
    table = table_of(tmp_path, [0, 1], ["train", "test"])
    rows = pd.concat([table.rows, boxes.astype(np.float32)], axis=1)
    write_splits(replace(table, rows=rows), tmp_path / "splits.csv")
    written = pd.read_csv(tmp_path / "splits.csv")[list(boxes)]
    pd.testing.assert_frame_equal(written, boxes, check_dtype=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"splits\.csv does not exist; give the splits\.csv of a run"),
        ("", r"splits\.csv has no column 'path'; its columns: none"),
        ("path,split\n0001.jpg,train\n0002.jpg,val,7\n", r"splits\.csv, line 3 has 3 cells and the first line 2"),
        ("photo,split\n0001.jpg,train\n", r"has no column 'path'; its columns: photo, split"),
        ("path,split\n0001.jpg,training\n", r"line 2: split 'training' is not one of train, val, valid"),
        ("path,split\n0001.jpg,train\nx/y.jpg,val\n", r"1 photos of .* are not in some .*\(first: x/y\.jpg\)"),
        ("path,split\n0001.jpg,train\n0001.jpg,val\n", r"lists 0001\.jpg more than once"),
        ("path,split\n0001.jpg,train\n", r"the val split of some is empty"),
    ],
)
def test_a_wrong_split_file_is_an_error(tmp_path, content, message):
    if content is not None:
        (tmp_path / "splits.csv").write_text(content)
    with pytest.raises(InputError, match=rf"data\.split.*{message}") as raised:
        file_split(table_of(tmp_path, CODES), tmp_path / "splits.csv")
    assert "\n" not in str(raised.value)


def test_equal_bytes_against_the_sha256_of_every_file(tmp_path):
    random = np.random.default_rng(0)
    long = random.bytes(20_000)
    middle = bytearray(long)
    middle[9_000] ^= 1
    contents = [
        b"", long, b"x", bytes(middle), long[:-1] + b"!", b"y", long, b"", b"x" * 4096, b"x" * 4097, long[1:],
        b"!" + long[1:], b"x" * 4096, bytes(middle), b"",
    ]  # fmt: skip
    contents += [bytes(random.integers(0, 2, random.integers(1, 4), np.uint8)) for _ in range(40)]
    found = equal_bytes(table_of(tmp_path, [0] * len(contents), contents=contents))
    # Empty files are not copies of each other
    digests = [hashlib.sha256(content).hexdigest() if content else i for i, content in enumerate(contents)]
    assert [[a == b for b in found] for a in found] == [[a == b for b in digests] for a in digests]
    assert len(set(found)) < len(contents) - 20


def test_only_files_of_equal_size_and_equal_end_are_read_whole(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(splits, "_digest", lambda path: read.append(Path(path).name) or Path(path).read_bytes())
    contents = [b"a" * 9000, b"a" * 9001, b"a" * 8999 + b"b", b"c" + b"a" * 9000]
    found = equal_bytes(table_of(tmp_path, [0] * 4, contents=contents))
    assert len(set(found)) == 4
    assert sorted(read) == ["0001.jpg", "0003.jpg"]  # the same size and the same last 4 kB
