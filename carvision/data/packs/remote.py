"""Fetch the files of a pack from a URL (http, s3, gs, ... by fsspec) into a cache folder, complete and verified.

Several processes and machines may share the folder. A file is fetched under a name of its own, compared with its hash,
and renamed. A lock keeps others from fetching it at the same time, if the disk has locks.
"""

import contextlib
import errno
import hashlib
import logging
import os
import queue
import re
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from carvision.errors import InputError, one_line
from carvision.files.atomic import PARTIAL, open_new
from carvision.files.locks import lock_among_threads

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")
PAUSES_S = (1, 2, 4, 8)  # before another attempt
CONNECT_S, READ_S = 30, 60  # time-outs: until the server answers, and between its bytes
GRACE_S, MIN_BYTES_PER_S = 30, 10_000  # a server that is slower on average, after the first seconds, is refused
CHUNK_BYTES = 1 << 20
NUM_AHEAD = 2  # shards that are fetched before they are needed, if only a window of them is shuffled
HTTP = ("http://", "https://")
RESERVATION = f".room{PARTIAL}"  # ends the name of a file that stands for bytes still to be fetched
# The names that Cache.file gives shards of carvision.pack: nothing else in the folder is counted or removed
SHARD = re.compile(rf"[0-9a-f]{{16}}-(train|val|test|unsplit)-\d{{5,}}\.tar(\.\d+\.\d+{re.escape(RESERVATION)})?$")


@dataclass(frozen=True)
class Cache:
    """A folder for fetched files.

    limit_bytes: of all shards in it; the least recently read ones are removed. None: no limit.
    """

    folder: Path
    limit_bytes: int | None = None

    def file(self, name: str, sha256: str) -> Path:
        """Return the path of a file. It depends on the content: a changed pack never gets files of the earlier one."""
        return self.folder / f"{sha256[:16]}-{name}"


def is_url(root: object) -> bool:
    return "://" in str(root)


def fetch(url: str, name: str, num_bytes: int, sha256: str, cache: Cache, wait: bool = True) -> Path:
    """Return the path of a pack's file in the cache, fetching it if it is absent. url: of the pack.

    wait: for a process that is fetching it; otherwise the file may be absent when this returns. Raises InputError.
    """
    file = cache.file(name, sha256)
    if file.exists():
        return file
    try:
        cache.folder.mkdir(parents=True, exist_ok=True)
        # Without locks (None) a file may be fetched more than once
        with lock_among_threads(file.with_name(f"{file.name}.lock"), wait) as held:
            if held is not False and not file.exists():
                if held:
                    _remove_unfinished(file)
                partial = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}{PARTIAL}")
                reservation = partial.with_name(partial.name.replace(PARTIAL, RESERVATION))
                with _reserve_space(cache, reservation, num_bytes):
                    try:
                        _download(f"{url.rstrip('/')}/{name}", partial, num_bytes, sha256)
                        partial.replace(file)
                    finally:
                        partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(_disk_problem(error, cache.folder)) from None
    return file


def fetch_text(url: str, max_bytes: int) -> bytes:
    """Return the content of a small file. Raises InputError if it has more than max_bytes."""

    def attempt() -> bytes:
        content = bytearray()
        _receive(url, content.extend, max_bytes)
        return bytes(content)

    return _retry(url, attempt)


class FetchAhead:
    """Fetches the shards of a URL before they are needed, in a thread.

    The thread ends when nothing refers to this object any more.
    """

    def __init__(self, fetch: Callable[[int], object], window: int | None):
        """fetch: fetches a shard by its number, or skips one that another process is fetching, so that they share the
        work. window: as of Shards."""
        self.window = window
        self.epoch: int | None = None
        self.wanted: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=_fetch_wanted, args=(weakref.ref(self), self.wanted, fetch), daemon=True).start()
        weakref.finalize(self, self.wanted.put, None)  # wakes the thread

    def start_epoch(self, epoch: int, sequence: list[int]) -> None:
        """Start over. sequence: the shards in the order in which the epoch needs them."""
        self.epoch = epoch
        self.sequence = sequence
        self.index = {shard: i for i, shard in enumerate(sequence)}
        self.num_requested = 0
        if self.window is None:
            self._request(len(sequence))

    def reach(self, shard: int) -> None:
        """Request the shards that follow this one, which is needed now."""
        next_index = self.index[shard] + 1
        self.num_requested = max(self.num_requested, next_index)
        self._request(next_index + NUM_AHEAD)

    def _request(self, end: int) -> None:
        for shard in self.sequence[self.num_requested : end]:
            self.wanted.put((self.epoch, shard))
        self.num_requested = max(self.num_requested, min(end, len(self.sequence)))


def _fetch_wanted(owner: weakref.ref, wanted: queue.SimpleQueue, fetch: Callable[[int], object]) -> None:
    while request := wanted.get():
        epoch, shard = request
        if _is_in_epoch(owner(), epoch):
            try:
                fetch(shard)
            except InputError:  # the thread that needs the shard tries again, and reports the error
                continue


def _is_in_epoch(owner: FetchAhead | None, epoch: int) -> bool:
    return owner is not None and owner.epoch == epoch


