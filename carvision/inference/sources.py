"""Find the photos to predict, lazily: files, folders, standard input, and lists.

A list is a text file with one path per line, or a table (CSV, TSV or Parquet; see data/readers/table_file) that is read
row by row. A run's splits.csv is one. Its columns, in any order:
    path                      of the photo
    left, top, right, bottom  optional: box in pixels of the upright photo; empty where there is none
    split                     optional: rows can be selected by it
    <label>                   optional: the true class of a label, as its id or its name; empty if unknown
"""

import sys
import time
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from carvision.data.paths import PhotoPaths, file_of, is_utf8, nfc, text_of_path
from carvision.data.readers.disk import UTF16
from carvision.data.readers.table_file import PARQUET, SEPARATORS, SPLIT_WORDS, TableFile
from carvision.data.readers.walk import PHOTO_EXTENSIONS, LeftOut, walk
from carvision.data.table import BOX
from carvision.errors import InputError

KEY = "--list"
STANDARD_INPUT = "-"

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the upright photo


class Photo(NamedTuple):
    """A photo to predict.

    path: as given, and as the output shows it. file: the path that opens it. truth: {label: id or name}, from the list.
    """

    path: str
    file: str
    box: Box | None = None
    truth: dict[str, str] = {}  # noqa: RUF012  never written to


@dataclass(frozen=True)
class Sources:
    """Where the photos come from. inputs: photos, folders, or "-" for paths on standard input. list_path: a list of
    photos. root: folder that the relative paths of a list or of standard input start from (None: the
    current one). split: use only the rows of a table with this split."""

    inputs: tuple[str, ...] = ()
    list_path: Path | None = None
    root: Path | None = None
    split: str | None = None

    @property
    def from_stdin(self) -> bool:
        return STANDARD_INPUT in self.inputs


def check_sources(sources: Sources) -> None:
    """Raise InputError for mistakes that can be detected before any photo is read."""
    if not sources.inputs and sources.list_path is None:
        raise InputError("no photos given; name files or folders, - for paths on standard input, or --list FILE")
    if sources.inputs.count(STANDARD_INPUT) > 1:
        raise InputError("-: standard input is given twice; it can be read once")
    for path in sources.inputs:
        if path != STANDARD_INPUT and not Path(path).exists():
            raise InputError(f"{path} does not exist; give a photo, a folder of photos, or - for standard input")
    if sources.root is not None:
        if sources.list_path is None and not sources.from_stdin:
            raise InputError(f"--root: {sources.root} is for the relative paths of a list; give --list FILE or -")
        if not sources.root.is_dir():
            raise InputError(
                f"--root: {sources.root} is not a folder; give the one that the list's paths are relative to"
            )
    if sources.list_path is not None:
        check_list(sources.list_path, sources.split)
    elif sources.split is not None:
        raise InputError(f"--split: {sources.split} chooses rows of a table; give --list FILE with a column split")
    left_out = LeftOut()
    if not sources.from_stdin and next(iterate_photos(sources, left_out=left_out), None) is None:
        raise _no_photos(sources, left_out)


def iterate_photos(sources: Sources, labels: Iterable[str] = (), left_out: LeftOut | None = None) -> Iterator[Photo]:
    """Yield the photos in order: those of `inputs` first, then the rows of the list.

    labels: take the true classes from a table's columns of these names. left_out: records what is skipped in folders.
    Raises InputError for a list or a folder that can't be read.
    """
    left_out = LeftOut() if left_out is None else left_out
    paths = PhotoPaths(sources.root if sources.root is not None else "")
    for item in sources.inputs:
        if item == STANDARD_INPUT:
            for path in read_lines(sys.stdin.buffer, "standard input"):
                yield Photo(_displayed_path(path), _file(paths, path))
        elif Path(item).is_dir():
            for path in walk(item, left_out):
                yield Photo(text_of_path(path), path)
        else:
            yield Photo(text_of_path(item), item)
    if sources.list_path is not None:
        for photo in read_list(sources.list_path, sources.split, tuple(labels), paths):
            yield photo._replace(path=_displayed_path(photo.path))


def require_photos(photos: Iterator[Photo], sources: Sources) -> Iterator[Photo]:
    """Yield the same photos; raise InputError if there were none, which standard input reveals only at its end."""
    first = next(photos, None)
    if first is None:
        raise _no_photos(sources)
    yield first
    yield from photos


def count_photos(sources: Sources, seconds: float) -> int | None:
    """Count the photos; return None if that takes longer than `seconds`, or if they come from standard input."""
    if sources.from_stdin:
        return None
    end = time.monotonic() + seconds
    num = 0
    for num, _ in enumerate(iterate_photos(sources), 1):
        if num % 1000 == 0 and time.monotonic() > end:
            return None
    return num


def _displayed_path(path: str) -> str:
    """Return a path as a list has it: already text, except for bytes that are not UTF-8."""
    return path if is_utf8(path) else text_of_path(path)


def _no_photos(sources: Sources, left_out: LeftOut | None = None) -> InputError:
    if sources.split is not None:
        return InputError(f"--split: no row of {sources.list_path} has the split {sources.split!r}")
    searched = [*sources.inputs, *([str(sources.list_path)] if sources.list_path is not None else [])]
    also = f"; {left_out.line()}" if left_out and left_out.line() else ""
    return InputError(
        f"no photos in {', '.join(searched)} (in folders they are recognised by {' '.join(PHOTO_EXTENSIONS)}){also}"
    )


def check_list(file: Path, split: str | None) -> None:
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


def read_list(file: Path, split: str | None, labels: tuple[str, ...], paths: PhotoPaths) -> Iterator[Photo]:
    """Yield the photos in order, each with its path as it is written.

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
                yield Photo(path, found)
        return
    table = TableFile(file, KEY)
    labels = tuple(name for name in labels if nfc(name) in table.columns)
    table.require(("path", *labels))
    if labels:
        _require_one_class(table, split, labels, paths)
    yield from (photo for _, photo in _rows(table, split, labels, paths))


def _rows(
    table: TableFile, split: str | None, labels: tuple[str, ...], paths: PhotoPaths
) -> Iterator[tuple[int, Photo]]:
    """Yield (line number, photo) for the rows of the split."""
    box = tuple(BOX) if table.has_boxes else ()
    for line, row in table.rows(("path", *box, *labels, *(("split",) if split is not None else ()))):
        if split is not None and _split_name(row["split"]) != _split_name(split):
            continue
        found = _file(paths, row["path"])
        if not is_utf8(row["path"]) and not Path(found).exists():
            raise table.not_utf8(line, row["path"])
        truth = {name: row[name] for name in labels if row[name]}
        yield line, Photo(row["path"], found, table.box(row, line) if box else None, truth)


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


def _split_name(name: str) -> str:
    name = name.strip().lower()
    return SPLIT_WORDS.get(name, name)
