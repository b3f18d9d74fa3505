"""Fetch the files of a pack from a URL (http, s3, gs, ... by fsspec) into a cache folder, complete and verified.

Several processes and machines may share the folder. A file is fetched under a name of its own, compared with its hash,
and renamed. A lock keeps others from fetching it at the same time, if the disk has locks.
"""

import contextlib
import errno
import hashlib
import io
import logging
import os
import queue
import re
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from carvision.errors import InputError, one_line
from carvision.files.atomic import PARTIAL, open_new
from carvision.files.locks import lock_among_threads

log = logging.getLogger(__name__)

PAUSES_S = (1, 2, 4, 8)  # before another attempt
CONNECT_S, READ_S = 30, 60  # time-outs: until the server answers, and between its bytes
GRACE_S, MIN_BYTES_PER_S = 30, 10_000  # a server that is slower on average, after the first seconds, is refused
CHUNK_BYTES = 1 << 20
NUM_AHEAD = 2  # shards that are fetched before they are needed, if only a window of them is shuffled
# The names of complete and unfinished shards of carvision.pack: nothing else in the folder is counted or removed
SHARD = re.compile(rf"[0-9a-f]{{16}}-(train|val|test|unsplit)-\d{{5,}}\.tar(\.\d+\.\d+{re.escape(PARTIAL)})?")


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
        with lock_among_threads(file.with_name(f"{file.name}.lock"), wait) as held:
            if held is False or file.exists():
                return file
            if held:  # not None: without locks another process may be fetching it
                for unfinished in cache.folder.glob(f"{file.name}.*{PARTIAL}"):  # of a process that was killed
                    unfinished.unlink(missing_ok=True)
            partial = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}{PARTIAL}")
            try:
                with open_new(partial) as opened:
                    opened.truncate(num_bytes)  # a sparse file, whose size other processes count in _make_room
                    _make_room(cache)
                    if shutil.disk_usage(cache.folder).free < num_bytes:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    _download(f"{url}/{name}", opened, num_bytes, sha256)
                partial.replace(file)
            finally:
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"data.cache: {cache.folder} can't be written ({error.strerror or error}); choose another folder with "
            "data.cache, or, if its disk is full, free some space, or limit what is kept with data.cache_gb"
        ) from None
    return file


def fetch_text(url: str, max_bytes: int) -> bytes:
    """Return the content of a small file. Raises InputError if it has more than max_bytes."""
    content = io.BytesIO()
    _download(url, content, max_bytes)
    return content.getvalue()


class FetchAhead:
    """Fetches the shards of a URL before they are needed, in a thread that ends when nothing refers to this object.

    fetch: fetches a shard by its number, or skips one that another process is fetching, so that they share the work.
    sequence: the shards in the order in which an epoch needs them. window: as of Shards.
    """

    def __init__(self, fetch: Callable[[int], object], sequence: list[int], window: int | None):
        self.sequence, self.window = sequence, window
        self.index = {shard: i for i, shard in enumerate(sequence)}
        self.num_requested = 0
        self.wanted: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=_fetch_wanted, args=(weakref.ref(self), self.wanted, fetch), daemon=True).start()
        weakref.finalize(self, self.wanted.put, None)  # wakes the thread

    def reach(self, shard: int) -> None:
        """Request the shards that follow this one, which is needed now; without a window all of them."""
        following = self.index[shard] + 1
        start, end = (0, len(self.sequence)) if self.window is None else (following, following + NUM_AHEAD)
        for each in self.sequence[max(start, self.num_requested) : end]:
            self.wanted.put(each)
        self.num_requested = max(end, self.num_requested)


def _fetch_wanted(owner: weakref.ref, wanted: queue.SimpleQueue, fetch: Callable[[int], object]) -> None:
    while (shard := wanted.get()) is not None and owner() is not None:
        with contextlib.suppress(InputError):  # the thread that needs the shard tries again, and reports the error
            fetch(shard)


def _make_room(cache: Cache) -> None:
    """Remove the least recently read shards until all in the folder are within the cache's limit."""
    if cache.limit_bytes is None:
        return
    files = []
    for file in cache.folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if SHARD.fullmatch(file.name):
                status = file.lstat()
                files.append((status.st_mtime_ns, status.st_size, file))
    excess = sum(size for _, size, _ in files) - cache.limit_bytes
    for _, size, file in sorted(files):
        if file.suffix == ".tar" and excess > 0:
            file.unlink(missing_ok=True)  # a process that is reading it has it open
            excess -= size


def _download(url: str, out: IO[bytes], max_bytes: int, sha256: str | None = None) -> None:
    """Write a file to `out`, trying several times.

    sha256: of its content, if known. Raises InputError if it can't be fetched, OSError if `out` can't be written.
    """
    for pause_s in (*PAUSES_S, None):
        try:
            out.seek(0)
            found = _receive(url, out, max_bytes)
            out.truncate()
            if sha256 not in (None, found):
                raise ConnectionError("the bytes received are not those that were packed: their SHA-256 differs")
            return
        except InputError:
            raise
        except Exception as error:  # each file system has its own
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise
            reason = "it does not exist" if isinstance(error, FileNotFoundError) else one_line(error)
            if pause_s is None or isinstance(error, FINAL):
                times = f"tried {1 + len(PAUSES_S)} times; " if pause_s is None else ""
                raise InputError(
                    f"data.root: {url} can't be fetched ({times}{reason}); fix that, and run the same command again"
                ) from None
            log.warning("%s: %s; trying again in %d s", url, reason, pause_s)
            time.sleep(pause_s)


class Refused(Exception):
    """A server sends too much, or too slowly, and would at another attempt, too."""


# Another attempt would not help
FINAL = (FileNotFoundError, PermissionError, NotImplementedError, Refused)


def _receive(url: str, out: IO[bytes], max_bytes: int) -> str:
    """Write a file to `out`, chunk by chunk as it arrives; return its SHA-256.

    Raises Refused for more than max_bytes, whatever size the server has stated, and for a server that is too slow;
    InputError for a URL of a kind that isn't supported.
    """
    import fsspec  # late: only URLs need it

    options, stream = {}, {}
    if url.startswith(("http://", "https://")):
        import aiohttp

        # aiohttp's own limit is five minutes for a whole file. Nothing is decompressed: a few compressed bytes could
        # become any number.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
        uncompressed = {"auto_decompress": False, "headers": {"Accept-Encoding": "identity"}}
        options = {"client_kwargs": {"timeout": timeout, **uncompressed}}
        # With a size there is no request beforehand, and without blocks no ranges
        stream = {"block_size": 0, "size": max_bytes}
    try:
        filesystem, path = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:  # which names the missing package, or the unknown protocol
        raise InputError(
            f"data.root: {url}: {one_line(error)}; give a folder, or a URL such as https://, s3:// or gs://, and "
            "install the package that it needs"
        ) from None
    start, received, digest = time.monotonic(), 0, hashlib.sha256()
    with filesystem.open(path, "rb", **stream) as opened:
        while chunk := opened.read(min(CHUNK_BYTES, max_bytes + 1 - received)):
            received += len(chunk)
            if received > max_bytes:
                raise Refused(f"it has more than the {max_bytes:,} bytes that it may have")
            out.write(chunk)
            digest.update(chunk)
            seconds = time.monotonic() - start
            if seconds > GRACE_S and received < seconds * MIN_BYTES_PER_S:
                raise Refused(f"{received:,} bytes were received in {seconds:.0f} s, which is too slow")
    return digest.hexdigest()
