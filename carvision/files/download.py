"""Download files: verified by checksum, with a progress bar, never left incomplete."""

import contextlib
import hashlib
import http.client
import os
import threading
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TypeVar

from carvision.errors import InputError, one_line
from carvision.files.atomic import PARTIAL, open_new
from carvision.files.progress import show_bar

T = TypeVar("T")

CHUNK = 1 << 20  # bytes
TIMEOUT_S = 30.0  # without a byte from the server
ANSWER_S = 10.0  # until its response begins


def download(url: str, file: Path, md5: str) -> bool:
    """Download `url` to `file` and return True; False if the file exists with the right checksum already.

    The bytes go to a file beside it, which is renamed if its MD5 is right and removed otherwise, so that `file` is
    always complete. Raises InputError if the server can't be reached, the disk is full, or the checksum differs, also
    that of an existing file, which the user must have put there.
    """
    if file.is_file():
        if _md5(file) == md5:
            return False
        raise InputError(
            f"{file} is not the original, whose MD5 is {md5}; put the original there, or give another data.root"
        )
    part = file.with_name(f"{file.name}.{os.getpid()}{PARTIAL}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        found = _fetch(url, part)
        if found != md5:
            raise InputError(f"{url}: the bytes received have MD5 {found} instead of {md5}; try again later")
        part.replace(file)
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: InputError, and a malformed URL
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, InputError):
            raise
        reason = one_line(error)
        raise InputError(
            f"{url} could not be fetched into {file}: {reason}. Check the connection, or put the file there by hand"
        ) from error
    return True


def answer_within(seconds: float, ask: Callable[[], T]) -> T:
    """Return, or raise, what ask() does, but raise TimeoutError after so many seconds, whatever it is waiting for:
    name resolution, a proxy, or bytes that arrive one by one."""
    future: Future[T] = Future()

    def answer() -> None:
        try:
            future.set_result(ask())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=answer, daemon=True).start()  # does not delay the end of the process, as an executor would
    if not wait([future], seconds).done:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return future.result()


def _fetch(url: str, part: Path) -> str:
    """Write the bytes of `url` into `part` under a progress bar, and return their MD5."""
    digest = hashlib.md5(usedforsecurity=False)
    with answer_within(ANSWER_S, lambda: urllib.request.urlopen(url, timeout=TIMEOUT_S)) as response:
        length = response.headers.get("Content-Length")
        num_bytes = int(length) if length else None
        with open_new(part) as out, show_bar(url.rsplit("/", 1)[-1], num_bytes, in_bytes=True) as advance:
            while chunk := response.read(CHUNK):
                out.write(chunk)
                digest.update(chunk)
                advance(len(chunk))
    return digest.hexdigest()


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
