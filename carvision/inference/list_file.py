"""Lists of photos: one path per line, or a table with a column `path`, read row by row.

Columns of a table (CSV, TSV, Parquet; see data/table_file), in any order; a run's splits.csv is one:
    path                      of the photo
    left, top, right, bottom  optional: box in pixels of the upright photo; empty where there is none
    split                     optional: rows can be selected by it
    <label>                   optional: the true class of a label, as its id or its name; empty if unknown
"""

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from carvision.data.disk import UTF16
from carvision.data.photo_paths import PhotoPaths, file_of, is_utf8, nfc, text_of_path
from carvision.data.table import BOX
from carvision.data.table_file import PARQUET, SEPARATORS, SPLIT_WORDS, TableFile
from carvision.errors import InputError

KEY = "--list"

ListRow = tuple[str, str, tuple | None, dict[str, str]]  # path as written, file, box, {label: id or name}


def check(file: Path, split: str | None) -> None:
    """Raise InputError for a list that does not exist, or a table without the required columns."""
    if not file.is_file():
        raise InputError(f"{KEY}: {file} does not exist; give a text file with one path per line, or a table")
    if _is_table(file):
        TableFile(file, KEY).require(["path", *(["split"] if split is not None else [])])
    elif split is not None:
        raise InputError(f"--split: {file} is not a table; give a .csv, .tsv or .parquet with a column split")


def columns_of(file: Path) -> list[str] | None:
    """Return the columns of a table, or None for a text file with one path per line."""
    return TableFile(file, KEY).columns if _is_table(file) else None


def has_boxes(file: Path) -> bool:
    """Return whether the list is a table with boxes."""
    return BOX[0] in (columns_of(file) or [])


def read_list(file: Path, split: str | None, labels: tuple[str, ...], paths: PhotoPaths) -> Iterator[ListRow]:
    """Yield the rows in order.

    Raises InputError, naming the row, for a missing path or a box that isn't numeric, and for a photo (or one box of
    it) with two classes of the same label.
    """
    if not _is_table(file):
        with file.open("rb") as lines:
            for path in read_lines(lines, str(file)):
                found = _file(paths, path)
                if not is_utf8(path) and not Path(found).exists():
                    text = text_of_path(path)
                    raise InputError(f"{KEY}: {file}: '{text}' is not in the encoding UTF-8; save the list as UTF-8")
                yield path, found, None, {}
        return
    table = TableFile(file, KEY)
    labels = tuple(name for name in labels if nfc(name) in table.columns)
    table.require(("path", *labels))
    if labels:
        _require_one_class(table, split, labels, paths)
    yield from (row for _, row in _rows(table, split, labels, paths))


def _rows(
    table: TableFile, split: str | None, labels: tuple[str, ...], paths: PhotoPaths
) -> Iterator[tuple[int, ListRow]]:
    """Yield (line number, row) for the rows of the split."""
    box = tuple(BOX) if table.has_boxes else ()
    for line, row in table.rows(("path", *box, *labels, *(("split",) if split is not None else ()))):
        if split is not None and _split(row["split"]) != _split(split):
            continue
        found = _file(paths, row["path"])
        if not is_utf8(row["path"]) and not Path(found).exists():
            raise table.not_utf8(line, row["path"])
        truth = {name: row[name] for name in labels if row[name]}
        yield line, (row["path"], found, table.box(row, line) if box else None, truth)


def _require_one_class(table: TableFile, split: str | None, labels: tuple[str, ...], paths: PhotoPaths) -> None:
    """Raise InputError for a photo with two classes.

    Keeps only hashes in memory: 8 bytes per photo and per class of it.
    """
    photos, classes = array("q"), {name: array("q") for name in labels}
    for _, (_, file, box, truth) in _rows(table, split, labels, paths):
        photos.append(hash((paths.whole(file), box)))
        for name in labels:
            classes[name].append(hash(nfc(truth[name])) if name in truth else 0)
    for name, values in classes.items():
        known = np.flatnonzero(values)
        known = known[np.argsort(np.asarray(photos)[known], kind="stable")]
        same, other = (np.asarray(each)[known][1:] == np.asarray(each)[known][:-1] for each in (photos, values))
        for index in np.flatnonzero(same & ~other)[:1]:
            chosen = known[index : index + 2]
            rows = [row for i, row in enumerate(_rows(table, split, labels, paths)) if i in chosen]
            raise table.two_classes(name, *((line, path, truth[name]) for line, (path, _, _, truth) in rows))


def read_lines(lines: Iterable[bytes], name: str) -> Iterator[str]:
    """Yield the path on each line; empty lines are skipped. name: of the source, for error messages."""
    for number, line in enumerate(lines):
        if number == 0:
            if line.startswith(UTF16):
                raise InputError(f"{name} is UTF-16 text; save it as UTF-8")
            line = line.removeprefix(b"\xef\xbb\xbf")
        if b"\0" in line:
            raise InputError(f"{name}: line {number + 1} is not text; give one path per line")
        if line.strip():
            yield line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")


def _is_table(file: Path) -> bool:
    return file.suffix.lower() in (*SEPARATORS, PARQUET)


def _file(paths: PhotoPaths, cell: str) -> str:
    return file_of(paths.root or "", paths.find(cell))


def _split(name: str) -> str:
    name = name.strip().lower()
    return SPLIT_WORDS.get(name, name)
