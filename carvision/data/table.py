"""Table: one row per photo. Every reader returns one, and everything after the readers starts from one."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
import pandas as pd

from carvision.data.packs.read import PackedPhoto, PackedPhotos, Shards
from carvision.data.paths import file_of, nfc
from carvision.errors import InputError, suggest

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
BOX = ["left", "top", "right", "bottom"]  # pixels, 0-based, right and bottom excluded (as PIL's crop)
UNKNOWN = -1  # code of a photo whose class of a label is not known; unknown numbers are NaN
# Columns of packed photos: the shard's number, offset and length of the photo's bytes in it, their checksum; and 64
# bits of the SHA-256 of the original file, which may have been larger
LOCATION, SOURCE = ["_shard", "_offset", "_length", "_crc32"], "_source"


@dataclass(frozen=True)
class Classes:
    """The classes of a label; a row's code is an index into them.

    ids: unique, as the data set writes them. names: for display; they may repeat.
    parent: a label determined by this one (make, for model); parent_codes[i]: its code for class i.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    parent: str | None = None
    parent_codes: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, wanted: str) -> list[int]:
        """Return the codes of the classes with this id or name."""
        return [i for i in range(len(self)) if nfc(wanted) in (nfc(self.ids[i]), nfc(self.names[i]))]


@dataclass(frozen=True)
class Number:
    """A label that is a number to predict (maximum speed), in `unit`."""

    unit: str = ""


class LabelDescription(TypedDict, total=False):
    """A label as plain values, as in model.json: classes have ids, names, parent and parent_codes; numbers have unit,
    mean and std, of the training photos."""

    ids: list[str]
    names: list[str]
    parent: str | None
    parent_codes: list[int]
    unit: str
    mean: float
    std: float


@dataclass(frozen=True)
class Table:
    """One row per photo.

    rows: DataFrame with a RangeIndex and the columns
        path   str, unique, forward slashes, relative to root; absolute for a photo outside of root. As text, see
               paths.py: file_of returns the path that opens the file
        one column per label   int32 code (UNKNOWN if not known), or float32 (NaN) for a Number
        split  str, "train", "val", "test", or "" for a photo that the data set's own split leaves out
        left, top, right, bottom   optional, float32 pixels, NaN for a photo without box
        group  optional, str: photos that show the same car and belong in one split; "" if unknown
        LOCATION, SOURCE   only of packed photos, int64
    labels: what each label column holds.
    finest: the most specific label, by which photos are stratified, counted and selected.
    root: a folder; of a pack, possibly a URL, as text.
    shards: the files of a pack, else None. heads: the labels that a pack's models learn unless the configuration names
    others; empty: all.
    """

    name: str
    root: Path | str
    rows: pd.DataFrame
    labels: Mapping[str, Classes | Number]
    finest: str
    shards: Shards | None = None
    heads: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def class_labels(self) -> dict[str, Classes]:
        """Return the labels that are classes."""
        return {name: label for name, label in self.labels.items() if isinstance(label, Classes)}

    @property
    def finest_classes(self) -> Classes:
        """Return the classes of the finest label."""
        return self.class_labels[self.finest]

    def class_label(self, wanted: str | None, key: str) -> str:
        """Return the name of a label with classes; None: the finest. Raises InputError, which names `key`, for
        others."""
        label = wanted or self.finest
        if label not in self.class_labels:
            text = f"{label!r} is no label of {self.name} with classes{suggest(label, self.class_labels)}"
            raise InputError(f"{key}: {text}; those are {', '.join(self.class_labels)}")
        return label

    @property
    def has_boxes(self) -> bool:
        return BOX[0] in self.rows

    @property
    def packed(self) -> PackedPhotos | None:
        """Return the photos of a pack; None if each has a file of its own."""
        if self.shards is None:
            return None
        return PackedPhotos(self.shards, *(self.rows[name].to_numpy() for name in LOCATION))

    def photo(self, row: int) -> str | PackedPhoto:
        """Return the photo of a row, for images.open_image and for messages."""
        path = self.rows["path"].iloc[row]
        if self.shards is None:
            return file_of(self.root, path)
        return PackedPhoto(path, self.shards, *(int(self.rows[name].to_numpy()[row]) for name in LOCATION))

    def select(self, keep: np.ndarray | pd.Series) -> "Table":
        """Keep the rows where the boolean array (N,) is true; codes and classes stay."""
        return replace(self, rows=self.rows[np.asarray(keep)].reset_index(drop=True))

    def of_split(self, split: str) -> "Table":
        """Keep the rows of one split."""
        return self.select(self.rows["split"] == split)

    def with_split(self, split: np.ndarray | pd.Series) -> "Table":
        """Replace the column split; `split` is (N,)."""
        return replace(self, rows=self.rows.assign(split=np.asarray(split, dtype=object)))

    def without_empty_classes(self) -> "Table":
        """Drop classes without rows from every label, and make the codes dense again."""
        rows, labels = self.rows.copy(deep=False), dict(self.labels)
        kept = {name: np.unique(rows.loc[rows[name] != UNKNOWN, name]) for name in self.class_labels}
        for name, label in self.class_labels.items():
            recode = np.full(len(label) + 1, UNKNOWN, dtype=np.int32)  # the last entry serves UNKNOWN = -1
            recode[kept[name]] = np.arange(len(kept[name]))
            rows[name] = recode[rows[name]]
            ids, names = (tuple(values[i] for i in kept[name]) for values in (label.ids, label.names))
            parent_codes = ()
            if label.parent is not None:
                parents = np.asarray(label.parent_codes)[kept[name]]
                parent_codes = tuple(np.searchsorted(kept[label.parent], parents).tolist())
            labels[name] = Classes(ids, names, label.parent, parent_codes)
        return replace(self, rows=rows, labels=labels)

    def only_classes(self, wanted: Iterable[str | int]) -> "Table":
        """Keep photos of these classes of the finest label, given by id or name (data.classes). Raises InputError for
        an unknown one."""
        label = self.finest_classes
        codes = []
        for value in map(str, wanted):
            hits = label.find(value)
            if not hits:
                text = f"{value!r} is no {self.finest} of {self.name} (id or name)"
                known = suggest(value, {*label.names, *label.ids})
                raise InputError(f"data.classes: {text}{known}; it has {len(label)} classes")
            codes += hits
        return self.select(self.rows[self.finest].isin(codes)).without_empty_classes()

    def without_sparse_classes(self, min_images: int) -> "Table":
        """Drop classes of the finest label with fewer than `min_images` photos, and their photos; log how many. Raises
        InputError if none is left."""
        counts = self.rows.loc[self.rows[self.finest] != UNKNOWN, self.finest].value_counts()
        enough = counts.index[counts >= min_images]
        keep = self.rows[self.finest].isin(enough)
        if not keep.any():
            text = f"{self.name}; its largest {self.finest} has {counts.max() if len(counts) else 0} photos"
            raise InputError(f"data.min_images_per_class: {min_images} leaves no class of {text}. Lower the value")
        if not keep.all():
            log.info(
                "%s: %s photos dropped: of a %s with fewer than %d photos, or with none (%d of %d classes remain)",
                self.name, f"{(~keep).sum():,}", self.finest, min_images, len(enough), len(counts),
            )  # fmt: skip
        return self.select(keep).without_empty_classes()


