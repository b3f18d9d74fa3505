"""Load batches of photos with threads, in the order of a sampler."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Protocol

import torch

from carvision.data.threads import InThreads

BATCHES_AHEAD = 2  # that are read while the current one is used
PART = 8  # photos a task, at most: enough for little overhead, few enough to end soon


class Photos(Protocol):
    """A dataset whose batches are filled by several threads: `begin` returns a batch with memory for the photos of
    these keys, `read` fills in some of them, from position `start` of the batch on."""

    def begin(self, keys: list, pin_memory: bool, /) -> Any: ...

    def read(self, batch: Any, keys: list, start: int, /) -> None: ...


class Loader:
    """Iterate over the batches of a dataset in the order of `sampler`, which yields lists of keys.

    A batch is read in parts by all threads, up to two batches ahead. batch_size: of the sampler. num_workers: threads;
    0: batches are read in this one, when they are asked for. pin_memory: put them into memory from which a GPU copies
    while the processor does something else.
    """

    batch_sampler = None  # Lightning looks for one

    def __init__(
        self, dataset: Photos, sampler: Iterable[list], batch_size: int, num_workers: int = 0, pin_memory: bool = False
    ):
        self.dataset, self.batch_size = dataset, batch_size
        self.sampler: Any = sampler
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.started: InThreads | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    def start(self) -> None:
        """Start reading the next iteration's first batches now."""
        if self.num_workers and self.started is None:
            self.started = self._read()

    def __iter__(self) -> Iterator[Any]:  # a generator: Lightning calls iter() just to see whether it can
        parts, self.started = self.started or self._read(), None
        yield from filter(lambda batch: batch is not None, parts)

    def _read(self) -> InThreads:
        size = max(1, min(PART, self.batch_size // max(1, 2 * self.num_workers)))
        ahead = max(BATCHES_AHEAD * -(-self.batch_size // size), 2 * self.num_workers)
        num_threads = torch.get_num_threads()
        # Neither refers to this object, so that the threads end as soon as nothing else does
        read, parts = partial(_read_part, self.dataset), _parts(self.dataset, self.sampler, size, self.pin_memory)
        reading = InThreads(read, parts, self.num_workers, ahead, _use_one_thread)
        if num_threads > 1:
            torch.set_num_threads(num_threads)  # of this thread and of those that libraries start later
        return reading


def _parts(dataset: Photos, sampler: Iterable[list], size: int, pin_memory: bool) -> Iterator[tuple]:
    for keys in sampler:
        with torch.inference_mode(False):  # in which other threads could not write into the batch
            batch = dataset.begin(keys, pin_memory)
        for start in range(0, len(keys), size):
            yield batch, keys[start : start + size], start, start + size >= len(keys)
        del batch


def _read_part(dataset: Photos, batch: Any, keys: list, start: int, is_last: bool) -> Any:
    dataset.read(batch, keys, start)
    return batch if is_last else None


def _use_one_thread() -> None:
    """Have torch compute in this thread alone, rather than with threads of its own."""
    torch.get_num_threads()  # initialises the number, which would overwrite it later
    torch.set_num_threads(1)


class ResumableLoader(Loader):
    """Loader in the order of a TrainSampler that counts the batches of the current epoch. Lightning stores the count in
    checkpoints, and a run that resumes inside an epoch starts with the next batch."""

    given = 0

    def __iter__(self) -> Iterator[Any]:
        self.given = self.sampler.start
        yield from map(self._count, super().__iter__())  # not in a loop, whose variable would keep a batch too long

    def _count(self, batch: Any) -> Any:
        self.given += 1
        return batch

    def state_dict(self) -> dict:
        return {"given": self.given}

    def load_state_dict(self, state: dict) -> None:
        self.sampler.start = state["given"] % len(self.sampler)  # 0 after a whole epoch
