"""Pass batches from workers to the training process in shared memory that is reused.

torch creates a shared-memory file for each tensor of each batch. The kernel zeroes its pages one by one, and its name
goes through a socket, which takes a quarter of the time of decoding small photos. Here the memory is allocated before
the workers start, and small values go through the pipe itself.
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

# Two batches prefetched, and those that the training process still holds. If it keeps more, the others go through the
# pipe, with several copies.
BUFFERS_PER_WORKER = 6
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # only used pages count as memory; in Python from 3.13
NUMBERS = itertools.count()
ALL: "weakref.WeakValueDictionary[int, SharedBuffers]" = weakref.WeakValueDictionary()  # by number, of living loaders
current_buffer: "Buffer | None" = None  # in a worker: the buffer of the batch being read


def share_batches(batches: Dataset, num_workers: int, num_bytes: int) -> Dataset:
    """Wrap a dataset whose items are batches, for a loader with num_workers workers; return it as it is if memory can't
    be shared. num_bytes: the most that `empty_bytes` is asked for per batch."""
    if num_workers and FORK:
        with contextlib.suppress(OSError):  # a system without memory overcommit
            return SharedBatches(batches, num_workers, num_bytes)
    return batches


class SharedBuffers:
    """Buffers of num_bytes for the batches of the workers that are forked afterwards.

    A worker takes a buffer; the process that unpickles the batch frees it when nothing refers to its tensors any more.
    Unused pages cost nothing, and the first free buffer is taken, so that no more are used than needed at a time.
    """

    def __init__(self, num_workers: int, num_bytes: int):
        self.num_bytes = -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        num_buffers = num_workers * BUFFERS_PER_WORKER
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | NO_RESERVE
        self.memory, self.taken = mmap.mmap(-1, num_buffers * self.num_bytes, flags=flags), mmap.mmap(-1, num_buffers)
        self.address = np.frombuffer(self.memory, np.uint8).ctypes.data
        self.number = next(NUMBERS)
        ALL[self.number] = self

    def take(self, worker: int) -> "int | None":
        """Take a free buffer of this worker, which alone takes these; None if all are taken."""
        for buffer in range(worker * BUFFERS_PER_WORKER, (worker + 1) * BUFFERS_PER_WORKER):
            if not self.taken[buffer]:
                self.taken[buffer] = 1
                return buffer
        return None

    def bytes_of(self, buffer: int) -> np.ndarray:
        return np.frombuffer(self.memory, np.uint8, self.num_bytes, buffer * self.num_bytes)

    def release_free(self) -> None:
        """Return the pages of free buffers to the kernel. Call it only while no worker reads."""
        with contextlib.suppress(OSError):  # not possible in some sandboxes
            for buffer in range(len(self.taken)):
                if not self.taken[buffer]:
                    self.memory.madvise(mmap.MADV_REMOVE, buffer * self.num_bytes, self.num_bytes)

    def open(self, buffer: int) -> Tensor:
        """Return a buffer in the training process, uint8 (num_bytes,); it is freed when this tensor and its views
        are."""
        values = self.bytes_of(buffer)
        weakref.finalize(values, _free, self.taken, buffer, os.getpid()).atexit = False
        return torch.from_numpy(values)


def _free(taken: mmap.mmap, buffer: int, process: int) -> None:
    if os.getpid() == process:  # not in a fork, which only has a copy of the tensor
        taken[buffer] = 0


class Buffer:
    """The buffer of the batch that a worker is reading, filled from its start."""

    def __init__(self, buffers: SharedBuffers, number: int):
        self.buffers, self.number = buffers, number
        self.rest = torch.from_numpy(buffers.bytes_of(number))

    def cut(self, num_bytes: int) -> Tensor | None:
        """Take the next num_bytes, uint8; None if the rest is smaller."""
        if num_bytes > len(self.rest):
            return None
        part, self.rest = self.rest[:num_bytes], self.rest[num_bytes:]
        return part

    def holds(self, values: Tensor) -> bool:
        """Check whether a tensor is a view of what `cut` returned."""
        return values.untyped_storage().data_ptr() == self.buffers.address + self.number * self.buffers.num_bytes


def empty_bytes(num_bytes: int) -> Tensor:
    """Return an uninitialised uint8 (num_bytes,); in a worker, in its shared buffer if there is a free one."""
    part = current_buffer.cut(num_bytes) if current_buffer else None
    return torch.empty(num_bytes, dtype=torch.uint8) if part is None else part


class SharedBatches(Dataset):
    """A dataset of batches whose workers return them in shared memory, see `share_batches`."""

    def __init__(self, batches: Dataset, num_workers: int, num_bytes: int):
        self.batches, self.buffers = batches, SharedBuffers(num_workers, num_bytes)

    def __getitem__(self, keys: Any) -> Any:
        worker = get_worker_info()
        if worker is None:
            return self.batches[keys]
        global current_buffer
        number = self.buffers.take(worker.id)
        current_buffer = buffer = None if number is None else Buffer(self.buffers, number)
        try:
            return _PickledBatch(self.batches[keys], buffer)
        except BaseException:
            if number is not None:
                self.buffers.taken[number] = 0
            raise
        finally:
            current_buffer = None


class _PickledBatch:
    """A batch pickled by the worker at once, so that errors are raised there. Unpickles to the batch itself."""

    def __init__(self, batch: Any, buffer: Buffer | None):
        file = io.BytesIO()
        _Pack(file, buffer).dump(batch)
        self.data, self.location = file.getvalue(), buffer and (buffer.buffers.number, buffer.number)

    def __reduce__(self):
        return _unpack, (self.data, self.location)


class _Pack(pickle.Pickler):
    """Pickle tensors in the buffer as their position, and others, mostly small ones, as their bytes. torch would create
    a shared-memory file for each."""

    def __init__(self, file: io.BytesIO, buffer: Buffer | None):
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.buffer = buffer

    def persistent_id(self, values: Any) -> tuple | None:  # called for each object that is pickled
        if not isinstance(values, Tensor):
            return None
        if self.buffer is not None and self.buffer.holds(values):
            return values.shape, values.stride(), values.storage_offset()
        order = sorted(range(values.ndim), key=values.stride, reverse=True)  # NumPy would not keep another memory order
        return values.permute(order).numpy(), np.argsort(order).tolist()


class _Unpack(pickle.Unpickler):
    def __init__(self, data: bytes, buffer: Tensor | None):
        super().__init__(io.BytesIO(data))
        self.buffer = buffer

    def persistent_load(self, note: tuple) -> Tensor:
        if len(note) == 3:
            assert self.buffer is not None  # notes of three entries come from a batch with a buffer
            return self.buffer.as_strided(*note)
        array, order = note
        return torch.from_numpy(array).permute(order)


def _unpack(data: bytes, location: tuple[int, int] | None) -> Any:
    return _Unpack(data, location and ALL[location[0]].open(location[1])).load()