def _remove_unfinished(file: Path) -> None:
    """Remove what a killed process left of the file."""
    name = re.compile(rf"{re.escape(file.name)}\.\d+\.\d+({re.escape(PARTIAL)}|{re.escape(RESERVATION)})")
    for left in file.parent.iterdir():
        if name.fullmatch(left.name):
            left.unlink(missing_ok=True)


def _download(url: str, partial: Path, num_bytes: int, sha256: str) -> None:
    if shutil.disk_usage(partial.parent).free < num_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def attempt() -> None:
        with open_new(partial) as opened:
            size = _receive(url, opened.write, num_bytes)
        if size != num_bytes:
            raise ConnectionError(f"{size:,} of {num_bytes:,} bytes were received")
        with partial.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != sha256:
                raise ConnectionError("the bytes received are not those that were packed: their SHA-256 differs")

    _retry(url, attempt)


class Refused(Exception):
    """A server sends too much, or too slowly, and would at another attempt, too."""


# Another attempt would not help
FINAL = (FileNotFoundError, PermissionError, NotImplementedError, Refused)


def _receive(url: str, write: Callable[[bytes], object], max_bytes: int) -> int:
    """Pass the bytes of a file to write(), chunk by chunk as they arrive; return their number.

    Raises Refused for more than max_bytes, whatever size the server has stated, and for a server that is too slow.
    """
    filesystem, path = _open(url)
    # For http as a stream: with a size there is no request beforehand, and without blocks no ranges
    options = {"block_size": 0, "size": max_bytes} if url.startswith(HTTP) else {}
    start, received = time.monotonic(), 0
    with filesystem.open(path, "rb", **options) as opened:
        while chunk := opened.read(min(CHUNK_BYTES, max_bytes + 1 - received)):
            received += len(chunk)
            if received > max_bytes:
                raise Refused(f"it has more than the {max_bytes:,} bytes that it may have")
            write(chunk)
            seconds = time.monotonic() - start
            if seconds > GRACE_S and received < seconds * MIN_BYTES_PER_S:
                raise Refused(f"{received:,} bytes were received in {seconds:.0f} s, which is too slow")
    return received


def _retry(url: str, attempt: Callable[[], Answer]) -> Answer:
    """Return the result of attempt(), trying several times. Raises InputError after the last one."""
    for number, pause_s in enumerate((*PAUSES_S, None), 1):
        try:
            return attempt()
        except InputError:
            raise
        except Exception as error:  # each file system has its own
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise
            reason = "it does not exist" if isinstance(error, FileNotFoundError) else one_line(error)
            if pause_s is None or isinstance(error, FINAL):
                times = f"tried {number} times; " if number > 1 else ""
                raise InputError(
                    f"data.root: {url} can't be fetched ({times}{reason}); fix that, and run the same command again"
                ) from None
            log.warning("%s: %s; trying again in %d s", url, reason, pause_s)
            time.sleep(pause_s)
    raise AssertionError("the last attempt returns or raises")


def _open(url: str) -> tuple:
    """Return fsspec's file system for a URL, created in the process that uses it, and the path in it."""
    import fsspec  # late: only URLs need it

    options = {}
    if url.startswith(HTTP):
        import aiohttp

        # aiohttp's own limit is five minutes for a whole file. Nothing is decompressed: a few compressed bytes could
        # become any number.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
        uncompressed = {"auto_decompress": False, "headers": {"Accept-Encoding": "identity"}}
        options = {"client_kwargs": {"timeout": timeout, **uncompressed}}
    try:
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:  # it names the package
        raise InputError(f"data.root: {url} needs a package that is not installed: {error}") from None
    except ValueError as error:
        raise InputError(
            f"data.root: {url}: {error}; give a folder, or a URL such as https://, s3:// or gs://"
        ) from None


@contextlib.contextmanager
def _reserve_space(cache: Cache, reservation: Path, num_bytes: int) -> Iterator[None]:
    """Remove the least recently read shards until `num_bytes` more are within the cache's limit.

    Meanwhile the file `reservation` shows those bytes to other processes; it is sparse, and takes none itself.
    """
    if cache.limit_bytes is None:
        yield
        return
    try:
        with lock_among_threads(cache.folder / "room.lock", wait=True):
            with open_new(reservation) as opened:
                opened.truncate(num_bytes)
            files = []
            for file in cache.folder.iterdir():
                if not SHARD.match(file.name):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    status = file.lstat()
                    files.append((file.suffix == ".tar", status.st_mtime_ns, status.st_size, file))
            total = sum(size for _, _, size, _ in files)
            for is_shard, _, size, file in sorted(files):
                if is_shard and total > cache.limit_bytes:
                    file.unlink(missing_ok=True)  # a process that is reading it has it open
                    total -= size
        yield
    finally:
        reservation.unlink(missing_ok=True)


def _disk_problem(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"data.cache: no space is left on the disk of {folder}; free some, choose another disk with data.cache, or "
            "limit what it keeps with data.cache_gb"
        )
    return f"data.cache: {folder} can't be written ({error.strerror or error}); choose another with data.cache"
