"""Splits have the right size in every class and keep together what belongs together; splits.csv; copies."""

import hashlib

import numpy as np
import pandas as pd
import pytest

from carvision.data import splits
from carvision.data.build import build_split
from carvision.data.splits import file_split, kfold_split, official_split, stratified_split, unseen_classes_split
from carvision.data.table import BOX, UNKNOWN, Classes, Number, Table
from carvision.errors import InputError
from tests.data.test_table import create_table

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


@pytest.mark.parametrize("fractions", [R0, (0.8, 0.2, 0.0), (1 / 3, 1 / 3, 1 / 3)])
def test_stratified_fractions_hold_in_every_class(tmp_path, unequal, fractions):
    codes = np.append(CODES, [UNKNOWN] * 20)
    found = sizes(stratified_split(table_of(tmp_path, codes), fractions, 0, False))
    wanted = dict(zip(("train", "val", "test"), fractions, strict=True))
    for code, count in [*enumerate(COUNTS), (UNKNOWN, 20)]:
        row = found.loc[code]
        assert row.sum() == count
        for split, fraction in wanted.items():
            if fraction == 0:
                assert split not in row
            elif min(f * count for f in fractions if f > 0) >= 1:
                assert abs(row[split] - fraction * count) < 1
            else:
                assert row[split] >= 1


def test_fractions_hold_over_many_classes_that_cannot_have_them_exactly(tmp_path, unequal):
    """Ten photos are 6.75, 2.25 and 1: rounded alike in every class, validation would have 20 % of all."""
    found = sizes(stratified_split(table_of(tmp_path, np.repeat(np.arange(400), 10)), R0, 0, False)).sum() / 4000
    assert [found[split] for split in ("train", "val", "test")] == pytest.approx(R0, abs=0.01)


@pytest.mark.parametrize("kind", DIVIDE)
def test_the_seed_decides_the_split(tmp_path, unequal, kind):
    table = table_of(tmp_path, CODES, "train")
    first, second, other = (DIVIDE[kind](table, seed, True).rows["split"].tolist() for seed in (7, 7, 8))
    assert first == second != other
    assert table.rows["split"].tolist() == ["train"] * len(table)


def test_auto_takes_the_own_split_where_there_is_one(tmp_path, unequal, caplog):
    caplog.set_level("INFO")
    settings = {"kind": "auto", "file": None, "fractions": [0.5, 0.25, 0.25], "val_fraction": 0.2, "seed": 1}
    settings |= {"val_as_test": False, "keep_groups": True}
    table = table_of(tmp_path, [0, 1] * 20)
    wanted = stratified_split(table, (0.5, 0.25, 0.25), 1, True)
    assert build_split(table, settings).rows.equals(wanted.rows)
    line = "some: no split of its own, so each class is split into 50 %, 25 %, 25 % for train, val, test"
    assert caplog.messages == [f"{line} (data.split.kind=auto)"]
    own = table.with_split(["train", "train", "test", "test"] * 10)
    assert build_split(own, settings).rows.equals(official_split(own, 0.2, 1, True, False).rows)
    assert caplog.messages[1:] == ["some: split as the data set has it (data.split.kind=auto)"]


@pytest.mark.parametrize("num_folds", [2, 5])
def test_kfold_tests_every_photo_once(tmp_path, unequal, num_folds):
    counts = [max(count, num_folds + 1) for count in COUNTS]
    table = table_of(tmp_path, np.repeat(np.arange(len(counts)), counts))
    folds = [kfold_split(table, num_folds, fold, 0.25, 4, False) for fold in range(num_folds)]
    for found in map(sizes, folds):
        rest = found["train"] + found["val"]
        assert (((found["val"] - 0.25 * rest).abs() < 1) | (found["val"] == 1) | (rest == 1)).all()
    assert sorted(path for fold in folds for path in paths_of(fold, "test")) == table.rows["path"].tolist()
    of_class = np.stack([sizes(fold)["test"] for fold in folds])
    assert (np.ptp(of_class, axis=0) <= 1).all() and (of_class.sum(0) == counts).all()


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
    paint, before = list(range(len(paths))), None
    while paint != before:
        before = paint
        for marks in (contents, [group or i for i, group in enumerate(groups)]):
            lowest: dict = {}
            for mark, colour in zip(marks, paint, strict=True):
                lowest[mark] = min(colour, lowest.get(mark, colour))
            paint = [lowest[mark] for mark in marks]
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


