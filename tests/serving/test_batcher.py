"""The thread of the network: what it takes together, what it drops, and how it ends."""

import threading
from concurrent.futures import CancelledError

import pytest

from carvision.serving.batcher import Batcher
from carvision.serving.limits import MAX_PHOTOS, ApiError


class Gate:
    """A function for a Batcher that waits until it is let through, and notes its batches."""

    def __init__(self):
        self.batches, self.entered, self.open = [], threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, key, contents):
        self.batches.append((key, list(contents)))
        self.entered.release()
        self.open.acquire()
        if "broken" in contents:
            raise RuntimeError("the network is broken")
        return [f"{key}{content}" for content in contents]


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def batcher(gate):
    batcher = Batcher(gate)
    batcher.start()
    first = batcher.submit("a", 0)  # begun at once, though it is alone
    assert gate.entered.acquire(timeout=10)
    yield batcher
    gate.open.release(1000)
    assert first.result(10) == "a0"
    batcher.close(10)
    assert not batcher.thread.is_alive()


def test_what_waits_is_one_batch_of_its_key_and_at_most_32_photos(gate, batcher):
    jobs = [batcher.submit("ab"[number % 3 == 0], number, 5) for number in range(1, 13)]
    gate.open.release(100)
    assert [job.result(10) for job in jobs] == [f"{'ab'[number % 3 == 0]}{number}" for number in range(1, 13)]
    # 8 of "a" with 5 photos each are two batches; "b" came third
    assert gate.batches == [("a", [0]), ("a", [1, 2, 4, 5, 7, 8]), ("b", [3, 6, 9, 12]), ("a", [10, 11])]
    assert all(5 * len(contents) <= MAX_PHOTOS for _, contents in gate.batches)


def test_cancelled_jobs_are_dropped_and_late_ones_expire(gate, batcher):
    dropped, kept = batcher.submit("a", 1), batcher.submit("a", 2)
    assert dropped.cancel()
    gate.open.release(1)
    assert gate.entered.acquire(timeout=10)
    batcher.expire_s = -1
    late = batcher.submit("a", 3)
    gate.open.release(100)
    assert kept.result(10) == "a2"
    with pytest.raises(ApiError) as error:
        late.result(10)
    assert error.value.code == "timeout"
    with pytest.raises(CancelledError):
        dropped.result(10)
    assert gate.batches == [("a", [0]), ("a", [2])]


def test_an_error_is_of_its_batch_alone(gate, batcher):
    broken = batcher.submit("a", "broken")
    other = batcher.submit("b", 1)
    gate.open.release(100)
    with pytest.raises(RuntimeError):
        broken.result(10)
    assert other.result(10) == "b1" and batcher.is_alive


def test_no_more_photos_are_admitted_than_may_wait(gate):
    batcher = Batcher(gate, max_waiting=10)
    with batcher.admitted(4), batcher.admitted(6):
        assert batcher.num_admitted == 10
        with pytest.raises(ApiError) as error, batcher.admitted(1):
            pass
        assert (error.value.status, error.value.headers()) == (429, {"Retry-After": "1"})
    with pytest.raises(ZeroDivisionError), batcher.admitted(10):
        raise ZeroDivisionError
    assert batcher.num_admitted == 0


def test_closing_computes_what_waits(gate):
    batcher = Batcher(gate)
    batcher.start()
    jobs = [batcher.submit("a", number, MAX_PHOTOS) for number in range(3)]
    gate.open.release(100)
    batcher.close(10)
    assert [job.result(0) for job in jobs] == ["a0", "a1", "a2"] and not batcher.is_alive


def test_an_error_at_the_start_is_raised_where_it_was_started(gate):
    batcher = Batcher(gate, prepare=lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        batcher.start()
    assert not batcher.is_alive
