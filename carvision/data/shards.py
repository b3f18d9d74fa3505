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

from carvision.data.fetch_ahead import FetchAhead
from carvision.data.fetching import Cache, fetch
from carvision.data.images import BadImage
from carvision.data.shard_order import shard_sequence, windowed_order

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
    """place: folder or URL of the shards. key: tells this pack from others; equal for copies in other processes.
    cache: where shards of a URL are fetched to. window: so many shards are shuffled together in training; None: all."""

    place: str
    key: str
    all: tuple[Shard, ...]
    cache: Cache | None = None
    window: int | None = None

    def __eq__(self, other) -> bool:
        return isinstance(other, Shards) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def file(self, shard: int, wait: bool = True) -> Path:
        """Where the shard lies; fetched if need be, see fetching.fetch. Raises InputError where that can't be done."""
        known = self.all[shard]
        if self.cache is None:
            return Path(self.place) / known.name
        return fetch(self.place, known.name, known.bytes, known.sha256, self.cache, wait)

    def read(self, shard: int, offset: int, length: int, crc32: int | None) -> bytes:
        """A photo's bytes; compared with its checksum, unless that is None. Raises BadImage where the shard is damaged,
        InputError where it can't be fetched.

        Read, rather than mapped into memory: a disk that fails then is an error here instead of the end of the process,
        and copying a photo's bytes takes a hundredth of the time that decoding them does.
        """
        name = self.all[shard].name
        try:
            data = self._bytes(shard, offset, length)
        except OSError as error:
            raise BadImage(f"{name} can't be read ({error.strerror}); {self._mend(shard)}") from None
        if len(data) < length or (crc32 is not None and zlib.crc32(data) != crc32):
            raise BadImage(f"damaged in {name}; {self._mend(shard)}")
        return data

    def _bytes(self, shard: int, offset: int, length: int) -> bytes:
        if self.cache is None:
            return _read_at(_opened(self, shard), length, offset)
        while True:
            file = self.file(shard)
            try:  # not kept open: a file that gave way to others would still take its room
                with file.open("rb", buffering=0) as opened:
                    if self.cache.limit_bytes is not None:
                        os.utime(file)  # the least recently read give way first
                    return _read_at(opened, length, offset)
            except FileNotFoundError:  # another process needed the room just now
                continue

    def _mend(self, shard: int) -> str:
        return MEND if self.cache is None else f"remove {self.file(shard)}, so that it is fetched again"


@functools.lru_cache(maxsize=128)  # of a thousand files that a process may open by default
def _opened(shards: Shards, shard: int) -> io.FileIO:
    return shards.file(shard).open("rb", buffering=0)


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
        return f"{self.path} of {self.shards.place}"


class PackedPhotos:
    """The photos of a table's rows, by arrays: a million of them take 33 MB.

    Their bytes are compared with their checksums when a process reads them for the first time. Shards of a URL that are
    needed next are fetched ahead. seed: of the order of training, see order().
    """

    def __init__(self, shards: Shards, shard: np.ndarray, offset: np.ndarray, length: np.ndarray, crc32: np.ndarray):
        self.shards = shards
        self.shard, self.offset, self.length, self.crc32 = shard, offset, length, crc32
        self.checked = np.zeros(len(shard), bool)
        self.seed = 0
        self.ahead: FetchAhead | None = None

    def order(self, random: np.random.Generator) -> np.ndarray:
        """Of the rows, in an epoch of training; random: np.random.default_rng((seed, epoch))."""
        if self.shards.window is None:
            return random.permutation(len(self.shard))
        return windowed_order(self.shard, self.shards.window, random)

    def shard_by_shard(self) -> np.ndarray:
        """The rows, those of a shard after those of another."""
        return np.argsort(self.shard, kind="stable")

    def read(self, row: int, epoch: int = -1) -> bytes:
        """epoch: of training, in whose order the photos are read; -1: shard by shard."""
        if self.shards.cache is not None:
            self._fetch_ahead(int(self.shard[row]), epoch)
        crc32 = None if self.checked[row] else int(self.crc32[row])
        data = self.shards.read(int(self.shard[row]), int(self.offset[row]), int(self.length[row]), crc32)
        self.checked[row] = True
        return data

    def _fetch_ahead(self, shard: int, epoch: int) -> None:
        if self.ahead is None or self.ahead.process != os.getpid():
            self.ahead = FetchAhead(functools.partial(self.shards.file, wait=False), self.shards.window)
        if self.ahead.epoch != epoch:
            random = np.random.default_rng((self.seed, epoch)) if epoch >= 0 else None
            self.ahead.begin(epoch, shard_sequence(self.shard, random) if random else np.unique(self.shard))
        self.ahead.reach(shard)

    def photo(self, row: int, path: str) -> PackedPhoto:
        place = (int(values[row]) for values in (self.shard, self.offset, self.length, self.crc32))
        return PackedPhoto(path, self.shards, *place)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "ahead": None}  # a thread stays in its process


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
