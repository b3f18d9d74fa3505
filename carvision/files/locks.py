"""Locks that keep processes, or threads, from writing the same files at once."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from carvision.errors import InputError
from carvision.files.atomic import open_kept
from carvision.files.folders import LOCK

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two commands from writing the same files at once
    fcntl = None

log = logging.getLogger(__name__)


def try_lock(opened: IO) -> bool:
    """Lock an open file until it is closed or the process ends; return False if another process holds the lock.

    Raises OSError where the disk has no locks, as a network file system whose lock service does not run.
    """
    if fcntl is None:
        return True
    try:
        # Not flock(), whose locks the worker processes would inherit and hold after a run is killed
        fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def lock_folder(folder: Path, refusal: str) -> IO[bytes] | None:
    """Lock a folder, until the returned file is closed or the process ends; None where the system has no locks.

    Raises InputError with the text `refusal` if another process holds the lock.
    """
    if fcntl is None:
        return None
    opened = open_kept(folder / LOCK, "ab")
    try:
        is_ours = try_lock(opened)
    except OSError as error:
        log.warning("the disk of %s has no locks (%s): don't start two commands into it at once", folder, error)
        return opened
    if not is_ours:
        opened.close()
        raise InputError(refusal)
    return opened


@contextmanager
def lock_when_free(folder: Path, within_s: float = 120.0) -> Iterator[None]:
    """Wait for the folder's lock and hold it; after `within_s` seconds continue without it, as its holder hangs."""
    open_kept(folder / LOCK, "ab").close()  # raises at once for a symbolic link
    until, lock = time.monotonic() + within_s, None
    while lock is None and time.monotonic() < until:
        try:
            lock = lock_folder(folder, "")
        except InputError:
            time.sleep(0.1)
            continue
        break
    try:
        yield
    finally:
        if lock:
            lock.close()


def is_locked(folder: Path) -> bool | None:
    """Return whether another process holds the folder's lock; None where its disk, or the system, can't tell."""
    if fcntl is None:
        return None
    try:
        with open_kept(folder / LOCK, "ab") as opened:
            return not try_lock(opened)
    except PermissionError:  # another user's
        return True
    except (OSError, InputError):
        return None


@contextmanager
def lock_among_threads(file: Path, wait: bool) -> Iterator[bool | None]:
    """Hold a lock file that keeps the threads of a process apart as well; yield whether it is held.

    wait: until it is free. Yields None where the disk, or the system, has no locks.
    """
    if fcntl is None:
        yield None
        return
    with open_kept(file, "ab") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))  # lockf() would let all threads in
        except BlockingIOError:
            yield False
            return
        except OSError:
            yield None
            return
        yield True
