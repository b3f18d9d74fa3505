"""Store cached features in a folder that runs share: safetensors files, written atomically and read as mapped memory.

A file's name is a digest of all that its content depends on, so that an existing file never needs validation beyond its
checksum. Besides "features" a file holds "bad", the photos that could not be read, as JSON. The header has a checksum
of both.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
import zlib
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from carvision.errors import one_line
from carvision.files.atomic import PARTIAL, flush, rename
from carvision.files.folders import cache_folder

log = logging.getLogger(__name__)

HEADER = 4096  # bytes before the features: one page, so that mapped features are aligned
DTYPES = {"float32": "F32", "float64": "F64"}
TENSORS = {"__metadata__", "features", "bad"}
NAME = re.compile(r"[0-9a-f]{32}\.safetensors")
PARTIAL_NAME = re.compile(rf"[0-9a-f]{{32}}\.\d+\.[0-9a-f]{{8}}{re.escape(PARTIAL)}")
STALE_AFTER_S = 24 * 3600  # an older partial file was left by a killed process


class Features(NamedTuple):
    """Hold the features of N photos.

    rows: (N, ...) float32 or float64, mapped from the disk or in memory. bad: {row: why the photo can't be read}.
    """

    rows: Tensor
    bad: dict[int, str]


def features_folder(wanted: str | None) -> Path:
    """Return the folder for cached features: `wanted` (features.dir); if None, $CARVISION_CACHE/features, else
    $XDG_CACHE_HOME/carvision/features, else ~/.cache/carvision/features."""
    if wanted:
        return Path(wanted)
    return cache_folder() / "features"


def open_features(file: Path) -> Features | None:
    """Open a feature file as mapped memory; None if it is missing, or damaged (logged as a warning)."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as opened:
            rows, bad = opened.get_tensor("features"), opened.get_tensor("bad")
            checksum = opened.metadata()["crc32"]
        if checksum != checksum_of(rows.numpy(), bad.numpy().tobytes()):
            raise ValueError("its checksum is wrong")
        reasons = {int(row): reason for row, reason in json.loads(bad.numpy().tobytes() or b"{}").items()}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        log.warning("%s is damaged (%s): its features are recomputed", file, one_line(error, 100))
        return None
    with contextlib.suppress(OSError, NotImplementedError):  # the folder may belong to others
        os.utime(file, follow_symlinks=False)  # make_room deletes the least recently used
    return Features(rows, reasons)


def checksum_of(rows: np.ndarray, bad: bytes) -> str:
    """Return the CRC-32 of both byte sequences, as decimal text."""
    return str(zlib.crc32(bad, zlib.crc32(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)))


class FeatureFileWriter:
    """Write a feature file: fill `rows`, then call finish(). Several processes may write the same file at once.

    Raises OSError, before anything is computed, if the folder can't be written or the disk lacks the space.
    """

    def __init__(self, file: Path, shape: tuple[int, ...], dtype: str):
        self.file, self.dtype = file, dtype
        self.partial = file.with_name(f"{file.stem}.{os.getpid()}.{uuid.uuid4().hex[:8]}{PARTIAL}")
        self.num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.partial.open("xb") as opened:
                _allocate(opened.fileno(), HEADER + self.num_bytes, file.parent)
            self.rows = np.memmap(self.partial, dtype, "r+", HEADER, shape)
        except BaseException:
            self.abandon()
            raise

    def finish(self, bad: dict[int, str]) -> None:
        """Write header and `bad`, and move the file to its name."""
        self.rows.flush()
        reasons = json.dumps(bad).encode()
        end = self.num_bytes + len(reasons)
        header = {
            "__metadata__": {"crc32": checksum_of(self.rows, reasons)},
            "features": {
                "dtype": DTYPES[self.dtype],
                "shape": list(self.rows.shape),
                "data_offsets": [0, self.num_bytes],
            },
            "bad": {"dtype": "U8", "shape": [len(reasons)], "data_offsets": [self.num_bytes, end]},
        }
        with self.partial.open("r+b") as opened:
            text = json.dumps(header).encode().ljust(HEADER - 8)  # the format allows trailing spaces
            opened.write(len(text).to_bytes(8, "little") + text)
            opened.seek(HEADER + self.num_bytes)
            opened.write(reasons)
        flush(self.partial)
        rename(self.partial, self.file)

    def abandon(self) -> None:
        """Delete the partial file, if finish() was not called."""
        self.partial.unlink(missing_ok=True)


def _allocate(number: int, size: int, folder: Path) -> None:
    """Allocate disk space now: writing to mapped memory without space left would kill the process with SIGBUS."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(number, 0, size)
    elif shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    else:
        os.truncate(number, size)


def _is_ours(file: Path) -> bool:
    """Return whether the file begins as FeatureFileWriter writes it: another file may also be named by a digest."""
    with file.open("rb") as opened:
        start = opened.read(HEADER)
    try:
        described = json.loads(start[8:])
        return int.from_bytes(start[:8], "little") == HEADER - 8 and described.keys() == TENSORS
    except (ValueError, AttributeError):
        return False


def make_room(folder: Path, max_bytes: float, needed: float = 0) -> None:
    """Delete the least recently used feature files until they and `needed` bytes take at most max_bytes.

    Only files recognised by name and header count. Deleting is safe while a run has a file open: the disk frees it when
    the run ends.
    """
    now = time.time()
    files = []
    for file in folder.glob("*"):
        try:
            stat = file.lstat()
            if not S_ISREG(stat.st_mode):
                continue
            if PARTIAL_NAME.fullmatch(file.name):
                if now - stat.st_mtime > STALE_AFTER_S:
                    file.unlink()
            elif NAME.fullmatch(file.name) and _is_ours(file):
                files.append((stat.st_mtime, stat.st_size, file))
        except OSError:
            continue  # deleted by another process
    total = needed + sum(size for _, size, _ in files)
    for _, size, file in sorted(files):
        if total <= max_bytes:
            return
        try:
            file.unlink()
        except OSError:
            continue
        log.info("features.max_gb: deleted %s, the least recently used", file)
        total -= size


def digest_of_tensors(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes, as hexadecimal text."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
