"""Files of kept features, in a folder that runs share: safetensors, written whole or not at all, read as mapped memory.

A file's name is a digest of all that its content depends on, so there is nothing to compare when it is read, and a file
that is there is the right one. Beside "features" it holds "bad", the photos that could not be read, as JSON. The header
has a checksum of both.
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

from carvision.folders import cache_folder
from carvision.whole_files import PARTIAL, flush, rename

log = logging.getLogger(__name__)

HEADER = 4096  # bytes before the features, more than their description needs; a whole page, as mapped memory has
DTYPES = {"float32": "F32", "float64": "F64"}
TENSORS = {"__metadata__", "features", "bad"}
NAME = re.compile(r"[0-9a-f]{32}\.safetensors")
PARTIAL_NAME = re.compile(rf"[0-9a-f]{{32}}\.\d+\.[0-9a-f]{{8}}{re.escape(PARTIAL)}")
STALE_AFTER_S = 24 * 3600  # a file in writing that is older is of a process that was killed


class Features(NamedTuple):
    """rows: (N, ...), of each photo, mapped from the disk or in memory. bad: {row: why the photo can't be read}."""

    rows: Tensor
    bad: dict[int, str]


def features_folder(wanted: str | None) -> Path:
    """features.dir; None: $CARVISION_CACHE/features, else $XDG_CACHE_HOME/carvision/features, else under ~/.cache."""
    if wanted:
        return Path(wanted)
    return cache_folder() / "features"


def open_features(file: Path) -> Features | None:
    """None where there is no such file, or it is damaged, which the log says."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as opened:
            rows, bad = opened.get_tensor("features"), opened.get_tensor("bad")
            checksum = opened.metadata()["crc32"]
        if checksum != checksum_of(rows.numpy(), bad.numpy().tobytes()):
            raise ValueError("its bytes are not those that were written")
        reasons = {int(place): reason for place, reason in json.loads(bad.numpy().tobytes() or b"{}").items()}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        log.warning("%s is damaged (%s): its features are computed anew", file, " ".join(str(error).split())[:100])
        return None
    with contextlib.suppress(OSError, NotImplementedError):  # in a folder that others own
        os.utime(file, follow_symlinks=False)  # those used last stay longest
    return Features(rows, reasons)


def checksum_of(rows: np.ndarray, bad: bytes) -> str:
    return str(zlib.crc32(bad, zlib.crc32(np.ascontiguousarray(rows).reshape(-1).view(np.uint8))))


class FeatureFileWriter:
    """`rows`, to be filled in; finish() makes the file of them. Several processes may write the same one at once.

    Raises OSError where the folder can't be written to, or the disk has no room for all: before anything is computed.
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
            text = json.dumps(header).encode().ljust(HEADER - 8)  # spaces at the end belong to the format
            opened.write(len(text).to_bytes(8, "little") + text)
            opened.seek(HEADER + self.num_bytes)
            opened.write(reasons)
        flush(self.partial)
        rename(self.partial, self.file)

    def abandon(self) -> None:
        """Leaves nothing of what was not finished."""
        self.partial.unlink(missing_ok=True)


def _allocate(number: int, size: int, folder: Path) -> None:
    """The room on the disk, now: mapped memory that finds none later would end the process without a word."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(number, 0, size)
    elif shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    else:
        os.truncate(number, size)


def _is_ours(file: Path) -> bool:
    """Whether the file begins as FeatureFileWriter writes it. A person's own file may be named by a digest, too."""
    with file.open("rb") as opened:
        start = opened.read(HEADER)
    try:
        described = json.loads(start[8:])
        return int.from_bytes(start[:8], "little") == HEADER - 8 and described.keys() == TENSORS
    except (ValueError, AttributeError):
        return False


def make_room(folder: Path, max_bytes: float, needed: float = 0) -> None:
    """Delete the files that were used longest ago, until all together with `needed` take no more than max_bytes.

    Only files of cached features count, recognised by their names and what is in them. A run that has one open keeps
    it: its bytes go when the run ends.
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
            continue  # another process has deleted it
    total = needed + sum(size for _, size, _ in files)
    for _, size, file in sorted(files):
        if total <= max_bytes:
            return
        try:
            file.unlink()
        except OSError:
            continue
        log.info("features.max_gb: %s, unused for longest, was deleted", file)
        total -= size


def digest_of_tensors(tensors: dict[str, Tensor]) -> str:
    """Of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
