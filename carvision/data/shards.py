"""Shards: the tar files of a pack, read photo by photo. No torch and no pandas here."""

import functools
import hashlib
import io
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from carvision.data.images import BadImage

Place = tuple[str, int, int, int]  # of a photo: its path, and offset, length and crc32 of its bytes in the shard
MEND = "the command that packed it writes such shards again (python -m carvision.pack verify=<folder> finds them)"


@dataclass(frozen=True)
class Shard:
    """name: of the file. sha256: of its bytes, as hex."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, eq=False)
class Shards:
    """place: the folder of the shards. key: tells this pack from others; equal for copies in other processes."""

    place: str
    key: str
    all: tuple[Shard, ...]

    def __eq__(self, other) -> bool:
        return isinstance(other, Shards) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def read(self, shard: int, offset: int, length: int, crc32: int | None) -> bytes:
        """A photo's bytes; compared with its checksum, unless that is None. Raises BadImage where the shard is damaged.

        Read, rather than mapped into memory: a disk that fails then is an error here instead of the end of the process,
        and copying a photo's bytes takes a hundredth of the time that decoding them does.
        """
        name = self.all[shard].name
        try:
            data = _read_at(_opened(self, shard), length, offset)
        except OSError as error:
            raise BadImage(f"{name} of {self.place} can't be read ({error.strerror}); {MEND}") from None
        if len(data) < length or (crc32 is not None and zlib.crc32(data) != crc32):
            raise BadImage(f"damaged in {name} of {self.place}; {MEND}")
        return data


@functools.lru_cache(maxsize=128)  # of a thousand files that a process may open by default
def _opened(shards: Shards, shard: int) -> io.FileIO:
    return (Path(shards.place) / shards.all[shard].name).open("rb", buffering=0)


def _read_at(file: io.FileIO, length: int, offset: int) -> bytes:
    if hasattr(os, "pread"):  # does not move the file's position, which forked processes share
        return os.pread(file.fileno(), length, offset)
    file.seek(offset)  # Windows, where nothing is forked
    return file.read(length)


class PackedPhoto(NamedTuple):
    """One photo of a pack, which any process can read. path: as in the data set that was packed."""

    path: str
    shards: Shards
    shard: int
    offset: int
    length: int
    crc32: int

    def read(self) -> bytes:
        return self.shards.read(self.shard, self.offset, self.length, self.crc32)

    def __str__(self) -> str:
        return f"{self.path} in {self.shards.all[self.shard].name} of {self.shards.place}"


class PackedPhotos:
    """The photos of a table's rows, by arrays: a million of them take 21 MB.

    Their bytes are compared with their checksums when a process reads them for the first time.
    """

    def __init__(self, shards: Shards, shard: np.ndarray, offset: np.ndarray, length: np.ndarray, crc32: np.ndarray):
        self.shards = shards
        self.shard, self.offset, self.length, self.crc32 = shard, offset, length, crc32
        self.checked = np.zeros(len(shard), bool)

    def read(self, row: int) -> bytes:
        crc32 = None if self.checked[row] else int(self.crc32[row])
        data = self.shards.read(int(self.shard[row]), int(self.offset[row]), int(self.length[row]), crc32)
        self.checked[row] = True
        return data

    def photo(self, row: int, path: str) -> PackedPhoto:
        place = (int(values[row]) for values in (self.shard, self.offset, self.length, self.crc32))
        return PackedPhoto(path, self.shards, *place)


def look_at_shard(file: Path, num_bytes: int, sha256: str, photos: list[Place]) -> str:
    """What is wrong with a shard, in a few words, or ""."""
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            if size != num_bytes:
                return f"it has {size:,} bytes instead of {num_bytes:,}"
            damaged = [path for path, *place in photos if not _is_sound(opened, *place)]
            if damaged:
                return f"{len(damaged)} of its {len(photos)} photos are damaged (first: {damaged[0]})"
            opened.seek(0)
            found = hashlib.file_digest(opened, "sha256").hexdigest()
            return "" if found == sha256 else "its bytes are others than were packed, though not those of photos"
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it can't be read ({error.strerror})"


def _is_sound(opened, offset: int, length: int, crc32: int) -> bool:
    opened.seek(offset)
    return zlib.crc32(opened.read(length)) == crc32