def encode(
    ids: Sequence[str] | np.ndarray | pd.Series, names: Mapping[str, str] | None = None
) -> tuple[np.ndarray, Classes]:
    """Encode ids as int32 codes, UNKNOWN for "" and None, and their Classes in the order of `sorted_ids`.

    Ids that differ only in Unicode normalisation, as after a copy from macOS, are one class, shown in composed form.
    names: {id: name}; the id where absent or empty.
    """
    series = pd.Series(ids, dtype=object)
    known = series.notna() & (series != "")
    spellings = series[known].astype(str).unique()
    shown: dict[str, str] = {}
    for value in sorted(spellings, key=lambda value: value != nfc(value)):
        shown.setdefault(nfc(value), value)
    order = sorted_ids(shown.values())
    code_of = {value: i for i, value in enumerate(order)}
    codes = np.full(len(series), UNKNOWN, dtype=np.int32)
    codes[known.to_numpy()] = series[known].astype(str).map({value: code_of[shown[nfc(value)]] for value in spellings})
    names = names or {}
    return codes, Classes(tuple(order), tuple(names.get(value) or value for value in order))


def sorted_ids(ids: Iterable[str]) -> list[str]:
    """Sort ids by number if all are numbers ("2" before "10"), else alphabetically."""
    ids = list(ids)
    return sorted(ids, key=int if all(value.isdecimal() for value in ids) else nfc)


def with_parent(rows: pd.DataFrame, child: str, classes: Classes, parent: str) -> Classes:
    """Return `classes` of the label `child` with the parent that each class has in the rows. Raises InputError for a
    class with no parent or two."""
    pairs = rows.loc[(rows[child] != UNKNOWN) & (rows[parent] != UNKNOWN), [child, parent]].drop_duplicates()
    twice = pairs[child].duplicated()
    if twice.any():
        which = classes.names[pairs.loc[twice, child].iloc[0]]
        raise InputError(f"{child} {which!r} has photos of more than one {parent}; each {child} has one {parent}")
    of_child = pairs.set_index(child)[parent]
    missing = [classes.names[i] for i in range(len(classes)) if i not in of_child.index]
    if missing:
        raise InputError(f"{child} {missing[0]!r} has no {parent}; each {child} needs one")
    return replace(classes, parent=parent, parent_codes=tuple(int(of_child[i]) for i in range(len(classes))))


