"""Locks that keep processes, or threads, from writing the same files at once.

Where there are none, nothing is refused, and a warning says what to avoid: on Windows, which has no fcntl, and on a
network file system whose lock service does not run.
"""

import errno
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from carvision.errors import InputError
from carvision.files.atomic import open_kept

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log = logging.getLogger(__name__)

LOCK = ".lock"  # in the locked folder


def try_lock(opened: IO) -> bool:
    """Lock an open file until it is closed or the process ends; return False if another process holds the lock.

    Where there are no locks, warn and return True.
    """
    try:
        return _lock(opened)
    except OSError as error:
        folder = Path(opened.name).parent
        log.warning("the disk of %s has no locks (%s): don't start two commands into it at once", folder, error)
        return True


def lock_folder(folder: Path, refusal: str) -> IO[bytes]:
    """Lock a folder, until the returned file is closed or the process ends.

    Where there are no locks, only warn. Raises InputError with the text `refusal` if another process holds the lock.
    """
    opened = open_kept(folder / LOCK, "ab")
    if not try_lock(opened):
        opened.close()
        raise InputError(refusal)
    return opened


@contextmanager
def lock_when_free(folder: Path, within_s: float = 120.0) -> Iterator[None]:
    """Wait for the folder's lock and hold it; after `within_s` seconds continue without it, as its holder hangs."""
    until = time.monotonic() + within_s
    with open_kept(folder / LOCK, "ab") as opened:
        while not try_lock(opened) and time.monotonic() < until:
            time.sleep(0.1)
        yield


def is_locked(folder: Path) -> bool | None:
    """Return whether another process holds the folder's lock; None where there are no locks."""
    try:
        with open_kept(folder / LOCK, "ab") as opened:
            return not _lock(opened)
    except PermissionError:  # another user's
        return True
    except (OSError, InputError):
        return None


@contextmanager
def lock_among_threads(file: Path, wait: bool) -> Iterator[bool | None]:
    """Hold a lock file that keeps the threads of a process apart as well; yield whether it is held.

    wait: until it is free. Yields None where there are no locks.
    """
    with open_kept(file, "ab") as opened:
        try:
            held = _lock(opened, wait, threads=True)
        except OSError:
            held = None
        yield held


def _lock(opened: IO, wait: bool = False, threads: bool = False) -> bool:
    """Lock an open file; return False if it is locked elsewhere. Raises OSError where there are no locks."""
    if fcntl is None:
        raise OSError(errno.ENOLCK, "this system has no fcntl")
    # lockf() would let all threads of the process in; forked processes would inherit the locks of flock(), and hold
    # them after this one is killed
    lock = fcntl.flock if threads else fcntl.lockf
    try:
        lock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return False
    return True
