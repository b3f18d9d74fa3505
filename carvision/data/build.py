"""Build a Table with its split from the configuration's `data` group. Imports no torch."""

import csv
import logging
from dataclasses import replace
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from carvision.data.packs.index import read_packed
from carvision.data.paths import nfc
from carvision.data.readers.compcars import read_compcars
from carvision.data.readers.compcars_other import read_compcars_parts, read_compcars_surveillance
from carvision.data.readers.disk import read_text
from carvision.data.readers.folder import read_folder
from carvision.data.readers.manifest import read_manifest
from carvision.data.readers.oxford102 import download_oxford102, read_oxford102
from carvision.data.readers.stanford_cars import read_stanford_cars
from carvision.data.splits import file_split, kfold_split, official_split, stratified_split, unseen_classes_split
from carvision.data.table import UNKNOWN, Classes, Table
from carvision.demo.write import demo_folder, write_demo
from carvision.errors import InputError, suggest

log = logging.getLogger(__name__)

OWN_SPLIT = ("auto", "official")  # kinds of split that use the data set's own, if it has one
REST = "rest"  # id and name of all other classes


class SplitConfig(TypedDict):
    """The checked group data.split. Configurations of earlier versions lack later keys."""

    kind: str
    file: str | None
    fractions: list[float]
    val_fraction: float
    val_as_test: bool
    test_as_train: NotRequired[bool]
    train_classes: int | float
    num_folds: int
    fold: int | str  # a number, or "all"
    keep_groups: bool
    seed: int


class DataConfig(TypedDict):
    """The checked group data, as far as it is used here: keys of all data sets, then those of some."""

    name: str
    root: str | None
    allow_missing: bool
    min_images_per_class: int
    classes: list[str | int] | None
    sampler: str
    split: SplitConfig
    names: NotRequired[str | None]
    one_against_rest: NotRequired[str | int | None]
    images_per_model: NotRequired[int]  # demo
    part: NotRequired[str | int]  # compcars_parts
    download: NotRequired[bool]  # oxford102
    file: NotRequired[str]  # manifest, as the next three
    labels: NotRequired[list[str]]
    numbers: NotRequired[list[str]]
    parents: NotRequired[dict[str, str] | None]
    shuffle_shards: NotRequired[int | None]  # packed, as the next two
    cache: NotRequired[str | None]
    cache_gb: NotRequired[float | None]


def build_table(data: DataConfig, annotations: bool) -> Table:
    """Build the table that `data` selects, with the data set's own split.

    annotations: also read CompCars' boxes and viewpoints, which take a file for each photo. Raises InputError for
    values that don't fit the data.
    """
    table = read_table(data, annotations)
    if data.get("names"):
        file, root = Path(data["names"]), data["root"]
        table = with_names(table, file if file.is_file() or not root else Path(root) / file)
    if data["classes"]:
        table = table.only_classes(data["classes"])
    if data["min_images_per_class"] > 1:
        table = table.without_sparse_classes(data["min_images_per_class"])
    if data.get("one_against_rest") is not None:
        table = one_against_rest(table, str(data["one_against_rest"]))
    return table


def read_table(data: DataConfig, annotations: bool) -> Table:
    """Read the data set under data.root with its own classes, see `build_table`."""
    root = Path(data["root"]) if data["root"] else None
    allow_missing = data["allow_missing"]
    match data["name"]:
        case "demo":
            num = data["images_per_model"]
            return replace(read_compcars(write_demo(root or demo_folder(num), num), known=None), name="demo")
        case "compcars":
            split = data["split"]
            official = "parts_1_and_2" if split.get("test_as_train") else "listed"
            photos = official if split["kind"] in OWN_SPLIT and not split["file"] else "all"
            return read_compcars(root, allow_missing=allow_missing, photos=photos, annotations=annotations)
        case "compcars_surveillance":
            return read_compcars_surveillance(root, allow_missing=allow_missing)
        case "compcars_parts":
            return read_compcars_parts(root, data["part"], allow_missing=allow_missing)
        case "stanford_cars":
            return read_stanford_cars(root, allow_missing=allow_missing)
        case "oxford102":
            return read_oxford102(root, allow_missing=allow_missing)
        case "folder":
            return read_folder(root, allow_missing=allow_missing)
        case "manifest":
            file, labels, numbers, parents = data["file"], data["labels"], data["numbers"], data["parents"]
            return read_manifest(root, file, labels, parents=parents, numbers=numbers, allow_missing=allow_missing)
        case "packed":
            window, num_gb, sampler = data["shuffle_shards"], data["cache_gb"], data["sampler"]
            if window is not None and sampler != "shuffle":
                text = f"{sampler} needs random access to all shards; use shuffle, or data.shuffle_shards=null"
                raise InputError(f"data.sampler: {text}")
            cache = Path(data["cache"]) if data["cache"] else None
            return read_packed(data["root"], allow_missing=allow_missing, window=window, cache=cache, cache_gb=num_gb)
    raise InputError(f"data.name: {data['name']!r} has no reader")


def download(data: DataConfig) -> None:
    """Download the data set into data.root if data.download is true."""
    if data.get("download"):
        download_oxford102(data["root"])


def build_split(table: Table, split: SplitConfig, fold: int | None = None) -> Table:
    """Return the table split according to `split` (data.split). fold: one of `folds_of`."""
    if split["file"]:
        return file_split(table, Path(split["file"]))
    val_fraction, seed, keep_groups = split["val_fraction"], split["seed"], split["keep_groups"]
    match _kind_of(table, split):
        case "stratified":
            train, val, test = split["fractions"]
            return stratified_split(table, (train, val, test), seed, keep_groups)
        case "kfold":
            assert fold is not None  # one of folds_of()
            return kfold_split(table, split["num_folds"], fold, val_fraction, seed, keep_groups)
        case "unseen_classes":
            return unseen_classes_split(table, split["train_classes"], val_fraction, seed, keep_groups)
        case _:
            test_as_train = split.get("test_as_train", False)  # runs of earlier versions lack it
            return official_split(table, val_fraction, seed, keep_groups, split["val_as_test"], test_as_train)


