"""Shards of a URL fetched before they are needed, by a thread of each process that reads photos."""

import os
import queue
import threading
import weakref
from collections.abc import Callable

import numpy as np

from carvision.errors import InputError

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
