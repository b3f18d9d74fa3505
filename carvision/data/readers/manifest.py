"""Read a manifest: one CSV, TSV or Parquet file that lists the photos, for data in no other layout.

Columns, in any order:
    path                      of the photo, relative to data.root (or absolute)
    a column for each label   any text or number; empty where the class is unknown
    split                     optional: train, val (or valid, validation), test, or empty
    left, top, right, bottom  optional: box in 0-based pixels, right and bottom excluded; empty where there is none
    group                     optional: equal for photos of the same car, that belong on one side of a split
Further columns are not read. For what a cell may hold see table_file.py, for how paths may be spelled data/paths.py.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from carvision.data.paths import PhotoPaths, file_of, is_utf8, nfc
from carvision.data.readers.disk import existing_root
from carvision.data.readers.table_file import TableFile
from carvision.data.table import BOX, Number, Table, encode, validate, with_parent, without_missing_files
from carvision.errors import InputError

KEY = "data.file"
# Columns of a manifest and of predictions ("error"), and the metrics of all heads together ("joint")
RESERVED = {"path", "split", "group", *BOX, "error", "joint", "embedding"}
# What carvision.predict appends to a label's name: make_true, make_id, make_2, make_2_prob
ADDED = re.compile(r"_true|_probs|_\d+|(_\d+)?_(id|prob)")
HINT = "Give the folder that the paths of the manifest are relative to"


def read_manifest(
    root: Path | str | None,
    file: Path | str,
    labels: Sequence[str],
    *,
    parents: Mapping[str, str] | None = None,
    numbers: Iterable[str] = (),
    allow_missing: bool = False,
) -> Table:
    """Read Classes from the columns `labels` and Numbers from the columns `numbers`.

    Ids and names are the values without blanks around them. file: relative to root, or absolute. parents: {"model":
    "make"} says that the make follows from the model; a model with photos of two makes is an error. The finest label is
    the one whose parent is given and that is no parent itself, else the first of `labels`.
    """
    root = existing_root(root, HINT)
    parents, numbers = dict(parents or {}), list(numbers)
    _check_names(labels, parents, numbers)
    file = root / file
    columns = _read_columns(file, labels, numbers, PhotoPaths(root))
    rows = pd.DataFrame({"path": columns["path"], "split": columns.get("split", "")}, dtype=str)
    found: dict = {}
    for name in labels:
        rows[name], found[name] = encode(columns[name])
    for child, parent in parents.items():
        found[child] = with_parent(rows, child, found[child], parent)
    for name in numbers:
        rows[name], found[name] = np.array(columns[name], np.float32), Number()
    if "group" in columns:
        rows["group"] = pd.Series(columns["group"], dtype=str)
    if "box" in columns:
        rows[BOX] = np.array(columns["box"], np.float32).reshape(-1, 4)
    children = [child for child in parents if child not in parents.values()]
    table = Table("manifest", root, rows, found, children[0] if children else labels[0])
    return validate(without_missing_files(table, allow_missing))


def _check_names(labels: Sequence[str], parents: Mapping[str, str], numbers: Sequence[str]) -> None:
    if not labels:
        raise InputError("data.labels: [] names no column; give at least one, such as [make,model]")
    for name in [*labels, *numbers]:
        if name in RESERVED:
            raise InputError(f"data.labels: {name!r} is a column with a meaning of its own; rename it in the manifest")
        for label in labels:
            if name.startswith(label) and ADDED.fullmatch(name.removeprefix(label)):
                raise InputError(f"data.labels: {name!r} is a column of the predictions of {label!r}; rename it")
        if [*labels, *numbers].count(name) > 1:
            raise InputError(f"data.labels: {name!r} is given twice; a column is one label or one number")
    for name in [*parents, *parents.values()]:
        if name not in labels:
            raise InputError(f"data.parents: {name!r} is not one of data.labels ({', '.join(labels)})")


def _read_columns(file: Path, labels: Sequence[str], numbers: list[str], paths: PhotoPaths) -> dict[str, list]:
    """Return {column: a value per row}: path, labels, numbers; split, group and box if the file has them."""
    source = TableFile(file, KEY, ["path", *labels], "a relative name is looked for in data.root")
    optional = [name for name in ("split", "group") if name in source.columns]
    source.require(["path", *labels, *numbers, *optional])
    box = BOX if source.has_boxes else []
    columns: dict[str, list] = {name: [] for name in ["path", *labels, *numbers, *optional, *(["box"] if box else [])]}
    lines, cells = [], []
    known: dict[str, str] = {}  # one string object for all equal cells
    for line, row in source.rows(["path", *labels, *numbers, *optional, *box]):
        path = paths.find(row["path"])
        if not is_utf8(row["path"]) and not Path(file_of(paths.root or "", path)).exists():
            raise source.not_utf8(line, row["path"])
        lines.append(line)
        cells.append(row["path"])
        columns["path"].append(path)
        for name in labels:
            columns[name].append(known.setdefault(row[name], row[name]))
        for name in numbers:
            columns[name].append(source.number(row, name, line))
        if "split" in columns:
            columns["split"].append(source.split(row, line))
        if "group" in columns:
            columns["group"].append(nfc(row["group"]))
        if box:
            columns["box"].append(source.box(row, line) or (np.nan,) * 4)
    _require_each_once(source, columns, labels, paths, lines, cells)
    return columns


def _require_each_once(
    source: TableFile, columns: dict[str, list], labels: Sequence[str], paths: PhotoPaths, lines: list, cells: list
) -> None:
    """Raise InputError for a photo listed twice, in whatever spelling; photos with two classes are reported first."""
    whole = pd.Series(columns["path"], dtype=object).map(paths.whole)
    twice = whole.duplicated()
    if not twice.any():
        return
    first = dict(zip(whole[::-1], range(len(whole) - 1, -1, -1), strict=True))
    pairs = [(first[whole[i]], i) for i in np.flatnonzero(twice)]
    for one, other in pairs:
        for name in labels:
            ours, theirs = columns[name][one], columns[name][other]
            if ours and theirs and nfc(ours) != nfc(theirs):
                raise source.two_classes(name, (lines[one], cells[one], ours), (lines[other], cells[other], theirs))
    one, other = pairs[0]
    raise InputError(
        f"{KEY}: {source.file}: {len(pairs):,} photos are listed more than once (first: {cells[one]} in line "
        f"{lines[one]}, as {cells[other]} in line {lines[other]}); list each once"
    )