@pytest.mark.parametrize("as_train", [False, True])
def test_official_takes_val_from_train_if_there_is_none(tmp_path, unequal, as_train):
    """as_train: the test photos are trained on, too."""
    table = table_of(tmp_path, FIVE_CLASSES, np.where(HALVES, "train", "test"))
    divided = official_split(table, 0.15, 0, False, False, test_as_train=as_train)
    assert paths_of(divided, "test") == (set() if as_train else paths_of(table, "test"))
    trained = set(table.rows["path"]) if as_train else paths_of(table, "train")
    assert paths_of(divided, "train") | paths_of(divided, "val") == trained
    assert (sizes(divided)["val"] - 0.03 * len(trained)).abs().max() <= 1
    own_val = table_of(tmp_path, FIVE_CLASSES, np.tile(["train", "val", "test", ""], 50))
    divided = official_split(own_val, 0.15, 0, False, False, test_as_train=as_train)
    assert paths_of(divided, "val") == paths_of(own_val, "val")
    expected = {"train": 100, "val": 50} if as_train else {"train": 50, "val": 50, "test": 50}
    assert divided.rows["split"].value_counts().to_dict() == expected


def test_val_as_test(tmp_path, unequal):
    table = table_of(tmp_path, FIVE_CLASSES, np.where(HALVES, "train", "val"))
    divided = official_split(table, 0.2, 0, False, True)
    assert paths_of(divided, "test") == paths_of(table, "val")
    assert paths_of(divided, "val") < paths_of(table, "train") and len(paths_of(divided, "val")) == 20
    with pytest.raises(InputError, match=r"data\.split\.val_as_test: some has .* validation and .* test photos"):
        official_split(table_of(tmp_path, [0] * 12, ["train", "val", "test"] * 4), 0.2, 0, False, True)


def test_what_cannot_be_divided_is_an_error(tmp_path, unequal):
    table = table_of(tmp_path, CODES)
    for divide, message in (
        (lambda: kfold_split(table, 3, 3, 0.2, 0, False), r"data\.split\.fold: 3 is not one of 0 to 2"),
        (lambda: kfold_split(table, 3, 0, 0.0, 0, False), r"the val split of some is empty; .*val_fraction"),
        (lambda: official_split(table, 0.2, 0, False, False), r"comes without a split of its own; use .*stratified"),
        (lambda: unseen_classes_split(table, 12, 0.2, 0, False), r"train_classes: 12 are \d+ of the 12 classes"),
    ):
        with pytest.raises(InputError, match=message):
            divide()


def test_kfold_spreads_the_groups_of_a_class_with_fewer_groups_than_folds(tmp_path, unequal):
    """Else a fold would test a class without training photos, although it has two groups."""
    table = table_of(tmp_path, [0] * 8 + [1] * 20, groups=["a"] * 4 + ["b"] * 4 + [""] * 20)
    tested = []
    for fold in range(4):
        rows = kfold_split(table, 4, fold, 0.2, 0, True).rows.query("`class` == 0")
        assert (rows["split"] == "train").any()
        tested += rows.loc[rows["split"] == "test", "group"].unique().tolist()
    assert sorted(tested) == ["a", "b"]


@pytest.mark.parametrize("num_classes, train_classes, wanted", [(11, 0.5, 6), (10, 0.7, 7), (5, 4, 4), (100, 0.07, 7)])
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


