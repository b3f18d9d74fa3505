"""Table: one row a photo. Every reader returns one, and everything after the readers starts from one."""

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
from carvision.errors import InputError, nearest

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
BOX = ["left", "top", "right", "bottom"]  # pixels, 0-based, right and bottom excluded (as PIL's crop)
UNKNOWN = -1  # code of a photo whose class of a label is not known; unknown numbers are NaN
# Of packed photos: number of the shard, place and size of the bytes in it, their checksum; and 64 bits of the SHA-256
# of the file that was packed, which may have been larger
PLACE, SOURCE = ["_shard", "_offset", "_length", "_crc32"], "_source"


@dataclass(frozen=True)
class Classes:
    """The classes of a label. A row's code is the position of its class here.

    ids: unique, as the data set writes them. names: what people read; they may repeat.
    parent: another label that follows from this one (make, for model); parent_codes[i]: its code for class i.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    parent: str | None = None
    parent_codes: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Number:
    """A label that is a number to be estimated (maximum speed), in `unit`."""

    unit: str = ""


class LabelDescription(TypedDict, total=False):
    """A label as plain values, as in model.json: ids, names, parent and parent_codes of classes; unit, mean and std, of
    the training photos, of a number."""

    ids: list[str]
    names: list[str]
    parent: str | None
    parent_codes: list[int]
    unit: str
    mean: float
    std: float


@dataclass(frozen=True)
class Table:
    """One row a photo.

    rows: pandas DataFrame with a RangeIndex and the columns
        path   str, relative to root, with forward slashes, unique; absolute of a photo outside of root. As text, see
               photo_paths: file_of gives what opens the file
        one column a label   int32 code (UNKNOWN where not known), or float32 (NaN) for a Number
        split  str, "train", "val", "test", or "" for a photo that the data set's own split leaves out
        left, top, right, bottom   optional, float32 pixels, NaN where there is no box
        group  optional, str: photos that show the same car and belong on one side of a split; "" if unknown
        PLACE, SOURCE   where the photos are packed, int64
    labels: what each label column holds.
    finest: the label by which photos are stratified, counted and chosen: the one that tells most.
    root: a folder; of a pack it may be a URL, as text.
    shards: of a pack, where the photos' bytes are. heads: of a pack, the labels that are learned unless the
    configuration names others; none: all.
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
        return {name: label for name, label in self.labels.items() if isinstance(label, Classes)}

    @property
    def finest_classes(self) -> Classes:
        """Return the classes of the finest label."""
        return self.class_labels[self.finest]

    def class_label(self, wanted: str | None, key: str) -> str:
        """The label with classes that is wanted; None: the finest. Raises InputError, which names `key`."""
        label = wanted or self.finest
        if label not in self.class_labels:
            raise InputError(
                f"{key}: {label!r} is no label of {self.name} with classes{nearest(label, self.class_labels)}; those "
                f"are {', '.join(self.class_labels)}"
            )
        return label

    @property
    def has_boxes(self) -> bool:
        return BOX[0] in self.rows

    @property
    def packed(self) -> PackedPhotos | None:
        """The photos of a pack; None where each has a file of its own."""
        if self.shards is None:
            return None
        return PackedPhotos(self.shards, *(self.rows[name].to_numpy() for name in PLACE))

    def photo(self, row: int) -> str | PackedPhoto:
        """What opens the photo of a row (images.open_image), and names it in messages."""
        path = self.rows["path"].iloc[row]
        if self.shards is None:
            return file_of(self.root, path)
        return PackedPhoto(path, self.shards, *(int(self.rows[name].to_numpy()[row]) for name in PLACE))

    def select(self, keep: np.ndarray | pd.Series) -> "Table":
        """The rows where the boolean array is true; codes and classes stay as they are."""
        return replace(self, rows=self.rows[np.asarray(keep)].reset_index(drop=True))

    def of_split(self, split: str) -> "Table":
        return self.select(self.rows["split"] == split)

    def with_split(self, split: np.ndarray | pd.Series) -> "Table":
        rows = self.rows.copy(deep=False)
        rows["split"] = np.asarray(split, dtype=object)
        return replace(self, rows=rows)

    def without_empty_classes(self) -> "Table":
        """Classes that no row has are dropped from every label, and the codes made dense again."""
        rows = self.rows.copy(deep=False)
        kept = {}
        for name, label in self.class_labels.items():
            codes = rows[name].to_numpy()
            kept[name] = np.unique(codes[codes != UNKNOWN])
            recode = np.full(len(label) + 1, UNKNOWN, dtype=np.int32)  # the last place serves UNKNOWN = -1
            recode[kept[name]] = np.arange(len(kept[name]))
            rows[name] = recode[codes]
        labels = dict(self.labels)
        for name, label in self.class_labels.items():
            parent_codes = ()
            if label.parent is not None:
                old = np.asarray(label.parent_codes)[kept[name]]
                parent_codes = tuple(np.searchsorted(kept[label.parent], old).tolist())
            labels[name] = replace(
                label,
                ids=tuple(label.ids[i] for i in kept[name]),
                names=tuple(label.names[i] for i in kept[name]),
                parent_codes=parent_codes,
            )
        return replace(self, rows=rows, labels=labels)

    def only_classes(self, wanted: Iterable[str | int]) -> "Table":
        """The photos of the classes of the finest label given by id or by name (data.classes)."""
        label = self.finest_classes
        codes = []
        for value in map(str, wanted):
            hits = [i for i in range(len(label)) if nfc(value) in (nfc(label.ids[i]), nfc(label.names[i]))]
            if not hits:
                known = nearest(value, {*label.names, *label.ids})
                raise InputError(
                    f"data.classes: {value!r} is no {self.finest} of {self.name} (id or name){known}; "
                    f"it has {len(label)} classes"
                )
            codes += hits
        return self.select(self.rows[self.finest].isin(codes)).without_empty_classes()

    def without_sparse_classes(self, min_images: int) -> "Table":
        """Photos of classes of the finest label with fewer than `min_images` photos are dropped, and logged."""
        counts = self.rows.loc[self.rows[self.finest] != UNKNOWN, self.finest].value_counts()
        enough = counts.index[counts >= min_images]
        keep = self.rows[self.finest].isin(enough)
        if not keep.any():
            raise InputError(
                f"data.min_images_per_class: {min_images} leaves no class of {self.name}; its largest "
                f"{self.finest} has {counts.max() if len(counts) else 0} photos. Lower the value"
            )
        if not keep.all():
            log.info(
                "%s: %s photos dropped: of a %s with fewer than %d photos, or with none (%d of %d classes remain)",
                self.name, f"{(~keep).sum():,}", self.finest, min_images, len(enough), len(counts),
            )  # fmt: skip
        return self.select(keep).without_empty_classes()


