"""A folder that one process at a time writes into."""

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
except ImportError:  # Windows, where nothing keeps two commands from writing into one folder at once
    fcntl = None

log = logging.getLogger(__name__)


def lock_folder(folder: Path, refusal: str) -> IO[bytes] | None:
    """Held until it is closed or the process ends. Raises InputError with the text `refusal` where another holds it."""
    if fcntl is None:
        return None
    opened = open_kept(folder / LOCK, "ab")
    try:
        # Not flock(), whose locks the processes that read photos would inherit and outlive a killed run with
        fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        opened.close()
        raise InputError(refusal) from None
    except OSError as error:  # as of network file systems whose service for locks does not run
        log.warning("the disk of %s has no locks (%s): don't start two commands into it at once", folder, error)
    return opened


@contextmanager
def lock_when_free(folder: Path, within_s: float = 120.0) -> Iterator[None]:
    """Holds the folder's lock, for which it waits; after so long it goes on without, as whoever holds it hangs."""
    open_kept(folder / LOCK, "ab").close()  # a link is refused at once, and not waited for
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
    """Whether another process holds the folder's lock; None where its disk, or the system, can't tell."""
    if fcntl is None:
        return None
    try:
        with open_kept(folder / LOCK, "ab") as opened:
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except (OSError, InputError):
        return None
    return False
