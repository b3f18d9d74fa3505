"""Split a Table into train, val and test; read and write splits.csv; find photos of equal bytes.

The functions <kind>_split return a new Table with another column `split`. Photos of equal bytes stay in one split, as
do those of a group (keep_groups). seed decides all randomness. They raise InputError for what can't be split.
"""

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

KEY = "data.split.file"


def official_split(
    table: Table, val_fraction: float, seed: int, keep_groups: bool, val_as_test: bool, test_as_train: bool = False
) -> Table:
    """Use the data set's own split. Without validation photos, val_fraction of the training photos become those.

    val_as_test: hold the validation photos out as the test, for a data set without one. test_as_train: train on the
    test photos, too, without a test. Training photos with the bytes of a validation or test photo are left out, and
    validation photos with the bytes of a test photo.
    """
    table = table.select(table.rows["split"] != "")
    if not len(table):
        text = f"{table.name} under {table.root} comes without a split of its own"
        raise InputError(f"data.split.kind: {text}; use data.split.kind=auto, stratified or kfold")
    split = table.rows["split"].to_numpy(dtype=object).copy()
    if val_as_test and test_as_train:
        raise InputError("data.split.test_as_train: contradicts data.split.val_as_test; set only one")
    if val_as_test:
        num_val, num_test = (split == "val").sum(), (split == "test").sum()
        if num_test or not num_val:
            text = f"{table.name} has {num_val} validation and {num_test} test photos"
            raise InputError(f"data.split.val_as_test: {text}; it is for data with the first and without the second")
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
    """Split every class into these fractions of train, val and test."""
    if abs(sum(fractions) - 1) > 1e-6:
        raise InputError(f"data.split.fractions: {list(fractions)} (train, val, test) do not add up to 1; correct them")
    _require_photos(table, sum(fraction > 0 for fraction in fractions))
    units = _units(table, equal_bytes(table), keep_groups)
    return _checked(table.with_split(_stratify(table, units, tuple(fractions), SPLITS, seed)))


def kfold_split(table: Table, num_folds: int, fold: int, val_fraction: float, seed: int, keep_groups: bool) -> Table:
    """Test on fold `fold` of `num_folds`; of the other photos, `val_fraction` of every class validates."""
    if not 0 <= fold < num_folds:
        raise InputError(f"data.split.fold: {fold} is not one of 0 to {num_folds - 1} (data.split.num_folds), or all")
    _require_photos(table, num_folds)
    copies = equal_bytes(table)
    units = _units(table, copies, keep_groups)
    names = tuple(map(str, range(num_folds)))
    folds = _stratify(table, units, (1 / num_folds,) * num_folds, names, seed, few_in_first=False)
    split = np.where(folds == str(fold), "test", "train").astype(object)
    _take_val_of_train(table, split, copies, val_fraction, seed, keep_groups)
    return _checked(table.with_split(split))


def unseen_classes_split(
    table: Table, train_classes: float, val_fraction: float, seed: int, keep_groups: bool
) -> Table:
    """Train on the first classes of the finest label and test on all photos of the others, ignoring any official split.

    train_classes: a number of classes, or below 1 a share of them. Of their photos, val_fraction of every class
    validates. The usual protocol for metric learning, with 98 classes each of the 196 cars: Hyun Oh Song et al., Deep
    metric learning via lifted structured feature embedding, CVPR 2016. Left out are training photos with the bytes of a
    test photo, and photos of unknown class.
    """
    label, codes = table.finest_classes, table.rows[table.finest].to_numpy()
    # Rounded first, as 0.7 * 10 is a little more than 7
    num_train = train_classes if train_classes >= 1 else math.ceil(round(train_classes * len(label), 6))
    if not 2 <= num_train < len(label):
        text = f"{train_classes} are {num_train} of the {len(label)} classes of {table.finest} of {table.name}"
        raise InputError(f"data.split.train_classes: {text}; training needs 2 and the test 1")
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
    """Drop the classes without training or validation photos from the labels, and make them UNKNOWN for test photos:
    heads can't predict classes that they never see."""
    seen = table.select(table.rows["split"].isin(["train", "val"])).without_empty_classes()
    rows = table.rows.copy(deep=False)
    for name, label in table.class_labels.items():
        code_of = {class_id: code for code, class_id in enumerate(seen.class_labels[name].ids)}
        codes = [*(code_of.get(class_id, UNKNOWN) for class_id in label.ids), UNKNOWN]  # the last serves UNKNOWN = -1
        rows[name] = np.array(codes, np.int32)[table.rows[name]]
    unseen = (rows[table.finest] == UNKNOWN) & (table.rows[table.finest] != UNKNOWN)
    if unseen.any():
        log.info(
            "%s: %s test photos are of %d classes that are not trained: their %s has no metrics here; "
            "carvision retrieve measures how well they are found",
            table.name, f"{unseen.sum():,}", len(table.finest_classes) - len(seen.finest_classes), table.finest,
        )  # fmt: skip
    return replace(table, rows=rows, labels=seen.labels)


def file_split(table: Table, file: Path) -> Table:
    """Use the split of an earlier run's splits.csv, columns path and split. Photos that it doesn't list are left
    out."""
    split, absent = splits_in(file, table)
    if absent:
        where = f"{table.name} under {table.root} (first: {absent[0]})"
        raise InputError(f"{KEY}: {len(absent):,} photos of {file} are not in {where}; give this data set's splits.csv")
    return _checked(table.with_split(split).select(split != ""))


