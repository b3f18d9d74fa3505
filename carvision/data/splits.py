"""Splits: which photos train, validate and test; read from and written to splits.csv."""

import hashlib
import logging
import math
import os
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from carvision.data.paths import PhotoPaths, is_utf8, nfc, text_of_path
from carvision.data.readers.table_file import TableFile
from carvision.data.table import BOX, SOURCE, SPLITS, UNKNOWN, Table, full_paths
from carvision.errors import InputError
from carvision.files.atomic import write_csv

log = logging.getLogger(__name__)


# Photos whose files are equal to the byte, found without reading all of them.


def equal_bytes(table: Table) -> np.ndarray:
    """int (N,): the same number for photos whose files are equal to the byte, else different ones. Empty files are no
    copies of each other.

    Reads little: files of different size differ, and so do nearly all of equal size within their last 4 kB. Of packed
    photos it is known of which files they were made.
    """
    if table.shards is not None:
        _, first, same_as = np.unique(table.rows[SOURCE], return_index=True, return_inverse=True)
        return first[same_as]
    paths = full_paths(table)  # and bare calls of the system: a million photos have a million of each
    sizes = np.fromiter((os.stat(path).st_size for path in paths), np.int64, len(paths))  # noqa: PTH116
    suspects = _repeated(sizes[sizes > 0], np.flatnonzero(sizes > 0))
    ends = np.fromiter((_checksum_of_end(paths[i], sizes[i]) for i in suspects), np.int64, len(suspects))
    suspects = _repeated(sizes[suspects] << 32 | ends, suspects)  # no photo has 2 GB
    number = np.arange(len(paths))
    first_with: dict[bytes, int] = {}
    for i in suspects:
        number[i] = first_with.setdefault(_digest(paths[i]), i)
    return number


