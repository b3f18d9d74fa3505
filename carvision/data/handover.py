"""Batches from the processes that read photos to the one that trains, in memory that both see and that is used again.

torch makes a file of shared memory for each tensor of each batch. Its pages are handed out by the kernel one by one and
filled with zeros, and its name travels through a socket, which takes as long as a quarter of the decoding of small
photos. Here the memory is there before the readers begin, and what is small travels through the pipe itself.
"""

import io
import itertools
import mmap
import pickle
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

SLOTS_OF_READER = 6  # two batches that it is ahead, and those that the training process still has
SMALL = 2**16  # bytes of a tensor that travels through the pipe
NO_RESERVE = 0x4000  # MAP_NORESERVE, of which Python 3.11 does not know the name: only what is used is memory
NUMBERS = itertools.count()
ALL: "weakref.WeakValueDictionary[int, Slots]" = weakref.WeakValueDictionary()  # by number: those of living loaders
begun: "Slot | None" = None  # where this process, a reader, puts the photos of the batch at hand


class Slots:
    """Memory for the batches of the readers that are forked after it was made, num_bytes a batch.

    A slot is free again once nothing in the training process refers to its tensors. Pages that were never used cost
    nothing, and of the free slots the first is taken, so that no more of them are used than are needed at a time.
    """

    def __init__(self, num_readers: int, num_bytes: int):
        self.num_bytes = -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        num_slots = num_readers * SLOTS_OF_READER
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | NO_RESERVE
        self.memory, self.taken = mmap.mmap(-1, num_slots * self.num_bytes, flags=flags), mmap.mmap(-1, num_slots)
        self.address = np.frombuffer(self.memory, np.uint8).ctypes.data
        self.number = next(NUMBERS)
        ALL[self.number] = self

    def take(self, reader: int) -> "int | None":
        """A free slot of this reader, which alone takes its slots."""
        for slot in range(reader * SLOTS_OF_READER, (reader + 1) * SLOTS_OF_READER):
            if not self.taken[slot]:
                self.taken[slot] = 1
                return slot
        return None

    def bytes_of(self, slot: int) -> np.ndarray:
        return np.frombuffer(self.memory, np.uint8, self.num_bytes, slot * self.num_bytes)

    def give_back(self) -> None:
        """The pages of free slots to the kernel. To be called while no reader is at work."""
        for slot in range(len(self.taken)):
            if not self.taken[slot]:
                self.memory.madvise(mmap.MADV_REMOVE, slot * self.num_bytes, self.num_bytes)

    def open(self, slot: int) -> Tensor:
        """uint8 (num_bytes,), in the training process; the slot is free when it and all its views are gone."""
        values = self.bytes_of(slot)
        weakref.finalize(values, self.taken.__setitem__, slot, 0).atexit = False
        return torch.from_numpy(values)


class Slot:
    """The slot of a batch that a reader makes, filled from its start."""

    def __init__(self, slots: Slots, number: int):
        self.slots, self.number = slots, number
        self.rest = torch.from_numpy(slots.bytes_of(number))

    def cut(self, num_bytes: int) -> Tensor | None:
        if num_bytes > len(self.rest):
            return None
        part, self.rest = self.rest[:num_bytes], self.rest[num_bytes:]
        return part

    def holds(self, values: Tensor) -> bool:
        """Of uint8, as what cut() gives and all its views are."""
        return values.untyped_storage().data_ptr() == self.slots.address + self.number * self.slots.num_bytes


def empty_bytes(num_bytes: int) -> Tensor:
    """uint8 (num_bytes,), not filled; in a process that reads photos where the training process sees it, too."""
    if get_worker_info() is None:
        return torch.empty(num_bytes, dtype=torch.uint8)
    part = begun.cut(num_bytes) if begun else None
    if part is None:  # as torch's own collating does it
        shared = torch.UntypedStorage._new_shared(num_bytes, device="cpu")
        part = torch.empty(0, dtype=torch.uint8).set_(shared, 0, (num_bytes,))
    return part


class HandedOver(Dataset):
    """A dataset whose items are batches, for a loader with processes that are forked. num_bytes: of what empty_bytes
    gives for a batch."""

    def __init__(self, batches: Dataset, num_readers: int, num_bytes: int):
        self.batches, self.slots = batches, Slots(num_readers, num_bytes)

    def epoch_of(self, batches: Iterator) -> Iterator:
        """A loader's pass, to its end; after it the memory is given back until the next one."""
        yield from batches
        self.slots.give_back()

    def __getitem__(self, keys: Any) -> Any:
        reader = get_worker_info()
        if reader is None:
            return self.batches[keys]
        global begun
        number = self.slots.take(reader.id)
        begun = slot = None if number is None else Slot(self.slots, number)
        try:
            return Parcel(self.batches[keys], slot)
        except BaseException:
            if slot is not None:
                self.slots.taken[number] = 0
            raise
        finally:
            begun = None


class Parcel:
    """A batch on its way: what is unpickled is the batch itself."""

    def __init__(self, batch: Any, slot: Slot | None):
        self.batch, self.slot = batch, slot

    def __reduce__(self):
        file, large = io.BytesIO(), []
        _Pack(file, self.slot, large).dump(self.batch)
        place = None if self.slot is None else (self.slot.slots.number, self.slot.number)
        return _unpack, (file.getvalue(), place, large)


class _Pack(pickle.Pickler):
    """Tensors are noted as where they lie in the slot, as bytes, or as their place in `large`, for torch to send."""

    def __init__(self, file: io.BytesIO, slot: Slot | None, large: list[Tensor]):
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.slot, self.large = slot, large

    def persistent_id(self, values: Any) -> tuple | None:
        if not isinstance(values, Tensor):
            return None
        if self.slot is not None and self.slot.holds(values):
            return "slot", values.shape, values.stride(), values.storage_offset()
        if values.nbytes <= SMALL and values.device.type == "cpu":
            return "bytes", values.numpy()
        self.large.append(values)
        return "large", len(self.large) - 1


class _Unpack(pickle.Unpickler):
    def __init__(self, data: bytes, slot: Tensor | None, large: list[Tensor]):
        super().__init__(io.BytesIO(data))
        self.slot, self.large = slot, large

    def persistent_load(self, note: tuple) -> Tensor:
        kind, *rest = note
        if kind == "slot":
            return self.slot.as_strided(*rest)
        return torch.from_numpy(rest[0]) if kind == "bytes" else self.large[rest[0]]


def _unpack(data: bytes, place: tuple[int, int] | None, large: list[Tensor]) -> Any:
    slot = None if place is None else ALL[place[0]].open(place[1])
    return _Unpack(data, slot, large).load()
