"""The folder of cached features, which runs share: .npy files, mapped into memory, the least recently used deleted.

A file's name has a digest of all that its content depends on, so that an existing file never needs validation beyond
its checksum. Its note has the photos that could not be read, and how long the others took.
"""

import contextlib
import hashlib
import logging
import os
import re
import time
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

import torch
from torch import Tensor

from carvision.errors import one_line
from carvision.files.arrays import read_array
from carvision.files.atomic import PARTIAL
from carvision.files.folders import cache_folder

log = logging.getLogger(__name__)

NAME = re.compile(r"carvision-[0-9a-f]{32}\.npy")  # others' files may be named by a digest, too
PARTIAL_NAME = re.compile(rf"carvision-[0-9a-f]{{32}}\.\d+\.[0-9a-f]{{8}}{re.escape(PARTIAL)}")
STALE_AFTER_S = 24 * 3600  # an older partial file was left by a killed process


class Features(NamedTuple):
    """Hold the features of N photos.

    rows: (N, ...) float32 or float64, mapped from the disk or in memory. bad: {row: why the photo can't be read}.
    seconds_per_photo: that computing them took.
    """

    rows: Tensor
    bad: dict[int, str]
    seconds_per_photo: float


def feature_file(wanted: str | None, digest: str) -> Path:
    """Return the file of the features with this digest of 32 hexadecimal digits.

    It is in the folder `wanted` (features.dir); if None, in features below cache_folder().
    """
    return (Path(wanted) if wanted else cache_folder() / "features") / f"carvision-{digest}.npy"


def open_features(file: Path) -> Features | None:
    """Open a feature file as mapped memory; None if it is missing, or damaged (logged as a warning)."""
    if not file.is_file():
        return None
    try:
        rows, note = read_array(file)
        bad = {int(row): reason for row, reason in note["bad"].items()}
        features = Features(torch.from_numpy(rows), bad, float(note["seconds_per_photo"]))
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged (%s): its features are recomputed", file, one_line(error, 100))
        return None
    with contextlib.suppress(OSError, NotImplementedError):  # the folder may belong to others
        os.utime(file, follow_symlinks=False)  # make_room deletes the least recently used
    return features


def make_room(folder: Path, max_bytes: float, needed: float = 0) -> None:
    """Delete the least recently used feature files until they and `needed` bytes take at most max_bytes.

    Only files recognised by their name count. Deleting is safe while a run has a file open: the disk frees it when
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
            elif NAME.fullmatch(file.name):
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
