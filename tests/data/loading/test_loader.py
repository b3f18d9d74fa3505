"""Batches that threads read: order, bounds, errors, and what is left behind."""

import subprocess
import sys
import threading

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
    """Batches of their own keys, as lists. wrong: the key that raises; gate: {key: event to wait for}."""

    def __init__(self, wrong: object = None, gate: dict | None = None):
        self.wrong, self.gate, self.begun, self.read_by = wrong, gate or {}, 0, {}

    def begin(self, keys: list, pin_memory: bool) -> list:
        self.begun += 1
        return [None] * len(keys)

    def read(self, batch: list, keys: list, start: int) -> None:
        for i, key in enumerate(keys, start):
            assert key not in self.gate or self.gate[key].wait(60)
            if key == self.wrong:
                raise InputError(f"shard of {key}: can't be fetched")
            batch[i], self.read_by[key] = key, threading.current_thread()


def batches_of(count: int, size: int) -> list[list[int]]:
    return np.arange(count * size).reshape(count, size).tolist()


def wait_until(condition) -> bool:
    for _ in range(60_000):
        if condition():
            return True
        threading.Event().wait(0.001)
    raise AssertionError("nothing happened")


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
    numbers, wanted = Numbers(gate={0: gate}), batches_of(50, 16)
    loader = iter(Loader(numbers, wanted, 16, 2))
    others = threading.Timer(0, lambda: wait_until(lambda: len(numbers.read_by) >= 16) and gate.set())
    others.start()
    for number in range(20):
        assert next(loader) == wanted[number] and numbers.begun <= number + 4  # two ahead, and one is begun
    others.join()
    loader.close()


def test_small_batches_are_read_by_all_threads():
    numbers, read, together = Numbers(), Numbers.read, threading.Barrier(4, timeout=60)
    numbers.read = lambda *part: read(numbers, *part) or together.wait()  # four at the same time
    assert list(Loader(numbers, batches_of(2, 4), 4, 4)) == batches_of(2, 4)


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
    for _ in range(2):
        loader.start()
        assert wait_until(lambda: len(numbers.read_by) == 8) and numbers.begun <= 3
    assert list(loader) == list(loader) == batches_of(5, 4)
    loader.start()  # and is dropped


def test_a_task_in_progress_ends_and_those_that_wait_are_dropped_with_the_iterator():
    gate = threading.Event()
    numbers = Numbers(gate={4: gate})
    loader = iter(Loader(numbers, batches_of(50, 4), 4, 1))
    next(loader)
    threading.Timer(0.05, gate.set).start()
    del loader  # waits for 4
    assert 4 in numbers.read_by and len(numbers.read_by) < 12


def test_reading_threads_do_not_multiply_torchs_threads():
    numbers, before = Numbers(), torch.get_num_threads()
    numbers.read = lambda batch, keys, start: batch.append(torch.get_num_threads())
    torch.set_num_threads(2)
    try:
        assert list(Loader(numbers, batches_of(1, 1), 1, 2)) == [[None, 1]] and torch.get_num_threads() == 2
        assert list(InThreads(torch.get_num_threads, [()], 1)) == [2]  # threads that others start
    finally:
        torch.set_num_threads(before)


END = """
import threading, time
from carvision.data import threads

threads.END_S = {patience}
begun = threading.Event()
def read(number):
    begun.set()
    time.sleep({seconds})
    print("read", number, flush=True)

results = threads.InThreads(read, [(number,) for number in range(9)], 1)
begun.wait()
{then}
"""


@pytest.mark.parametrize(
    ("seconds", "patience", "then", "code", "printed"),
    [(0.2, 60, "", 0, "read 0\n"), (0.2, 60, "raise SystemExit(138)", 138, "read 0\n"), (600, 0.1, "", 0, "")],
)
def test_the_end_of_the_process_waits_for_a_photo_and_not_for_a_disk(seconds, patience, then, code, printed):
    program = END.format(seconds=seconds, patience=patience, then=then)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (code, printed, "")


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
    first, other = (ResumableLoader(Numbers(), TrainSampler(np.zeros(50), 4), 4, num_workers) for _ in range(2))
    keys = list(TrainSampler(np.zeros(50), 4))
    for given in (0, 1, 5, len(keys)):
        first.given, batches = 0, iter(first)
        assert [next(batches) for _ in range(given)] == keys[:given] and first.state_dict() == {"given": given}
        batches.close()
        other.load_state_dict({"given": given})
        assert list(other) == (keys[given:] or keys) and list(other) == keys