def _repeated(values: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Of `which`, those whose value occurs more than once."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return which[counts[places] > 1]


def _checksum_of_end(path: str, size: int) -> int:
    file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        start = max(0, int(size) - 4096)
        if hasattr(os, "pread"):
            return zlib.crc32(os.pread(file, 4096, start))
        os.lseek(file, start, os.SEEK_SET)  # Windows
        return zlib.crc32(os.read(file, 4096))
    finally:
        os.close(file)


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123
        return hashlib.file_digest(file, "sha256").digest()


# splits.csv of a run: which photos it trained, validated and tested on.

KEY = "data.split.file"


def read_splits(file: Path) -> pd.Series:
    """Read path -> split of a run's splits.csv or another table. Raises InputError for a file that is none."""
    listed = TableFile(file, KEY, ["path", "split"], "give the splits.csv of a run")
    listed.require(["path", "split"])
    splits: dict[str, str] = {}
    for line, row in listed.rows(["path", "split"]):
        if row["path"] in splits:
            raise InputError(f"{KEY}: {file} lists {text_of_path(row['path'])} more than once")
        splits[row["path"]] = listed.split(row, line)
    kept = {path: split for path, split in splits.items() if split}
    return pd.Series(list(kept.values()), index=pd.Index(list(kept), dtype=object), dtype=object)


def splits_in(file: Path, table: Table) -> tuple[np.ndarray, list[str]]:
    """Find the split of each photo of the table, object (N,), "" where the file lists none; and the paths that the file
    lists and the table lacks. Raises InputError as read_splits does, and for a photo listed in two spellings."""
    listed = read_splits(file)
    rows = find_rows(table, listed.index)
    there = rows >= 0
    found, counts = np.unique(rows[there], return_counts=True)
    if (counts > 1).any():
        one, other = listed.index[rows == found[counts > 1][0]][:2]
        raise InputError(f"{KEY}: {file} lists one photo more than once, as {one} and as {other}; list it once")
    splits = np.full(len(table), "", dtype=object)
    splits[rows[there]] = listed.to_numpy()[there]
    return splits, [text_of_path(path) for path in listed.index[~there]]


def find_rows(table: Table, paths: Iterable[str]) -> np.ndarray:
    """Find the row of each photo, in whatever spelling of `PhotoPaths`, int64; -1 where the table has none."""
    paths = [path if is_utf8(path) else text_of_path(path) for path in paths]
    rows = pd.Index(table.rows["path"]).get_indexer(pd.Index(paths, dtype=str)).astype(np.int64)
    if (rows < 0).any():
        finder = PhotoPaths(table.root if table.shards is None else None)
        row_of = {nfc(path): row for row, path in enumerate(table.rows["path"])}
        for i in np.flatnonzero(rows < 0):
            spellings = (row_of.get(nfc(text)) for text in finder.spellings(paths[i]))
            rows[i] = next((row for row in spellings if row is not None), -1)
    return rows


def write_splits(table: Table, file: Path) -> None:
    """splits.csv, see splits_of."""
    write_csv(file, splits_of(table))


def splits_of(table: Table) -> pd.DataFrame:
    """What splits.csv holds: path, split, the class id of every label and the box, a row a photo, in the table's order.

    With this carvision.predict --list finds the photos, their boxes and true classes.
    """
    out = table.rows[["path", "split"]].copy()
    for name, label in table.class_labels.items():
        ids = np.array([*label.ids, ""], dtype=object)  # the last place serves UNKNOWN = -1
        out[name] = ids[table.rows[name].to_numpy()]
    if table.has_boxes:
        out[BOX] = table.rows[BOX]
    return out


# Which photos train, validate and test: pure functions from a Table to a Table with another `split` column.


def official_split(
    table: Table, val_fraction: float, seed: int, keep_groups: bool, val_as_test: bool, test_as_train: bool = False
) -> Table:
    """The data set's own lists. Where they name no validation photos, a share of train becomes that, never of test.

    val_as_test: the data set's validation photos are held out as the test (for one that comes without a test).
    test_as_train: the photos of its test train, too, and there is no test.
    Training photos with the bytes of a validation or test photo are left out, and validation photos with the bytes
    of a test photo.
    """
    table = table.select(table.rows["split"] != "")
    if not len(table):
        raise InputError(
            f"data.split.kind: {table.name} under {table.root} comes without a split of its own; "
            "use data.split.kind=stratified or kfold"
        )
    split = table.rows["split"].to_numpy(dtype=object).copy()
    if val_as_test and test_as_train:
        raise InputError("data.split.test_as_train: leaves no test, which data.split.val_as_test makes; take one")
    if val_as_test:
        if (split == "test").any() or not (split == "val").any():
            raise InputError(
                f"data.split.val_as_test: {table.name} has {(split == 'val').sum()} validation and "
                f"{(split == 'test').sum()} test photos; the option is for data with validation and without test"
            )
        split[split == "val"] = "test"
    if test_as_train:
        split[split == "test"] = "train"
    copies = equal_bytes(table)
    for learned, held_out in (("val", ["test"]), ("train", ["val", "test"])):
        _leave_out_copies(table, split, copies, learned, held_out)
    if not (split == "val").any() and (split == "train").any():
        _take_val_of_train(table, split, copies, val_fraction, seed, keep_groups)
    return _checked(table.with_split(split))


def stratified_split(table: Table, fractions: tuple[float, float, float], seed: int, keep_groups: bool) -> Table:
    """Train, val and test in these fractions of every class, photos of equal bytes (and groups) together."""
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise InputError(
            f"data.split.fractions: {list(fractions)} are not three shares (train, val, test) that add up to 1"
        )
    _require_photos(table, sum(fraction > 0 for fraction in fractions))
    units = _units(table, equal_bytes(table), keep_groups)
    return _checked(table.with_split(_stratify(table, units, tuple(fractions), SPLITS, seed)))


def kfold_split(table: Table, num_folds: int, fold: int, val_fraction: float, seed: int, keep_groups: bool) -> Table:
    """Fold `fold` of `num_folds` is the test; of the other photos, `val_fraction` of every class validates."""
    if not 0 <= fold < num_folds:
        raise InputError(f"data.split.fold: {fold} is not one of 0 to {num_folds - 1} (data.split.num_folds), or all")
    _require_photos(table, num_folds)
    units = _units(table, equal_bytes(table), keep_groups)
    names = tuple(map(str, range(num_folds)))
    folds = _stratify(table, units, (1 / num_folds,) * num_folds, names, seed, few_in_first=False)
    split = np.where(folds == str(fold), "test", "train").astype(object)
    rest = np.flatnonzero(split == "train")
    part = table.select(split == "train")
    split[rest] = _stratify(part, units[rest], (1 - val_fraction, val_fraction), ("train", "val"), seed)
    return _checked(table.with_split(split))


def unseen_classes_split(
    table: Table, train_classes: float, val_fraction: float, seed: int, keep_groups: bool
) -> Table:
    """All photos of the last classes are the test; of those of the first `train_classes`, a whole number of the classes
    of the finest label, or below 1 a share of them, `val_fraction` of every class validates. The data set's own split
    does not count.

    So metric learning is measured: of the 196 cars, 98 and 98. Hyun Oh Song et al., Deep metric learning via lifted
    structured feature embedding, CVPR 2016. Training photos with the bytes of a test photo are left out, and photos
    whose class is not known.
    """
    label, codes = table.finest_classes, table.rows[table.finest].to_numpy()
    # Rounded before, as 0.7 * 10 is a little more than 7
    num_train = train_classes if train_classes >= 1 else math.ceil(round(train_classes * len(label), 6))
    if not 2 <= num_train < len(label):
        raise InputError(
            f"data.split.train_classes: {train_classes} are {num_train} of the {len(label)} classes of {table.finest} "
            f"of {table.name}; training needs 2 and the test 1"
        )
    split = np.where(codes < num_train, "train", "test").astype(object)
    unknown = codes == UNKNOWN
    split[unknown] = ""
    if unknown.any():
        log.warning("%s: %d photos are left out, as their %s is not known", table.name, unknown.sum(), table.finest)
    copies = equal_bytes(table)
    _leave_out_copies(table, split, copies, "train", ["test"])
    _take_val_of_train(table, split, copies, val_fraction, seed, keep_groups)
    return _checked(table.with_split(split))


def without_unseen_classes(table: Table) -> Table:
    """Labels have the classes alone that a training or validation photo has, and a test photo of another class counts
    as one whose class is not known: heads can't tell what is never shown to them."""
    seen = table.select(table.rows["split"].isin(["train", "val"])).without_empty_classes()
    rows = table.rows.copy(deep=False)
    for name, label in table.class_labels.items():
        code_of = {class_id: code for code, class_id in enumerate(seen.class_labels[name].ids)}
        codes = [*(code_of.get(class_id, UNKNOWN) for class_id in label.ids), UNKNOWN]  # the last serves UNKNOWN = -1
        rows[name] = np.array(codes, np.int32)[table.rows[name]]
    unseen = (rows[table.finest] == UNKNOWN) & (table.rows[table.finest] != UNKNOWN)
    if unseen.any():
        log.info(
            "%s: %s test photos are of %d classes that are not trained: their %s has no figures here, as "
            "python -m carvision.retrieve measures how well they are found",
            table.name, f"{unseen.sum():,}", len(table.finest_classes) - len(seen.finest_classes), table.finest,
        )  # fmt: skip
    return replace(table, rows=rows, labels=seen.labels)


def file_split(table: Table, file: Path) -> Table:
    """The split of an earlier run: its splits.csv, columns path and split. Photos it doesn't list are left out."""
    split, absent = splits_in(file, table)
    if absent:
        raise InputError(
            f"data.split.file: {len(absent):,} photos of {file} are not in {table.name} under {table.root} "
            f"(first: {absent[0]})"
        )
    return _checked(table.with_split(split).select(split != ""))


def _leave_out_copies(table: Table, split: np.ndarray, copies: np.ndarray, learned: str, held_out: list[str]) -> None:
    """In `split`, photos of `learned` become "" if their bytes are those of a photo of `held_out`."""
    twice = (split == learned) & np.isin(copies, copies[np.isin(split, held_out)])
    if twice.any():
        log.warning(
            "%s: %d %s photos are left out, as their bytes equal those of %s photos",
            table.name, twice.sum(), learned, " or ".join(held_out),
        )  # fmt: skip
        split[twice] = ""


def _take_val_of_train(
    table: Table, split: np.ndarray, copies: np.ndarray, val_fraction: float, seed: int, keep_groups: bool
) -> None:
    """In `split`, a share of the training photos of each class become "val"."""
    train = np.flatnonzero(split == "train")
    part = table.select(split == "train")
    units = _units(part, copies[train], keep_groups)
    split[train] = _stratify(part, units, (1 - val_fraction, val_fraction), ("train", "val"), seed)


def _units(table: Table, copies: np.ndarray, keep_groups: bool) -> np.ndarray:
    """int (N,): photos with the same number may not be parted, directly or through a chain of others."""
    if not keep_groups or "group" not in table.rows:
        return copies
    from scipy.sparse import coo_array  # only now: few data sets have groups
    from scipy.sparse.csgraph import connected_components

    groups, _ = pd.factorize(table.rows["group"].replace("", None), use_na_sentinel=True)
    grouped = np.flatnonzero(groups >= 0)
    num = len(table)
    sources = np.concatenate([np.arange(num), grouped])
    _, copy_codes = np.unique(copies, return_inverse=True)
    targets = np.concatenate([num + copy_codes, 2 * num + groups[grouped]])
    links = coo_array((np.ones(len(sources), bool), (sources, targets)), shape=(3 * num, 3 * num))
    return connected_components(links, directed=False)[1][:num]


def _stratify(
    table: Table, units: np.ndarray, fractions: tuple, names: tuple[str, ...], seed: int, few_in_first: bool = True
) -> np.ndarray:
    """object (N,): for each photo one of `names`, in `fractions` of the units of its class, at random by seed.

    A class with at least as many units as there are names has one in each; one with fewer goes to the first name
    whole (few_in_first), or each unit to another name. Photos of unknown class are divided like a class of their own.
    """
    codes = table.rows[table.finest].to_numpy()
    wanted = [i for i, fraction in enumerate(fractions) if fraction > 0]
    unit_ids, first, unit_of_row = np.unique(units, return_index=True, return_inverse=True)
    unit_class = codes[first]
    random = np.random.default_rng(seed)
    split_of_unit = np.zeros(len(unit_ids), np.int64)
    whole = 0
    for code in np.unique(unit_class):
        members = random.permutation(np.flatnonzero(unit_class == code))
        if len(members) < len(wanted):
            if few_in_first:
                whole += 1
            else:
                split_of_unit[members] = random.permutation(len(names))[: len(members)]
            continue
        sizes = _apportion(len(members), fractions, random)
        split_of_unit[members] = np.repeat(np.arange(len(fractions)), sizes)
    if whole:
        log.warning(
            "%s: %d of %d classes are wholly in %s, as their photos belong together (groups or copies)",
            table.name, whole, len(np.unique(unit_class)), names[0],
        )  # fmt: skip
    return np.array(names, dtype=object)[split_of_unit[unit_of_row]]


def _apportion(count: int, fractions: tuple, random: np.random.Generator) -> np.ndarray:
    """Whole numbers that add up to count, near count * fractions, at least 1 where the fraction isn't 0."""
    exact = np.asarray(fractions) * count
    sizes = np.floor(exact).astype(int)
    # What rounding left over goes by chance in proportion to the remainders, so that over many
    # small classes the fractions come out right.
    remainder = exact - sizes
    for _ in range(count - sizes.sum()):
        total = remainder.sum()
        place = random.choice(len(sizes), p=remainder / total) if total > 0 else int(np.argmax(fractions))
        sizes[place] += 1
        remainder[place] = 0
    for place in np.flatnonzero((sizes == 0) & (np.asarray(fractions) > 0)):
        sizes[np.argmax(sizes)] -= 1
        sizes[place] += 1
    return sizes


def _require_photos(table: Table, num_splits: int) -> None:
    """Raises for a class that has fewer photos than there are splits, each of which should see it."""
    label = table.finest_classes
    codes = table.rows[table.finest].to_numpy()
    counts = np.bincount(codes[codes != UNKNOWN], minlength=len(label))
    few = np.flatnonzero((counts > 0) & (counts < num_splits))
    if len(few):
        raise InputError(
            f"data.split: {table.finest} {label.names[few[0]]!r} of {table.name} has {counts[few[0]]} photos, too few "
            f"for {num_splits} splits ({len(few)} such classes); drop them with data.min_images_per_class={num_splits}"
        )


def _checked(table: Table) -> Table:
    """The table, if there is something to train and to validate on; a missing test is allowed, and said."""
    table = table.select(table.rows["split"] != "")
    counts = table.rows["split"].value_counts()
    for split in ("train", "val"):
        if not counts.get(split, 0):
            mend = "data.split.val_fraction above 0" if split == "val" else "another data.split or data.classes"
            raise InputError(f"data.split: the {split} split of {table.name} is empty; {mend} is needed")
    if not counts.get("test", 0):
        log.warning("%s: there are no test photos, so there will be no test figures", table.name)
    return table
