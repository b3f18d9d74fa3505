"""What stands beside a file while it is being written: FILE.partial with the rows, FILE.partial.json with the settings
they were made with. Whoever writes holds a lock on the latter."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from carvision.errors import InputError

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two commands from writing the same file at once
    fcntl = None


def partial_of(file: Path) -> Path:
    return file.with_name(file.name + ".partial")


def settings_of(file: Path) -> Path:
    return file.with_name(file.name + ".partial.json")


def claim(file: Path, settings: dict, overwrite: bool) -> TextIO:
    """The right to write `file`: the opened settings, locked until they are closed or the process ends.

    settings: {what: plain value} that make the rows what they are. Raises InputError where `file` exists and is not to
    be overwritten, another process writes it, or it was begun with other settings.
    """
    refuse_existing(file, overwrite)
    with explained(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        opened = _lock(file)
    try:
        refuse_existing(file, overwrite)  # the one that held the lock may have finished it
        if partial_of(file).exists():
            _compare(file, opened.read(), settings)
        else:
            opened.seek(0)
            opened.truncate()
            json.dump(settings, opened, indent=1)
            opened.flush()
    except InputError:
        opened.close()
        if not partial_of(file).exists():
            settings_of(file).unlink(missing_ok=True)
        raise
    return opened


def release(file: Path, opened: TextIO) -> None:
    """After `file` is complete."""
    if fcntl is None:
        opened.close()  # Windows deletes no open file
    settings_of(file).unlink(missing_ok=True)
    opened.close()


@contextlib.contextmanager
def explained(file: Path) -> Iterator[None]:
    """An OSError becomes an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"--out: {file} can't be written ({error.strerror or error}); the same command goes on once that is mended"
        ) from None


def refuse_existing(file: Path, overwrite: bool) -> None:
    if file.is_dir():
        raise InputError(
            f"--out: {file} is a folder; give the name of a file in it, such as {file / 'predictions.csv'}"
        )
    if file.exists() and not overwrite:
        raise InputError(f"--out: {file} exists; give another name, or replace it with --overwrite")


def _lock(file: Path) -> TextIO:
    while True:
        opened = settings_of(file).open("a+", encoding="utf-8")
        opened.seek(0)
        if fcntl is None:
            return opened
        try:
            # Not flock(), whose locks the processes that decode photos would inherit and outlive a killed command with
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            opened.close()
            raise InputError(
                f"--out: another command is writing {file} now; wait for it, or give another name"
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(opened.fileno()), settings_of(file).stat()):
                return opened
        opened.close()  # it was deleted between our opening and our locking it


def _compare(file: Path, written: str, settings: dict) -> None:
    partial = partial_of(file)
    anew = f"delete {partial} to begin anew"
    try:
        before = json.loads(written)
        differing = [what for what in settings if before.get(what) != settings[what]]
    except (ValueError, AttributeError):
        raise InputError(f"{partial} was begun with settings that are lost ({settings_of(file)}); {anew}") from None
    if differing:
        what = differing[0]
        raise InputError(
            f"{partial} was begun with {what} {_brief(before.get(what))}, not {_brief(settings[what])}; "
            f"give the same again, or {anew}"
        )


def _brief(value) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
