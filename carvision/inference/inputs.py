"""Resolve lazily which photos to predict: files, folders, lists, standard input."""

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from carvision.data.photo_paths import PhotoPaths, file_of, is_utf8, text_of_path
from carvision.data.walk import PHOTO_EXTENSIONS, LeftOut, walk
from carvision.errors import InputError
from carvision.inference import list_file

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
    photos, see list_file. root: folder that the relative paths of a list or of standard input start from (None: the
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
        list_file.check(sources.list_path, sources.split)
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
            for path in list_file.read_lines(sys.stdin.buffer, "standard input"):
                yield Photo(_displayed_path(path), file_of(paths.root, paths.find(path)))
        elif Path(item).is_dir():
            for path in walk(item, left_out):
                yield Photo(text_of_path(path), path)
        else:
            yield Photo(text_of_path(item), item)
    if sources.list_path is not None:
        for path, file, box, truth in list_file.read_list(sources.list_path, sources.split, tuple(labels), paths):
            yield Photo(_displayed_path(path), file, box, truth)


def require_photos(photos: Iterator[Photo], sources: Sources) -> Iterator[Photo]:
    """Yield the same photos; raise InputError if there were none, which standard input reveals only at its end."""
    empty = True
    for photo in photos:
        empty = False
        yield photo
    if empty:
        raise _no_photos(sources)


def count_photos(sources: Sources, seconds: float) -> int | None:
    """Count the photos; return None if that takes longer than `seconds`, or if they come from standard input."""
    if sources.from_stdin:
        return None
    end = time.monotonic() + seconds
    num = 0
    for _ in iterate_photos(sources):
        num += 1
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