def _leave_out_copies(table: Table, split: np.ndarray, copies: np.ndarray, learned: str, held_out: list[str]) -> None:
    """Set `split` to "" for photos of the split `learned` whose bytes are those of a photo of `held_out`."""
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
    """Set `split` to "val" for a share of the training photos of each class."""
    train = np.flatnonzero(split == "train")
    part = table.select(split == "train")
    units = _units(part, copies[train], keep_groups)
    split[train] = _stratify(part, units, (1 - val_fraction, val_fraction), ("train", "val"), seed)


def _units(table: Table, copies: np.ndarray, keep_groups: bool) -> np.ndarray:
    """Number the photos, int (N,), such that those linked by copies or groups, also through others, share a number."""
    if not keep_groups or "group" not in table.rows:
        return copies
    from scipy.sparse import coo_array  # late import: few data sets have groups
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
    """Draw one of `names` for each photo, object (N,), in `fractions` of the units of each class.

    A class with at least as many units as nonzero fractions has one in each; one with fewer goes to the first name as a
    whole (few_in_first), or each unit to another name. Photos of unknown class are treated as a class of their own.
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
    """Round count * fractions to whole numbers that add up to count, at least 1 for each nonzero fraction."""
    exact = np.asarray(fractions) * count
    sizes = np.floor(exact).astype(int)
    # The rest is drawn in proportion to the remainders, so that the fractions hold over many small classes
    remainder = exact - sizes
    for _ in range(count - sizes.sum()):
        total = remainder.sum()
        i = random.choice(len(sizes), p=remainder / total) if total > 0 else int(np.argmax(fractions))
        sizes[i] += 1
        remainder[i] = 0
    for i in np.flatnonzero((sizes == 0) & (np.asarray(fractions) > 0)):
        sizes[np.argmax(sizes)] -= 1
        sizes[i] += 1
    return sizes


def _require_photos(table: Table, num_splits: int) -> None:
    """Raise InputError for a class with fewer photos than splits, each of which should see it."""
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
    """Return the photos that are in a split. Raises InputError for an empty train or val; warns about an empty test."""
    table = table.select(table.rows["split"] != "")
    counts = table.rows["split"].value_counts()
    for split in ("train", "val"):
        if not counts.get(split, 0):
            fix = "data.split.val_fraction above 0" if split == "val" else "another data.split or data.classes"
            raise InputError(f"data.split: the {split} split of {table.name} is empty; {fix} is needed")
    if not counts.get("test", 0):
        log.warning("%s: there are no test photos, so there will be no test metrics", table.name)
    return table


# splits.csv


def read_splits(file: Path) -> pd.Series:
    """Read path -> split from a run's splits.csv or another table. Raises InputError for other files."""
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
    """Return the split of each photo of the table, object (N,), "" if not listed; and the listed paths that the table
    lacks. Raises InputError as `read_splits` does, and for a photo listed in two spellings."""
    listed = read_splits(file)
    rows = find_rows(table, listed.index)
    known = rows >= 0
    found, counts = np.unique(rows[known], return_counts=True)
    if (counts > 1).any():
        one, other = listed.index[rows == found[counts > 1][0]][:2]
        raise InputError(f"{KEY}: {file} lists one photo more than once, as {one} and as {other}; list it once")
    splits = np.full(len(table), "", dtype=object)
    splits[rows[known]] = listed.to_numpy()[known]
    return splits, [text_of_path(path) for path in listed.index[~known]]


def find_rows(table: Table, paths: Iterable[str]) -> np.ndarray:
    """Find the row of each photo, in any spelling of `PhotoPaths`: int64 (len(paths),), -1 for photos not in the
    table."""
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
    """Write splits.csv, see `splits_of`."""
    write_csv(file, splits_of(table))


def splits_of(table: Table) -> pd.DataFrame:
    """Return the content of splits.csv: path, split, class id of every label, and box, per photo in the table's order.

    carvision.predict --list reads it to find photos, boxes and true classes.
    """
    out = table.rows[["path", "split"]].copy()
    for name, label in table.class_labels.items():
        ids = np.array([*label.ids, ""], dtype=object)  # the last entry serves UNKNOWN = -1
        out[name] = ids[table.rows[name].to_numpy()]
    if table.has_boxes:
        out[BOX] = table.rows[BOX]
    return out


# Copies: files of equal bytes


def equal_bytes(table: Table) -> np.ndarray:
    """Number the photos, int (N,), such that exactly those with files of equal bytes share a number. Empty files are
    not copies of each other.

    Files are read only if their sizes and their last 4 kB are equal. Packs know the files that they were made of.
    """
    if table.shards is not None:
        _, first, same_as = np.unique(table.rows[SOURCE], return_index=True, return_inverse=True)
        return first[same_as]
    paths = full_paths(table)  # strings: fast for a million photos
    sizes = np.fromiter((os.stat(path).st_size for path in paths), np.int64, len(paths))  # noqa: PTH116
    suspects = _repeated(sizes[sizes > 0], np.flatnonzero(sizes > 0))
    ends = np.fromiter((_checksum_of_end(paths[i], sizes[i]) for i in suspects), np.int64, len(suspects))
    suspects = _repeated(sizes[suspects] << 32 | ends, suspects)  # no photo has 2 GB
    number = np.arange(len(paths))
    first_with: dict[bytes, int] = {}
    for i in suspects:
        number[i] = first_with.setdefault(_digest(paths[i]), i)
    return number


def _repeated(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the rows whose value occurs more than once."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return rows[counts[inverse] > 1]


def _checksum_of_end(path: str, size: int) -> int:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        file.seek(max(0, size - 4096))
        return zlib.crc32(file.read(4096))


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123
        return hashlib.file_digest(file, "sha256").digest()
