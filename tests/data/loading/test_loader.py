"""Batches that threads read: order, bounds, errors, and what is left behind."""

import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
import torch

from carvision.data.loading.loader import Loader, ResumableLoader
from carvision.data.loading.samplers import TrainSampler
from carvision.data.threads import InThreads
from carvision.errors import InputError
from tests.conftest import ROOT
from tests.data.loading.test_dataset import BAD, NUM, photos_of, table  # noqa: F401 - a fixture


class Numbers:
    """Batches of their own keys, in a list. `gates` {key: event to wait for}; `wrong`: the key that raises."""

    def __init__(self, gates: dict[int, threading.Event] | None = None, wrong: int = -1):
        self.gates, self.wrong, self.begun = gates or {}, wrong, 0
        self.read_by: dict[int, threading.Thread] = {}

    def begin(self, keys: list[int], pin_memory: bool) -> list[int]:
        self.begun += 1
        return [-1] * len(keys)

    def read(self, batch: list[int], keys: list[int], start: int) -> None:
        for i, key in enumerate(keys, start):
            if key in self.gates:
                assert self.gates[key].wait(60)
            if key == self.wrong:
                raise InputError(f"shard of {key}: can't be fetched")
            batch[i], self.read_by[key] = key, threading.current_thread()


def batches_of(count: int, size: int) -> list[list[int]]:
    return np.arange(count * size).reshape(count, size).tolist()


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = {*threading.enumerate()}
    yield
    assert {*threading.enumerate()} <= before


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_batches_come_whole_and_in_order(size, num_workers):
    numbers, wanted = Numbers(), batches_of(9, size)
    loader = Loader(numbers, wanted, size, num_workers)
    assert len(loader) == 9 and list(loader) == list(loader) == wanted
    threads = {*numbers.read_by.values()}
    assert (threads == {threading.current_thread()}) == (num_workers == 0) and len(threads) <= max(1, num_workers)


def test_a_slow_photo_delays_no_other_and_read_ahead_is_bounded():
    gate = threading.Event()
    numbers, wanted = Numbers({0: gate}), batches_of(50, 16)
    loader = iter(Loader(numbers, wanted, 16, 2))
    release = threading.Timer(0, lambda: wait_until(lambda: len(numbers.read_by) >= 16) and gate.set())
    release.start()  # while 0 waits, its batch is not given, and others are read
    assert next(loader) == wanted[0] and numbers.begun <= 4
    release.join()
    for number in range(1, 20):
        assert next(loader) == wanted[number] and numbers.begun <= number + 4  # it, two more, and the next one's begin
    loader.close()


def wait_until(condition) -> bool:
    ended = threading.Event()
    for _ in range(60_000):
        if condition():
            return True
        ended.wait(0.001)
    raise AssertionError("nothing happened")


def test_small_batches_are_read_by_all_threads():
    """One of a batch's photos waits until the other three are being read at the same time."""
    together = threading.Barrier(4, timeout=60)

    class Together(Numbers):
        def read(self, batch, keys, start):
            together.wait()
            super().read(batch, keys, start)

    assert list(Loader(Together(), batches_of(2, 4), 4, 4)) == batches_of(2, 4)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_is_raised_at_its_batch_and_ends_the_reading(num_workers):
    loader = iter(Loader(Numbers(wrong=21), batches_of(9, 4), 4, num_workers))
    assert [next(loader) for _ in range(5)] == batches_of(5, 4)
    with pytest.raises(InputError, match="shard of 21"):
        next(loader)
    assert list(loader) == []


def test_it_can_begin_before_the_first_batch_is_asked_for():
    numbers = Numbers()
    loader = Loader(numbers, batches_of(5, 4), 4, 1)
    iter(loader)  # as Lightning does, to see whether it can
    assert numbers.begun == 0
    loader.start()
    wait_until(lambda: len(numbers.read_by) >= 8)
    begun = numbers.begun
    loader.start()
    assert numbers.begun == begun and list(loader) == list(loader) == batches_of(5, 4)
    loader.start()  # and is dropped


def test_a_task_in_progress_ends_and_those_that_wait_are_dropped_with_the_iterator():
    gate, numbers = threading.Event(), None
    numbers = Numbers({4: gate})
    loader = iter(Loader(numbers, batches_of(50, 4), 4, 1))
    next(loader)
    threading.Timer(0.05, gate.set).start()
    del loader  # waits for 4
    assert 4 in numbers.read_by and len(numbers.read_by) < 12


def test_reading_threads_do_not_multiply_torchs_threads():
    class Counting(Numbers):
        def read(self, batch, keys, start):
            batch[start : start + len(keys)] = [torch.get_num_threads()] * len(keys)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert list(Loader(Counting(), batches_of(1, 4), 4, 2)) == [[1] * 4] and torch.get_num_threads() == 2
        assert list(InThreads(torch.get_num_threads, [()], 1)) == [2]  # threads that others start
    finally:
        torch.set_num_threads(before)


END = """
import threading, time
from carvision.data.threads import InThreads

begun = threading.Event()
def read(number):
    begun.set()
    time.sleep({seconds})
    print("read", number, flush=True)

results = InThreads(read, [(number,) for number in range(9)], 1)
begun.wait()
{then}
"""


@pytest.mark.parametrize("then, code", [("", 0), ("raise KeyboardInterrupt", 130), ("raise SystemExit(138)", 138)])
def test_the_end_of_the_process_waits_for_a_photo_and_no_more(then, code):
    program = END.format(seconds=0.2, then=then)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "read 0\n" and done.returncode in (code, -2) and "Fatal" not in done.stderr


def test_a_thread_that_a_disk_keeps_waiting_does_not_keep_the_process():
    program = "import carvision.data.threads as t; t.END_S = 0.1" + END.format(seconds=600, then="")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_number_of_threads_changes_nothing(table):  # noqa: F811
    found = []
    for num_workers in (0, 1, 3):
        sampler = TrainSampler(np.zeros(NUM), 3, seed=5)
        sampler.set_epoch(2)
        found.append(list(Loader(photos_of(table), sampler, 3, num_workers)))
    for one, *others in zip(*found, strict=True):
        for other in others:
            assert all(torch.equal(one[name], other[name]) for name in ("images", "index", "draws", "valid"))
            assert one["reasons"] == other["reasons"]
    bad = {int(row) for batch in found[2] for row, why in zip(batch["index"], batch["reasons"], strict=True) if why}
    assert bad == BAD


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_resumes_after_any_batch(num_workers):
    create = partial(TrainSampler, np.zeros(50), 4, seed=1)
    keys = list(create())
    for given in (0, 1, 5, len(keys)):
        loader = ResumableLoader(Numbers2(), create(), 4, num_workers)
        batches = iter(loader)
        assert [next(batches) for _ in range(given)] == keys[:given]
        state = loader.state_dict()
        assert state == {"given": given}
        other = ResumableLoader(Numbers2(), create(), 4, num_workers)
        other.load_state_dict(state)
        assert list(other) == (keys[given:] or keys) and list(other) == keys
        batches.close()


class Numbers2(Numbers):
    """Batches of TrainSampler's keys."""

    def read(self, batch, keys, start):
        batch[start : start + len(keys)] = keys
