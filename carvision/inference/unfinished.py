"""Files beside an output that is being written: FILE.partial with the rows, FILE.partial.json with the settings they
were made with. The writing process holds a lock on the latter."""

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from carvision.errors import InputError
from carvision.folders import shorten
from carvision.whole_files import open_kept

try:
    import fcntl
except ImportError:  # Windows, where nothing prevents two commands from writing the same file at once
    fcntl = None

PART = re.compile(r"\d{12}\.(parquet|unfinished)|whole")  # files in the folder of an unfinished Parquet file


def partial_path(file: Path) -> Path:
    return file.with_name(file.name + ".partial")


def settings_path(file: Path) -> Path:
    return file.with_name(file.name + ".partial.json")


def claim(file: Path, settings: dict, overwrite: bool) -> TextIO:
    """Lock `file` for writing; return the open settings file, which holds the lock while it is open.

    settings: {name: plain value} that determine the rows. Raises InputError if `file` exists and must not be
    overwritten, another process writes it, or it was begun with other settings.
    """
    refuse_existing(file, overwrite)
    with oserror_as_input_error(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        opened = _lock(file)
    written = opened.read()
    try:
        refuse_existing(file, overwrite)  # the process that held the lock may have finished it
        if not _is_continued(file, written, settings, overwrite):
            with oserror_as_input_error(file):
                opened.seek(0)
                opened.truncate()
                json.dump(settings, opened, indent=1)
                opened.flush()
    except InputError:
        opened.close()
        if not written:  # we have just created it
            settings_path(file).unlink(missing_ok=True)
        raise
    return opened


def release(file: Path, opened: TextIO) -> None:
    """Remove the settings file and its lock, once `file` is complete."""
    if fcntl is None:
        opened.close()  # Windows can't delete an open file
    settings_path(file).unlink(missing_ok=True)
    opened.close()


@contextlib.contextmanager
def oserror_as_input_error(file: Path) -> Iterator[None]:
    """Turn an OSError into an InputError."""
    try:
        yield
    except OSError as error:
        name, reason = shorten(str(file)), error.strerror or error
        fix = "give a shorter one" if error.errno == errno.ENAMETOOLONG else "fix that, and the same command resumes"
        raise InputError(f"--out: {name} can't be written ({reason}); {fix}") from None


def refuse_existing(file: Path, overwrite: bool) -> None:
    """Raise InputError if `file` is a folder, or exists and must not be overwritten."""
    with oserror_as_input_error(file):
        is_folder, is_there = file.is_dir(), file.exists()
    if is_folder:
        raise InputError(
            f"--out: {file} is a folder; give the name of a file in it, such as {file / 'predictions.csv'}"
        )
    if is_there and not overwrite:
        raise InputError(f"--out: {file} exists; give another name, or replace it with --overwrite")


def _lock(file: Path) -> TextIO:
    while True:
        opened = open_kept(settings_path(file), "a+", encoding="utf-8")
        opened.seek(0)
        if fcntl is None:
            return opened
        try:
            # Not flock(): the decoding workers would inherit its lock and hold it after the command is killed
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            opened.close()
            raise InputError(
                f"--out: another command is writing {file} now; wait for it, or give another name"
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(opened.fileno()), settings_path(file).stat()):
                return opened
        opened.close()  # deleted between opening and locking


def _is_continued(file: Path, written: str, settings: dict, overwrite: bool) -> bool:
    """Return whether an output begun with these settings exists.

    written: the settings that it was begun with, "" if none. Raises InputError for files of another origin. An output
    begun with other settings is discarded if it may be overwritten, else refused.
    """
    partial, exists = partial_path(file), os.path.lexists(partial_path(file))
    if not exists and not written:
        return False
    try:
        before = json.loads(written)
    except ValueError:
        before = None
    if not isinstance(before, dict) or not before.keys() & settings.keys():
        unknown_file = partial if exists else settings_path(file)
        raise InputError(
            f"{unknown_file} was not written by this command, or the settings it was begun with are lost "
            f"({settings_path(file)}); give another --out"
        )
    differing = [what for what in settings if before.get(what) != settings[what]]
    if differing and exists and not overwrite:
        what = differing[0]
        raise InputError(
            f"{partial} was begun with {what} {_brief(before.get(what))}, not {_brief(settings[what])}; "
            "give the same again, another --out, or --overwrite to start over"
        )
    if differing and exists:
        discard(file)
    return exists and not differing


def discard(file: Path) -> None:
    """Remove the unfinished output of `file`."""
    partial = partial_path(file)
    if partial.is_symlink() or not partial.is_dir():
        partial.unlink(missing_ok=True)
        return
    for part in partial.iterdir():
        if PART.fullmatch(part.name):
            part.unlink()
    with contextlib.suppress(OSError):  # it holds files that are not ours
        partial.rmdir()


def _brief(value) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