def test_without_unseen_classes(caplog):
    caplog.set_level("INFO")
    table = create_table().with_split(["test", "test", "test", "train", "test", "test", "test"])  # a single A6
    seen = splits.without_unseen_classes(table)
    assert seen.labels["make"] == Classes(("audi",), ("audi",)) and seen.labels["speed"] == table.labels["speed"]
    assert seen.labels["model"] == Classes(("A6",), ("A6",), "make", (0,))
    assert seen.rows["make"].tolist() == [0, 0, 0, 0, UNKNOWN, UNKNOWN, UNKNOWN]
    assert seen.rows["model"].tolist() == [UNKNOWN, UNKNOWN, UNKNOWN, 0, UNKNOWN, UNKNOWN, UNKNOWN]
    assert all(seen.rows[name].dtype == np.int32 for name in seen.class_labels)
    assert "5 test photos are of 2 classes that are not trained" in caplog.text and "carvision retrieve" in caplog.text
    assert table.labels["model"].ids == ("A4", "A6", "Golf") and table.rows["model"].max() == 2  # unchanged
    everything = splits.without_unseen_classes(table.with_split(["train"] * 7))
    assert everything.labels == table.labels and everything.rows["model"].equals(table.rows["model"])


def test_file_split_repeats_what_write_splits_wrote(tmp_path):
    codes = np.where(np.arange(60) % 9, np.arange(60) % 3, UNKNOWN)
    table = table_of(tmp_path, codes, np.resize(["train", "val", "test", "train", ""], 60))
    paths = ["NA", *(f'a, "b"/é {path}' for path in table.rows["path"][1:])]
    rows = table.rows.assign(path=paths, speed=np.float32(200))
    rows[BOX] = np.float32([1, 2.5, 30, 40])
    table = Table("some", tmp_path, rows, {**table.labels, "speed": Number("km/h")}, "class")
    divided = table.select(rows["split"] != "")
    splits.write_splits(divided, tmp_path / "splits.csv")
    again = file_split(table.with_split(["train"] * 60), tmp_path / "splits.csv")
    pd.testing.assert_frame_equal(again.rows, divided.rows)

    written = pd.read_csv(tmp_path / "splits.csv", keep_default_na=False)
    assert list(written) == ["path", "split", "class", *BOX]
    assert written["path"].tolist() == divided.rows["path"].tolist()
    assert written["class"].tolist() == [f"id{i}" if i != UNKNOWN else "" for i in divided.rows["class"]]
    assert (written[BOX] == [1, 2.5, 30, 40]).all(axis=None)


def test_a_wrong_split_file_is_an_error(tmp_path):
    for content, message in (
        ("photo,split\n0001.jpg,train\n", r"has no column 'path'; its columns: photo, split"),
        ("path,split\n0001.jpg,train\nx/y.jpg,val\n", r"1 photos of .* are not in some .*\(first: x/y\.jpg\)"),
        ("path,split\n0001.jpg,train\n0001.jpg,val\n", r"lists 0001\.jpg more than once"),
    ):
        (tmp_path / "splits.csv").write_text(content)
        with pytest.raises(InputError, match=rf"data\.split.*{message}"):
            file_split(table_of(tmp_path, CODES), tmp_path / "splits.csv")


def test_equal_bytes_against_the_sha256_of_every_file(tmp_path):
    random = np.random.default_rng(0)
    long = random.bytes(20_000)
    middle = bytearray(long)
    middle[9_000] ^= 1
    contents = [b"", long, bytes(middle), long[:-1] + b"!", long, b"x" * 4096, b"x" * 4097, long[1:], b"!" + long[1:]]
    contents += [b"", b"x" * 4096, bytes(middle)]
    contents += [bytes(random.integers(0, 2, random.integers(1, 4), np.uint8)) for _ in range(40)]
    found = splits.equal_bytes(table_of(tmp_path, [0] * len(contents), contents=contents))
    # Empty files are not copies of each other
    digests = [hashlib.sha256(content).hexdigest() if content else i for i, content in enumerate(contents)]
    assert [[a == b for b in found] for a in found] == [[a == b for b in digests] for a in digests]
    assert len(set(found)) < len(contents) - 20