def _kind_of(table: Table, split: SplitConfig) -> str:
    """Return the kind of split, with `auto` resolved, which is logged."""
    if split["kind"] != "auto":
        return split["kind"]
    if has_own_split(table):
        log.info("%s: split as the data set has it (data.split.kind=auto)", table.name)
        return "official"
    shares = " %, ".join(f"{100 * fraction:g}" for fraction in split["fractions"])
    text = "%s: no split of its own, so each class is split into %s %% for train, val, test (data.split.kind=auto)"
    log.info(text, table.name, shares)
    return "stratified"


def has_own_split(table: Table) -> bool:
    """Return whether the data set comes with a split. table: not split yet."""
    return bool((table.rows["split"] != "").any())


def folds_of(split: SplitConfig) -> list[int | None]:
    """List the folds to train: [None] without k-fold."""
    if split["kind"] != "kfold" or split["file"]:
        return [None]
    fold = split["fold"]
    return [*range(split["num_folds"])] if isinstance(fold, str) else [fold]


def with_names(table: Table, file: Path) -> Table:
    """Return the table with class names from a CSV file for its finest label; ids stay.

    The file has a header with id and name, or two columns without header; commas, semicolons or tabs. Ids that the
    table lacks are only logged, as a list may cover more classes. Raises InputError for a class of the table without a
    name.
    """
    label = table.finest_classes
    names = _read_names(file)
    missing = [i for i in label.ids if nfc(i) not in names]
    if missing:
        raise InputError(
            f"data.names: {file} has no name for {len(missing)} of the {len(label)} classes of {table.finest} (first: "
            f"{missing[0]}{suggest(missing[0], names)}); add a line <id>,<name> for each, the id as the data have it"
        )
    unknown = names.keys() - {nfc(i) for i in label.ids}
    if unknown:
        log.info(
            "data.names: %d of the %d ids in %s are not %s ids of %s (first: %s)",
            len(unknown), len(names), file, table.finest, table.name, min(unknown),
        )  # fmt: skip
    named = replace(label, names=tuple(names[nfc(i)] for i in label.ids))
    return replace(table, labels={**table.labels, table.finest: named})


def _read_names(file: Path) -> dict[str, str]:
    """Read {id in NFC: name}. Raises InputError for an incomplete line and for an id with two names."""
    text = read_text(file, "data.names is a CSV file of ids and names; null shows the ids").lstrip()
    line = text.partition("\n")[0]
    separator = min((each for each in ",;\t" if each in line), key=line.index, default=",")
    rows = [(number, row) for number, row in enumerate(csv.reader(text.splitlines(), delimiter=separator), 1) if row]
    columns, names = (0, 1), {}
    header = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    has_header = {"id", "name"} <= set(header)
    if has_header:
        columns, rows = (header.index("id"), header.index("name")), rows[1:]
    for number, row in rows:
        key, name = (row[column].strip() if column < len(row) else "" for column in columns)
        if not key or not name or (len(row) > 2 and not has_header):
            raise InputError(f"data.names: line {number} of {file} is {separator.join(row)!r}, not <id>,<name>")
        if names.setdefault(nfc(key), name) != name:
            raise InputError(f"data.names: line {number} of {file} gives {key} a second name; keep one")
    if not names:
        raise InputError(f"data.names: {file} is empty; give lines of <id>,<name>")
    return names


def one_against_rest(table: Table, wanted: str) -> Table:
    """Reduce a label to two classes: `wanted`, an id or a name, and REST.

    The label is the finest one that has the class, and becomes the table's finest; other labels stay, and children of
    the label now have one of the two as parent. Raises InputError if there is no such class, or no other.
    """
    name, code = _find_class(table, wanted)
    label, codes = table.class_labels[name], table.rows[name].to_numpy()
    if not (codes == code).any() or not ((codes != code) & (codes != UNKNOWN)).any():
        raise InputError(f"data.one_against_rest: {table.name} has photos of {wanted!r} or of others, not of both")
    rest = REST if label.ids[code] != REST else f"not {REST}"
    rows = table.rows.copy(deep=False)
    rows[name] = np.where(codes == UNKNOWN, UNKNOWN, codes != code).astype(np.int32)
    labels = {**table.labels, name: Classes((label.ids[code], rest), (label.names[code], rest))}
    for child, other in table.class_labels.items():
        if other.parent == name:
            labels[child] = replace(other, parent_codes=tuple(int(parent != code) for parent in other.parent_codes))
    return replace(table, rows=rows, labels=labels, finest=name)


def _find_class(table: Table, wanted: str) -> tuple[str, int]:
    """Find the label and the code of the class with this id or, failing that, name. Raises InputError if there is none
    or several."""
    known: set[str] = set()
    for name in sorted(table.class_labels, key=lambda name: name != table.finest):
        label = table.class_labels[name]
        found = label.find(wanted)
        found = [i for i in found if nfc(label.ids[i]) == nfc(wanted)] or found
        if len(found) > 1:
            text = f"{len(found)} classes of {name} are called {wanted!r}"
            raise InputError(f"data.one_against_rest: {text}; give an id: {', '.join(label.ids[i] for i in found)}")
        if found:
            return name, found[0]
        known |= {*label.ids, *label.names}
    text = f"{wanted!r} is no class of {table.name} (id or name)"
    raise InputError(f"data.one_against_rest: {text}{suggest(wanted, known)}")