def validate(table: Table) -> Table:
    """Return the table unchanged, or raise InputError for what a reader got wrong. Every reader ends with this."""
    rows = table.rows
    if rows.empty:
        raise InputError(f"{table.name}: no photos under {table.root}")
    repeated = rows["path"][rows["path"].duplicated()]
    if len(repeated):
        text = f"{len(repeated):,} photos are listed more than once (first: {repeated.iloc[0]}); list each once"
        raise InputError(f"{table.name}: {text}")
    odd = set(rows["split"].unique()) - {*SPLITS, ""}
    if odd:
        raise InputError(f"{table.name}: split {sorted(odd)[0]!r} is not one of {', '.join(SPLITS)} or empty")
    if not isinstance(table.labels.get(table.finest), Classes):
        raise InputError(f"{table.name}: the finest label {table.finest!r} is no label with classes")
    for name, label in table.class_labels.items():
        codes = rows[name].to_numpy()
        if codes.min() < UNKNOWN or codes.max() >= len(label):
            raise InputError(f"{table.name}: codes of {name} outside -1..{len(label) - 1}")
        if len(set(label.ids)) != len(label.ids):
            raise InputError(f"{table.name}: class ids of {name} repeat")
        if label.parent is not None:
            known = (codes != UNKNOWN) & (rows[label.parent].to_numpy() != UNKNOWN)
            if (np.asarray(label.parent_codes)[codes[known]] != rows[label.parent].to_numpy()[known]).any():
                raise InputError(f"{table.name}: a photo's {label.parent} is not that of its {name}")
    return table


def full_paths(table: Table) -> list[str]:
    """List the paths that open the photos. Strings, as building a million Paths would take longer than the disk."""
    return [file_of(table.root, path) for path in table.rows["path"].tolist()]


def without_missing_files(table: Table, allow_missing: bool, tolerated: int = 0) -> Table:
    """Keep the rows whose photo exists; log how many are missing.

    tolerated: the number of photos that even the complete data set lacks. Raises InputError if more are missing, unless
    allow_missing, or if none exists.
    """
    exists = np.fromiter(map(os.path.exists, full_paths(table)), bool, len(table))
    if exists.all():
        return table
    num_missing, first = int((~exists).sum()), table.root / table.rows["path"][~exists].iloc[0]
    if not exists.any():
        raise InputError(f"{table.name}: none of the {len(table):,} listed photos is there (first: {first})")
    text = f"{table.name}: {num_missing:,} of {len(table):,} listed photos are not there (first: {first})"
    warn_of_incomplete(text, allow_missing or num_missing <= tolerated)
    partial = table.select(exists).without_empty_classes()
    log.warning(
        "continuing with %s photos (%.1f %%) of %d of %d classes", f"{len(partial):,}",
        100 * len(partial) / len(table), len(partial.finest_classes), len(table.finest_classes),
    )  # fmt: skip
    return partial


def warn_of_incomplete(text: str, accepted: bool, fix: str = "Complete the copy, or accept it as it is") -> None:
    """Log what an incomplete copy lacks, or raise InputError unless that is accepted (data.allow_missing)."""
    if not accepted:
        raise InputError(f"{text}. {fix} with data.allow_missing=true")
    log.warning(text)


def check_counts(table: Table, known: Mapping[str, int] | None, allow_missing: bool, tolerated: int = 0) -> Table:
    """Return the table unchanged after comparing it with the known counts of its data set.

    known: "photos", a split's name ("train") or a label's name -> number of photos or classes; None: any. tolerated: a
    difference of so many photos is only logged, as copies differ by a few. Raises InputError for a larger one, unless
    allow_missing.
    """
    known = known or {}
    num_classes = {name: len(label) for name, label in table.class_labels.items()}
    found = {"photos": len(table), **table.rows["split"].value_counts(), **num_classes}
    nouns = {"photos": "photos"} | {split: f"{split} photos" for split in SPLITS}
    wrong = {what: found.get(what, 0) for what, count in known.items() if found.get(what, 0) != count}
    if wrong:
        counts = [f"{n:,} {nouns.get(what, f'{what} classes')} instead of {known[what]:,}" for what, n in wrong.items()]
        few = all(abs(n - known[what]) <= tolerated and what not in table.labels for what, n in wrong.items())
        text = f"{table.name}: {', '.join(counts)} under {table.root}"
        text += "; copies differ by a few photos, and this one is used as it is" if few else ""
        warn_of_incomplete(text, allow_missing or few)
    return table
