"""Files of a pack from a URL (http, s3, gs, ... by fsspec) into a cache folder, whole and verified or not at all.

Several processes and machines may share the folder. A file is fetched under a name of its own, compared with its hash,
and renamed; a lock keeps others from fetching it at the same time, where the disk has locks.
"""

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import threading
import time
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
CONNECT_S, READ_S = 30, 60  # without an answer, without a byte
ROOM = f".room{PARTIAL}"
HTTP = ("http://", "https://")
CHUNK_BYTES = 1 << 20
PATIENCE_S, LEAST_BYTES_S = 30, 10_000  # after so many seconds fewer bytes a second, on average, are a trickle
# As Cache.file names the shards of carvision.pack: nothing else in the folder is counted or removed
SHARD = re.compile(rf"[0-9a-f]{{16}}-(train|val|test|unsplit)-\d{{5,}}\.tar(\.\d+\.\d+{re.escape(ROOM)})?$")


@dataclass(frozen=True)
class Cache:
    """limit_bytes: of all files in the folder; those least recently opened give way. None: no limit."""

    folder: Path
    limit_bytes: int | None = None

    def file(self, name: str, sha256: str) -> Path:
        """Named by its content, so that a changed pack never finds the files of the earlier one."""
        return self.folder / f"{sha256[:16]}-{name}"


def is_url(root: object) -> bool:
    return "://" in str(root)


def fetch(place: str, name: str, num_bytes: int, sha256: str, cache: Cache, wait: bool = True) -> Path:
    """The file `name` of the pack at the URL `place`, in the cache; fetched if it is not there.

    wait: for a process that fetches it now; else the file may not be there when this returns. Raises InputError.
    """
    file = cache.file(name, sha256)
    if file.exists():
        return file
    try:
        cache.folder.mkdir(parents=True, exist_ok=True)
        # Where there are no locks (None) a file may be fetched more than once
        with lock_among_threads(file.with_name(f"{file.name}.lock"), wait) as held:
            if held is not False and not file.exists():
                if held:
                    _remove_unfinished(file)
                partial = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}{PARTIAL}")
                with _room(cache, partial.with_name(partial.name.replace(PARTIAL, ROOM)), num_bytes):
                    try:
                        _fetch_often(f"{place.rstrip('/')}/{name}", partial, num_bytes, sha256)
                        partial.replace(file)
                    finally:
                        partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(_disk_problem(error, cache.folder)) from None
    return file


def _remove_unfinished(file: Path) -> None:
    """Remove what a killed process has left of the file."""
    name = re.compile(rf"{re.escape(file.name)}\.\d+\.\d+({re.escape(PARTIAL)}|{re.escape(ROOM)})")
    for left in file.parent.iterdir():
        if name.fullmatch(left.name):
            left.unlink(missing_ok=True)


def fetch_text(url: str, max_bytes: int) -> bytes:
    """The bytes of a small file. Raises InputError where there are more than max_bytes."""

    def attempt() -> bytes:
        content = bytearray()
        _receive(url, content.extend, max_bytes)
        return bytes(content)

    return _often(url, attempt)


def _fetch_often(url: str, partial: Path, num_bytes: int, sha256: str) -> None:
    if shutil.disk_usage(partial.parent).free < num_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def attempt() -> None:
        with open_new(partial) as opened:
            size = _receive(url, opened.write, num_bytes)
        if size != num_bytes:
            raise ConnectionError(f"{size:,} of {num_bytes:,} bytes came")
        with partial.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != sha256:
                raise ConnectionError("the bytes that came are not those that were packed: their SHA-256 is another")

    _often(url, attempt)


class Refused(Exception):
    """What a server sends is too much, or too slow, and would be with another attempt, too."""


# Another attempt would not help
FINAL = (FileNotFoundError, PermissionError, NotImplementedError, Refused)


def _receive(url: str, write: Callable[[bytes], object], max_bytes: int) -> int:
    """The bytes of a file, to write(), chunk by chunk as they come; returns how many. Raises Refused for more than
    max_bytes, whatever the server has said of their number, and for a trickle."""
    filesystem, path = _open(url)
    # Of http a stream: with a size there is no request beforehand, and without blocks no ranges
    options = {"block_size": 0, "size": max_bytes} if url.startswith(HTTP) else {}
    begun, received = time.monotonic(), 0
    with filesystem.open(path, "rb", **options) as opened:
        while chunk := opened.read(min(CHUNK_BYTES, max_bytes + 1 - received)):
            received += len(chunk)
            if received > max_bytes:
                raise Refused(f"it has more than the {max_bytes:,} bytes that it may have")
            write(chunk)
            seconds = time.monotonic() - begun
            if seconds > PATIENCE_S and received < seconds * LEAST_BYTES_S:
                raise Refused(f"{received:,} bytes came in {seconds:.0f} s, which is too slow")
    return received


def _often(url: str, attempt: Callable[[], Answer]) -> Answer:
    """What attempt() returns, tried several times."""
    for number, pause_s in enumerate((*PAUSES_S, None), 1):
        try:
            return attempt()
        except InputError:
            raise
        except Exception as error:  # each file system has its own
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise
            reason = one_line(error)
            if isinstance(error, FileNotFoundError):
                reason = "it is not there"
            if pause_s is None or isinstance(error, FINAL):
                times = f"tried {number} times; " if number > 1 else ""
                raise InputError(
                    f"data.root: {url} can't be fetched ({times}{reason}); mend that, and the same command goes on"
                ) from None
            log.warning("%s: %s; trying again in %d s", url, reason, pause_s)
            time.sleep(pause_s)
    raise AssertionError("the last attempt returns or raises")


def _open(url: str) -> tuple:
    """fsspec's file system of a URL, made in the process that uses it, and the path in it."""
    import fsspec  # only where there is a URL

    options = {}
    if url.startswith(HTTP):
        import aiohttp

        # aiohttp's own limit is five minutes for a whole file. Bytes are taken as they come: a few that were compressed
        # could become any number
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
        as_it_is = {"auto_decompress": False, "headers": {"Accept-Encoding": "identity"}}
        options = {"client_kwargs": {"timeout": timeout, **as_it_is}}
    try:
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:  # which names the package
        raise InputError(f"data.root: {url} needs a package that is not installed: {error}") from None
    except ValueError as error:
        raise InputError(
            f"data.root: {url}: {error}; give a folder, or a URL such as https://, s3:// or gs://"
        ) from None


@contextlib.contextmanager
def _room(cache: Cache, room: Path, num_bytes: int) -> Iterator[None]:
    """Keeps the limit, with `num_bytes` more, by removing the files least recently read. Meanwhile the file `room`
    tells other processes of those bytes; it is sparse, and takes none itself."""
    if cache.limit_bytes is None:
        yield
        return
    try:
        with lock_among_threads(cache.folder / "room.lock", wait=True):
            with open_new(room) as opened:
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
                    file.unlink(missing_ok=True)  # a process that reads it at the moment has it open
                    total -= size
        yield
    finally:
        room.unlink(missing_ok=True)


def _disk_problem(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"data.cache: no space is left on the disk of {folder}; free some, choose another disk with data.cache, or "
            "limit what it keeps with data.cache_gb"
        )
    return f"data.cache: {folder} can't be written ({error.strerror or error}); choose another with data.cache"
