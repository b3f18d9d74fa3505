"""Files that appear whole or not at all, also where the machine stops in the middle."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"  # ends the name of a file while it is being written


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """Gives a place beside `file` to write to. At the end it is flushed to the disk and renamed to `file`; if anything
    fails, `file` is what it was before and nothing else is left. Two processes must not write the same file at once.
    """
    partial = file.with_name(file.name + PARTIAL)
    try:
        yield partial
        flush(partial)
        rename(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(file: Path, text: str) -> None:
    """As UTF-8."""
    with written_whole(file) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(file: Path, content) -> None:
    write_text(file, json.dumps(content, indent=1))


def flush(path: Path) -> None:
    """What was written to a file, or the names in a folder, reaches the disk before this returns."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def rename(path: Path, wanted: Path) -> None:
    """In the same folder; takes the place of a file that is there. Survives a loss of power once it has returned."""
    path.replace(wanted)
    if os.name == "posix":  # elsewhere folders can't be opened
        flush(wanted.parent)


def write_csv(file: Path, frame, index: bool = False, **kwargs) -> None:
    """A DataFrame; kwargs: of its to_csv."""
    with written_whole(file) as partial:
        frame.to_csv(partial, index=index, **kwargs)
