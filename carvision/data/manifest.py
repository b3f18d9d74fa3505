"""A manifest: one CSV, TSV or Parquet file that lists the photos, for data in no other layout.

Columns, in any order:
    path                      of the photo, relative to data.root (or absolute)
    one column a label        any text or number; empty where the class is not known
    split                     optional: train, val (or valid, validation), test, or empty
    left, top, right, bottom  optional: box in 0-based pixels, right and bottom excluded; empty where there is none
    group                     optional: equal for photos of the same car, that belong on one side of a split
Further columns are not read.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet

from carvision.data.disk import existing_root
from carvision.data.folder import SPLIT_FOLDERS
from carvision.data.table import BOX, Number, Table, encode, validate, with_parent, without_missing_files
from carvision.errors import InputError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
# Columns of a manifest and of predictions ("error"), and the figures of all heads together ("joint")
RESERVED = {"path", "split", "group", *BOX, "error", "joint", "embedding"}
# What carvision.predict adds to a label's name: make_true, make_id, make_2, make_2_prob
ADDED = re.compile(r"_true|_probs|_\d+|(_\d+)?_(id|prob)")
WHERE = "Give the folder that the paths of the manifest are relative to"


def read_manifest(
    root: Path | str | None,
    file: Path | str,
    labels: Sequence[str],
    *,
    parents: Mapping[str, str] | None = None,
    numbers: Iterable[str] = (),
    allow_missing: bool = False,
) -> Table:
    """Classes from the columns `labels`, Numbers from the columns `numbers`; ids and names are the values, without
    blanks around them.

    file: relative to root, or absolute. parents: {"model": "make"} says that the make follows from the model;
    a model with photos of two makes is an error. The finest label is the one whose parent is given and that is
    nobody's parent, else the first of `labels`.
    """
    root = existing_root(root, WHERE)
    parents, numbers = dict(parents or {}), list(numbers)
    _check_names(labels, parents, numbers)
    file = root / file
    columns = _read_columns(file, ["path", *labels, *numbers], ["split", "group"])
    rows = pd.DataFrame({"path": _as_text(columns["path"]).str.replace("\\", "/", regex=False)})
    if (rows["path"] == "").any():
        line = int((rows["path"] == "").to_numpy().argmax()) + 1
        raise InputError(f"{file}: photo {line} has no path; fill the column path")
    rows["split"] = _splits(file, columns["split"]) if "split" in columns else ""
    found: dict = {}
    for name in labels:
        rows[name], found[name] = encode(_as_text(columns[name]))
    for child, parent in parents.items():
        found[child] = with_parent(rows, child, found[child], parent)
    for name in numbers:
        rows[name], found[name] = _as_numbers(file, columns[name]), Number()
    if "group" in columns:
        rows["group"] = _as_text(columns["group"])
    for name in BOX if BOX[0] in columns else []:
        rows[name] = _as_numbers(file, columns[name])
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


def _read_columns(file: Path, required: list[str], optional: list[str]) -> pd.DataFrame:
    """The columns `required`, and those of `optional` that are there; those of a text file as str."""
    separator = SEPARATORS.get(file.suffix.lower())
    if separator is None and file.suffix.lower() != ".parquet":
        raise InputError(f"data.file: {file.name!r} does not end in one of {', '.join(SEPARATORS)}, .parquet")
    if not file.is_file():
        raise InputError(f"data.file: {file} does not exist; a relative name is looked for in data.root")
    text = {"sep": separator, "encoding": "utf-8-sig", "index_col": False}
    try:
        if separator:
            wanted = _wanted(file, list(pd.read_csv(file, nrows=0, **text).columns), required, optional)
            # "NA" and "None" may be classes: only an empty cell is empty.
            return pd.read_csv(file, usecols=wanted, dtype=str, keep_default_na=False, **text)
        wanted = _wanted(file, pyarrow.parquet.read_schema(file).names, required, optional)
        return pd.read_parquet(file, columns=wanted)
    except InputError:
        raise
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise InputError(f"data.file: {file} cannot be read: {' '.join(str(error).split())}") from error


def _wanted(file: Path, there: list[str], required: list[str], optional: list[str]) -> list[str]:
    wanted = required + [name for name in optional if name in there]
    if any(name in there for name in BOX):
        wanted += [name for name in BOX if name not in wanted]  # a box has all four
    for name in wanted:
        if name not in there:
            raise InputError(f"data.file: {file} has no column {name!r}; its columns: {', '.join(map(str, there))}")
    return wanted


def _as_text(column: pd.Series) -> pd.Series:
    """Stripped str, "" where empty. Whole numbers that empty cells made floats (3.0) become "3" again."""
    if pd.api.types.is_float_dtype(column):
        column = column.convert_dtypes()
    return column.astype("string").fillna("").astype(str).str.strip()


def _as_numbers(file: Path, column: pd.Series) -> np.ndarray:
    """float32, NaN where empty."""
    values = pd.to_numeric(column, errors="coerce")
    wrong = values.isna() & (_as_text(column) != "")
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise InputError(f"{file}: {column.name} of photo {row + 1} is {column.iloc[row]!r}, no number; correct it")
    return values.to_numpy(np.float32, na_value=np.nan)


def _splits(file: Path, column: pd.Series) -> pd.Series:
    given = _as_text(column).str.lower()
    wrong = set(given.unique()) - {*SPLIT_FOLDERS, ""}
    if wrong:
        raise InputError(f"{file}: split {min(wrong)!r} is not one of {', '.join(SPLIT_FOLDERS)}, or empty")
    return given.map({**SPLIT_FOLDERS, "": ""})
