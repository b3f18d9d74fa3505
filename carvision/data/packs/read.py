"""Read photos from the shards (tar files) of a pack. Imports neither torch nor pandas."""

import functools
import hashlib
import io
import os
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from carvision.data.images import BadImage
from carvision.data.packs.remote import Cache, FetchAhead, fetch

FIX = "the command that packed it writes such shards again (carvision pack verify=<folder> finds them)"
POSITION = threading.Lock()  # of a file, where reading at an offset moves it
ShardEntry = tuple[str, int, int, int]  # a photo's path, and offset, length and crc32 of its bytes in the shard


@dataclass(frozen=True)
class Shard:
    """A file of photos. bytes: its size. sha256: of its content, as hex."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, eq=False)
class Shards:
    """The shards of a pack.

    root: their folder or URL. cache: where shards of a URL are fetched to. window: number of shards that are shuffled
    together in training; None: all.
    """

    root: str
    all: tuple[Shard, ...]
    cache: Cache | None = None
    window: int | None = None

    def file(self, shard: int, wait: bool = True) -> Path:
        """Return the path of a shard, fetching it if necessary (see remote.fetch). Raises InputError if that fails."""
        known = self.all[shard]
        if self.cache is None:
            return Path(self.root) / known.name
        return fetch(self.root, known.name, known.bytes, known.sha256, self.cache, wait)

    def read(self, shard: int, offset: int, length: int, crc32: int | None) -> bytes:
        """Read a photo's bytes and compare them with their checksum, unless that is None.

        Raises BadImage if the shard is damaged, InputError if it can't be fetched.
        """
        # Not memory-mapped: a failing disk is then an error here, rather than the end of the process, and copying a
        # photo's bytes takes a hundredth of the time of decoding them.
        name = self.all[shard].name
        try:
            data = self._bytes(shard, offset, length)
        except OSError as error:
            raise BadImage(f"{name} can't be read ({error.strerror}); {self._fix(shard)}") from None
        if len(data) < length or (crc32 is not None and zlib.crc32(data) != crc32):
            raise BadImage(f"damaged in {name}; {self._fix(shard)}")
        return data

    def _bytes(self, shard: int, offset: int, length: int) -> bytes:
        if self.cache is None:
            return _read_at(_opened(self, shard), length, offset)
        while True:
            file = self.file(shard)
            try:  # not kept open: a file removed from the cache would still occupy the disk
                with file.open("rb", buffering=0) as opened:
                    if self.cache.limit_bytes is not None:
                        os.utime(file)  # the least recently read ones are removed first
                    return _read_at(opened, length, offset)
            except FileNotFoundError:  # another process has just removed it to make room
                continue

    def _fix(self, shard: int) -> str:
        return FIX if self.cache is None else f"remove {self.file(shard)}, so that it is fetched again"


@functools.lru_cache(maxsize=128)  # of the thousand files that a process may open by default
def _opened(shards: Shards, shard: int) -> io.FileIO:
    return shards.file(shard).open("rb", buffering=0)


def _read_at(file: io.FileIO, length: int, offset: int) -> bytes:
    if hasattr(os, "pread"):  # does not move the file's position, which threads share
        return os.pread(file.fileno(), length, offset)
    with POSITION:  # Windows
        file.seek(offset)
        return file.read(length)


class PackedPhoto(NamedTuple):
    """A photo of a pack. path: as in the data set that was packed."""

    path: str
    shards: Shards
    shard: int
    offset: int
    length: int
    crc32: int

    def read(self) -> bytes:
        return self.shards.read(self.shard, self.offset, self.length, self.crc32)

    def __str__(self) -> str:
        return f"{self.path} of {self.shards.root}"


class PackedPhotos:
    """The photos of a table's rows as arrays: a million of them take 33 MB.

    A photo is compared with its checksum when it is first read. The shards of a URL that are needed next are fetched
    ahead. seed: of the order of training, see order().
    """

    def __init__(self, shards: Shards, shard: np.ndarray, offset: np.ndarray, length: np.ndarray, crc32: np.ndarray):
        self.shards = shards
        self.shard, self.offset, self.length, self.crc32 = shard, offset, length, crc32
        self.checked = np.zeros(len(shard), bool)
        self.seed = 0
        self.ahead: FetchAhead | None = None
        self.epoch = -1  # of self.ahead
        self.ahead_lock = threading.Lock()

    def order(self, random: np.random.Generator) -> np.ndarray:
        """Return the order of the rows in an epoch of training. random: np.random.default_rng((seed, epoch))."""
        if self.shards.window is None:
            return random.permutation(len(self.shard))
        return windowed_order(self.shard, self.shards.window, random)

    def shard_by_shard(self) -> np.ndarray:
        """Return the rows sorted by shard."""
        return np.argsort(self.shard, kind="stable")

    def read(self, row: int, epoch: int = -1) -> bytes:
        """Read the bytes of a row's photo. epoch: of training, in whose order photos are read; -1: shard by shard.

        Raises as Shards.read does.
        """
        if self.shards.cache is not None:
            self._fetch_ahead(int(self.shard[row]), epoch)
        crc32 = None if self.checked[row] else int(self.crc32[row])
        data = self.shards.read(int(self.shard[row]), int(self.offset[row]), int(self.length[row]), crc32)
        self.checked[row] = True
        return data

    def _fetch_ahead(self, shard: int, epoch: int) -> None:
        with self.ahead_lock:
            if self.ahead is None or self.epoch != epoch:
                sequence = np.unique(self.shard)
                if epoch >= 0:
                    sequence = np.random.default_rng((self.seed, epoch)).permutation(sequence)  # as windowed_order
                fetch_shard = functools.partial(self.shards.file, wait=False)
                self.ahead, self.epoch = FetchAhead(fetch_shard, sequence.tolist(), self.shards.window), epoch
            self.ahead.reach(shard)

    def photo(self, row: int, path: str) -> PackedPhoto:
        return PackedPhoto(
            path, self.shards, *(int(values[row]) for values in (self.shard, self.offset, self.length, self.crc32))
        )


def windowed_order(shard: np.ndarray, window: int, random: np.random.Generator) -> np.ndarray:
    """Return a permutation of the photos for which about `window` shards are needed at a time.

    shard: int (N,), each photo's shard. The shards start one after the other, in random order. The photos of each are
    spread evenly, at random, over the time in which it and the next `window` - 1 start. So a batch mixes the photos of
    `window` shards, except for the first and last batches, and training can start before all shards are fetched.
    """
    sequence = random.permutation(np.unique(shard))
    start = np.empty(sequence.max() + 1)
    start[sequence] = np.arange(len(sequence))
    return np.argsort(start[shard] + window * random.random(len(shard)), kind="stable")


def find_damage(folder: Path, shard: Shard, entries: list[ShardEntry]) -> str:
    """Compare a shard's file with its size, SHA-256 and entries. Return what is wrong in a few words, or ""."""
    try:
        with (folder / shard.name).open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            if size != shard.bytes:
                return f"it has {size:,} bytes instead of {shard.bytes:,}"
            damaged = []
            for path, offset, length, crc32 in entries:
                opened.seek(offset)
                if zlib.crc32(opened.read(length)) != crc32:
                    damaged.append(path)
            if damaged:
                return f"{len(damaged)} of its {len(entries)} photos are damaged (first: {damaged[0]})"
            opened.seek(0)
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        return "" if found == shard.sha256 else "its bytes differ from those that were packed, though not in a photo"
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it can't be read ({error.strerror})"
