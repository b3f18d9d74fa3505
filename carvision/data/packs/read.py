"""Read photos from the shards (tar files) of a pack. Imports neither torch nor pandas."""

import functools
import hashlib
import io
import os
import queue
import threading
import weakref
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from carvision.data.images import BadImage
from carvision.data.packs.remote import Cache, fetch
from carvision.errors import InputError

# Orders that read a pack shard after shard, so that training can begin before all of them are fetched.


def shard_sequence(shard: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The numbers of the shards that occur in `shard`, in a random order."""
    return random.permutation(np.unique(shard))


def windowed_order(shard: np.ndarray, window: int, random: np.random.Generator) -> np.ndarray:
    """A permutation of the photos for which about `window` shards are needed at a time. shard: of each photo, (N,).

    The shards begin one after the other, in the order of `shard_sequence` with this generator. The photos of each are
    spread evenly, at random, over the time in which it and the next `window` - 1 begin. So a batch mixes the photos of
    `window` shards, but for the first and last ones.
    """
    sequence = shard_sequence(shard, random)
    start = np.empty(sequence.max() + 1)
    start[sequence] = np.arange(len(sequence))
    return np.argsort(start[shard] + window * random.random(len(shard)), kind="stable")


# Shards of a URL fetched before they are needed, by a thread of each process that reads photos.

NUM_AHEAD = 2  # shards, where a window of them is shuffled; else all are wanted at once


class FetchAhead:
    """fetch: gets a shard by its number, or passes it over if another process is getting it, so that they share the
    work. window: see Shards. The thread ends when nothing refers to this object any more."""

    def __init__(self, fetch: Callable[[int], object], window: int | None):
        self.window = window
        self.process = os.getpid()  # where the thread is
        self.epoch: int | None = None
        self.wanted: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=_work, args=(weakref.ref(self), self.wanted, fetch), daemon=True).start()
        weakref.finalize(self, self.wanted.put, None)  # wakes the thread

    def begin(self, epoch: int, sequence: np.ndarray) -> None:
        """sequence: of the shards, as the epoch needs them."""
        self.epoch = epoch
        self.place = {shard: i for i, shard in enumerate(sequence.tolist())}
        self.sequence = sequence.tolist()
        self.asked = 0  # so many of them
        if self.window is None:
            self._ask(len(sequence))

    def reach(self, shard: int) -> None:
        """This shard is needed now."""
        place = self.place[shard]
        self.asked = max(self.asked, place + 1)
        self._ask(place + 1 + NUM_AHEAD)

    def _ask(self, end: int) -> None:
        for shard in self.sequence[self.asked : end]:
            self.wanted.put((self.epoch, shard))
        self.asked = max(self.asked, min(end, len(self.sequence)))


def _work(owner: weakref.ref, wanted: queue.SimpleQueue, fetch: Callable[[int], object]) -> None:
    while asked := wanted.get():
        epoch, shard = asked
        if _is_of_epoch(owner(), epoch):
            try:
                fetch(shard)
            except InputError:  # whoever needs it will try again, and tell
                continue


def _is_of_epoch(owner: FetchAhead | None, epoch: int) -> bool:
    return owner is not None and owner.epoch == epoch


# Shards: the tar files of a pack, read photo by photo. No torch and no pandas here.

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
