"""Batches from the processes that read photos to the one that trains, in memory that both see and that is used again.

torch makes a file of shared memory for each tensor of each batch. Its pages are handed out by the kernel one by one and
filled with zeros, and its name travels through a socket, which takes as long as a quarter of the decoding of small
photos. Here the memory is there before the readers begin, and what is small travels through the pipe itself.
"""

import contextlib
import io
import itertools
import mmap
import os
import pickle
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from carvision.system.machine import FORK

# Two batches that it is ahead, and those that the training process still has. Who keeps more of them gets the others
# through the pipe, several copies later.
SLOTS_OF_READER = 6
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # only pages that are used count as memory; new in Python 3.13
NUMBERS = itertools.count()
ALL: "weakref.WeakValueDictionary[int, Slots]" = weakref.WeakValueDictionary()  # by number: those of living loaders
begun: "Slot | None" = None  # where this process, a reader, puts the photos of the batch at hand


def handed_over(batches: Dataset, num_readers: int, num_bytes: int) -> Dataset:
    """A dataset whose items are batches, for a loader with so many processes that read. num_bytes: at most what
    empty_bytes gives for one batch. The dataset itself where nothing can be shared."""
    if num_readers and FORK:
        with contextlib.suppress(OSError):  # a system that does not give memory before it is used
            return HandedOver(batches, num_readers, num_bytes)
    return batches


class Slots:
    """Memory for the batches of the readers that are forked after it was made, num_bytes a batch.

    A reader takes a slot; the process that has unpickled the batch frees it, once nothing there refers to its tensors.
    Pages that were never used cost nothing, and of the free slots the first is taken, so that no more of them are used
    than are needed at a time.
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
        with contextlib.suppress(OSError):  # sandboxes that can't
            for slot in range(len(self.taken)):
                if not self.taken[slot]:
                    self.memory.madvise(mmap.MADV_REMOVE, slot * self.num_bytes, self.num_bytes)

    def open(self, slot: int) -> Tensor:
        """uint8 (num_bytes,), in the training process; the slot is free when it and all its views are gone."""
        values = self.bytes_of(slot)
        weakref.finalize(values, _free, self.taken, slot, os.getpid()).atexit = False
        return torch.from_numpy(values)


def _free(taken: mmap.mmap, slot: int, process: int) -> None:
    if os.getpid() == process:  # else a fork of it, whose copy of the tensor is of no account
        taken[slot] = 0


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
    """uint8 (num_bytes,), not filled; in a process that reads photos in its slot, if it has a free one."""
    part = begun.cut(num_bytes) if begun else None
    return torch.empty(num_bytes, dtype=torch.uint8) if part is None else part


class HandedOver(Dataset):
    """See handed_over."""

    def __init__(self, batches: Dataset, num_readers: int, num_bytes: int):
        self.batches, self.slots = batches, Slots(num_readers, num_bytes)

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
            if number is not None:
                self.slots.taken[number] = 0
            raise
        finally:
            begun = None


class Parcel:
    """A batch on its way, packed at once, so that what can't be is an error of the reader. What is unpickled is the
    batch itself."""

    def __init__(self, batch: Any, slot: Slot | None):
        file = io.BytesIO()
        _Pack(file, slot).dump(batch)
        self.data, self.place = file.getvalue(), slot and (slot.slots.number, slot.number)

    def __reduce__(self):
        return _unpack, (self.data, self.place)


class _Pack(pickle.Pickler):
    """Tensors are noted as where they lie in the slot; others, small ones as a rule, as their bytes. torch would make a
    file of shared memory for each."""

    def __init__(self, file: io.BytesIO, slot: Slot | None):
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.slot = slot

    def persistent_id(self, values: Any) -> tuple | None:  # called for each object that is pickled
        if not isinstance(values, Tensor):
            return None
        if self.slot is not None and self.slot.holds(values):
            return values.shape, values.stride(), values.storage_offset()
        order = sorted(range(values.ndim), key=values.stride, reverse=True)  # NumPy would exchange what lies otherwise
        return values.permute(order).numpy(), np.argsort(order).tolist()


class _Unpack(pickle.Unpickler):
    def __init__(self, data: bytes, slot: Tensor | None):
        super().__init__(io.BytesIO(data))
        self.slot = slot

    def persistent_load(self, note: tuple) -> Tensor:
        if len(note) == 3:
            assert self.slot is not None  # a note of three is of a batch with a slot
            return self.slot.as_strided(*note)
        array, order = note
        return torch.from_numpy(array).permute(order)


def _unpack(data: bytes, place: tuple[int, int] | None) -> Any:
    return _Unpack(data, place and ALL[place[0]].open(place[1])).load()
