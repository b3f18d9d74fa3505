"""Lists of photos: a path a line, or a table with a column `path`, read row by row.

Columns of a table (CSV, TSV, Parquet), in any order; a run's splits.csv is one. CSV and TSV may be separated by comma,
semicolon (as Excel does where the comma is the decimal point) or tab:
    path                      of the photo
    left, top, right, bottom  optional: box in pixels of the upright photo; empty where there is none
    split                     optional: by which rows can be chosen
    <label>                   optional: the true class of a label, as its id or its name; empty where not known
"""

import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from carvision.data.folder import SPLIT_FOLDERS
from carvision.data.table import BOX
from carvision.errors import InputError

SEPARATORS = {".csv": ",;\t", ".tsv": "\t,;"}  # by how likely they are
UTF16 = (b"\xff\xfe", b"\xfe\xff")  # what PowerShell's ">" writes

Row = tuple[str, tuple | None, dict[str, str]]  # path, box, {label: id or name}


def check(file: Path, split: str | None) -> None:
    """Raises InputError for a list that does not exist, or a table without the columns needed."""
    if not file.is_file():
        raise InputError(f"--list: {file} does not exist; give a text file with a path a line, or a table")
    names = columns_of(file)
    if names is None:
        if split is not None:
            raise InputError(f"--split: {file} is no table; give a .csv, .tsv or .parquet with a column split")
        return
    there = ", ".join(names) or "none"
    for name in ["path", *(["split"] if split is not None else [])]:
        if name not in names:
            raise InputError(f"--list: {file} has no column {name!r}; its columns: {there}")
    missing = [name for name in BOX if name not in names]
    if missing and len(missing) < len(BOX):
        raise InputError(f"--list: {file} has boxes without a column {missing[0]!r}; a box needs {', '.join(BOX)}")


def columns_of(file: Path) -> list[str] | None:
    """Of a table; None for a text file with a path a line."""
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        return list(_schema(file).names)
    if suffix not in SEPARATORS:
        return None
    return _header(file)[1]


def has_boxes(file: Path) -> bool:
    return BOX[0] in (columns_of(file) or [])


def read_list(file: Path, split: str | None, labels: tuple[str, ...]) -> Iterator[Row]:
    """The rows in order. Raises InputError, naming the row, for one without a path or with a box of no numbers."""
    names = columns_of(file)
    if names is None:
        with file.open("rb") as lines:
            yield from ((path, None, {}) for path in read_lines(lines, str(file)))
        return
    labels = tuple(name for name in labels if name in names)
    box = tuple(BOX) if BOX[0] in names else ()
    wanted = ("path", *box, *labels, *(("split",) if split is not None else ()))
    rows = _parquet_rows(file, wanted) if file.suffix.lower() == ".parquet" else _text_rows(file, wanted)
    for number, row in enumerate(rows, 1):
        if split is not None and _split(row["split"]) != _split(split):
            continue
        if not row["path"]:
            raise InputError(f"{file}: photo {number} has no path; fill the column path")
        yield (
            row["path"],
            _box([row[name] for name in box], f"{file}: photo {number}"),
            {name: row[name].strip() for name in labels if row[name].strip()},
        )


def read_lines(lines: Iterable[bytes], name: str) -> Iterator[str]:
    """The path of each line; empty lines mean nothing. name: of the source, for errors."""
    for number, line in enumerate(lines):
        if number == 0:
            if line.startswith(UTF16):
                raise InputError(f"{name} is UTF-16 text; save it as UTF-8")
            line = line.removeprefix(b"\xef\xbb\xbf")
        if b"\0" in line:
            raise InputError(f"{name}: line {number + 1} is no text; give paths, one a line")
        if line := line.rstrip(b"\r\n"):
            yield os.fsdecode(line)


def _opened(file: Path):
    with file.open("rb") as binary:
        if binary.read(2) in UTF16:
            raise InputError(f"{file} is UTF-16 text; save it as UTF-8")
    return file.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _records(text, separator: str, file: Path) -> Iterator[list[str]]:
    reader = csv.reader(text, delimiter=separator)
    try:
        yield from reader
    except csv.Error as error:
        raise InputError(f"{file}: line {reader.line_num} can't be read as CSV ({error}); correct it") from None


def _header(file: Path) -> tuple[str, list[str]]:
    """The separator and the columns: the first separator that gives a column path, else that which gives the most."""
    found = []
    for separator in SEPARATORS[file.suffix.lower()]:
        with _opened(file) as text:
            found.append((separator, next(_records(text, separator, file), [])))
    with_path = [(separator, names) for separator, names in found if "path" in names]
    return with_path[0] if with_path else max(found, key=lambda pair: len(pair[1]))


def _text_rows(file: Path, wanted: tuple[str, ...]) -> Iterator[dict[str, str]]:
    separator, names = _header(file)
    places = {name: names.index(name) for name in wanted}
    with _opened(file) as text:
        records = _records(text, separator, file)
        next(records, None)
        for record in records:
            if record:  # an empty line
                yield {name: record[place] if place < len(record) else "" for name, place in places.items()}


def _parquet_rows(file: Path, wanted: tuple[str, ...]) -> Iterator[dict[str, str]]:
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=4096, columns=list(wanted)):
                for row in batch.to_pylist():
                    yield {name: _text(value) for name, value in row.items()}
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{file} can't be read as Parquet: {' '.join(str(error).split())[:200]}") from None


def _schema(file: Path) -> pyarrow.Schema:
    try:
        return pyarrow.parquet.read_schema(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"--list: {file} can't be read as Parquet: {' '.join(str(error).split())[:200]}") from None


def _text(value) -> str:
    """ "" for an empty cell; 3.0, a whole number in a column that empty cells made floats, as "3"."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _box(values: list[str], place: str) -> tuple | None:
    if not any(value.strip() for value in values):
        return None
    try:
        box = tuple(map(float, values))
    except ValueError:
        raise InputError(
            f"{place}: the box {' '.join(values)} is not four numbers; correct it, or leave all empty"
        ) from None
    return None if any(value != value for value in box) else box


def _split(name: str) -> str:
    name = name.strip().lower()
    return SPLIT_FOLDERS.get(name, name)