def encode(
    ids: Sequence[str] | np.ndarray | pd.Series, names: Mapping[str, str] | None = None
) -> tuple[np.ndarray, Classes]:
    """Codes (int32, one a value of `ids`; UNKNOWN for "" and None) and the Classes, in the order of `sorted_ids`.

    Ids that differ in their Unicode form alone, as after a copy from macOS, are one class, shown in its composed form.
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
    """By number where every id is one ("2" before "10"), else alphabetically."""
    ids = list(ids)
    return sorted(ids, key=int if all(value.isdecimal() for value in ids) else nfc)


def with_parent(rows: pd.DataFrame, child: str, classes: Classes, parent: str) -> Classes:
    """`classes` of `child` with the parent that each class has in the rows; a class with two parents is an error."""
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
    """The table itself, or an InputError that says what a reader got wrong. Every reader ends with this."""
    rows = table.rows
    if rows.empty:
        raise InputError(f"{table.name}: no photos under {table.root}")
    repeated = rows["path"].duplicated()
    if repeated.any():
        raise InputError(
            f"{table.name}: {repeated.sum():,} photos are listed more than once "
            f"(first: {rows['path'][repeated].iloc[0]}); list each once"
        )
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
    """Of all photos. Strings: of a million rows, building Paths would take longer than the disk."""
    return [file_of(table.root, path) for path in table.rows["path"].tolist()]


def without_missing_files(table: Table, allow_missing: bool, tolerated: int = 0) -> Table:
    """Rows whose photo exists. Missing ones are an error, or a warning that says how partial the copy is.

    tolerated: so many absent photos the data set is known to have in its complete form.
    """
    exists = np.fromiter(map(os.path.exists, full_paths(table)), bool, len(table))
    num_missing = int((~exists).sum())
    if num_missing == 0:
        return table
    first = table.rows["path"][~exists].iloc[0]
    count = f"{num_missing:,} of {len(table):,} listed photos are not there (first: {table.root / first})"
    if not exists.any():
        raise InputError(
            f"{table.name}: none of the {len(table):,} listed photos is there (first: {table.root / first})"
        )
    if not allow_missing and num_missing > tolerated:
        raise InputError(
            f"{table.name}: {count}. Complete the copy, or accept a partial one with data.allow_missing=true"
        )
    partial = table.select(exists).without_empty_classes()
    log.warning(
        "%s: %s. Going on with %s photos (%.1f %%) of %d of %d classes.",
        table.name, count, f"{len(partial):,}", 100 * len(partial) / len(table),
        len(partial.finest_classes), len(table.finest_classes),
    )  # fmt: skip
    return partial


def check_counts(table: Table, known: Mapping[str, int], allow_missing: bool, tolerated: int = 0) -> Table:
    """Compare the table with the counts its data set is known to have.

    known: "photos", a split's name ("train"), or a label's name -> count of photos or classes. tolerated: so many
    photos more or fewer are logged and accepted, as copies differ by a few.
    """
    found = {
        "photos": len(table),
        **table.rows["split"].value_counts(),
        **{k: len(v) for k, v in table.class_labels.items()},
    }
    wrong = [
        f"{found.get(what, 0):,} {_noun(what)} instead of {count:,}"
        for what, count in known.items()
        if found.get(what, 0) != count
    ]
    if not wrong:
        return table
    text = f"{table.name}: {', '.join(wrong)} under {table.root}"
    if all(abs(found.get(what, 0) - n) <= (0 if what in table.labels else tolerated) for what, n in known.items()):
        log.warning("%s; copies differ by a few photos, and this one is taken as it is", text)
        return table
    if not allow_missing:
        raise InputError(f"{text}. Complete the copy, or accept it as it is with data.allow_missing=true")
    log.warning("%s; going on, as data.allow_missing=true says", text)
    return table


def _noun(what: str) -> str:
    if what == "photos":
        return "photos"
    return f"{what} photos" if what in SPLITS else f"{what} classes"
