"""One thread that owns the network: it takes whatever waits, and computes it as one batch."""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from carvision.serving.limits import ANSWER_S, MAX_PHOTOS, MAX_WAITING, timed_out, too_many_waiting


class Job:
    """Photos, or one other task, that wait for the network. result: a Future, which may be cancelled.

    key: jobs of the same key are computed together. num_photos: of the job, at most MAX_PHOTOS.
    """

    def __init__(self, key: Hashable, content: Any, num_photos: int):
        self.key, self.content, self.num_photos = key, content, num_photos
        self.result: Future = Future()
        self.since = time.monotonic()


class Batcher:
    """Runs jobs in one thread, in the order in which they came; those of one key together, at most MAX_PHOTOS photos.

    run(key, contents) -> a result for each content. It waits for nothing: a job that comes while the network is idle is
    begun at once, and those that come meanwhile are the next batch. Cancelled jobs are dropped, those that have waited
    for longer than expire_s are answered with the error timeout. on_batch(num_photos, seconds of waiting of each job,
    seconds of computing) is called after each batch. prepare: called in the thread first; start() raises its errors.
    """

    def __init__(
        self,
        run: Callable[[Hashable, Sequence[Any]], Sequence[Any]],
        prepare: Callable[[], object] = lambda: None,
        on_batch: Callable[[int, list[float], float], object] = lambda *_: None,
        max_waiting: int = MAX_WAITING,
        expire_s: float = ANSWER_S,
    ):
        self.run, self.prepare, self.on_batch = run, prepare, on_batch
        self.max_waiting, self.expire_s = max_waiting, expire_s
        self.jobs: deque[Job] = deque()
        self.num_admitted = 0  # photos that are being decoded, wait, or are in the network
        self.changed = threading.Condition()
        self.is_closing = False
        self.started: Future = Future()
        self.thread = threading.Thread(target=self._work, daemon=True, name="network")

    def start(self) -> None:
        """Start the thread, and wait until it is prepared."""
        self.thread.start()
        self.started.result()

    @property
    def is_alive(self) -> bool:
        return self.thread.is_alive() and not self.is_closing

    @contextmanager
    def admitted(self, num_photos: int) -> Iterator[None]:
        """Admit photos, which may be submitted within this block. Raises ApiError busy if too many are admitted."""
        with self.changed:
            if self.num_admitted + num_photos > self.max_waiting:
                raise too_many_waiting()
            self.num_admitted += num_photos
        try:
            yield
        finally:
            with self.changed:
                self.num_admitted -= num_photos

    def submit(self, key: Hashable, content: Any, num_photos: int = 1) -> Future:
        """Add a job of admitted photos and return its future result."""
        job = Job(key, content, num_photos)
        with self.changed:
            self.jobs.append(job)
            self.changed.notify()
        return job.result

    def close(self, timeout_s: float | None = None) -> None:
        """Compute what waits, then end the thread; wait for that."""
        with self.changed:
            self.is_closing = True
            self.changed.notify()
        self.thread.join(timeout_s)

    def _work(self) -> None:
        try:
            self.prepare()
        except BaseException as error:
            self.started.set_exception(error)
            return
        self.started.set_result(None)
        while batch := self._next_batch():
            began, results, failure = time.monotonic(), [], None
            try:
                results = self.run(batch[0].key, [job.content for job in batch])
            except Exception as error:  # of this batch; the next one may be computed
                failure = error
            seconds = time.monotonic() - began
            self.on_batch(sum(job.num_photos for job in batch), [began - job.since for job in batch], seconds)
            for number, job in enumerate(batch):
                if failure is None:
                    job.result.set_result(results[number])
                else:
                    job.result.set_exception(failure)
            del batch, results, job  # whose photos must not be kept until the next one

    def _next_batch(self) -> list[Job]:
        """Wait for jobs; return the next ones of one key, [] at the end."""
        with self.changed:
            while True:
                self.changed.wait_for(lambda: self.jobs or self.is_closing)
                if not self.jobs:
                    return []
                batch, rest, num_photos = [], deque(), 0
                key = None
                for job in self.jobs:
                    fits = not batch or (job.key == key and num_photos + job.num_photos <= MAX_PHOTOS)
                    if not fits:
                        rest.append(job)
                    elif self._begin(job):
                        key = job.key
                        batch.append(job)
                        num_photos += job.num_photos
                self.jobs = rest
                if batch:
                    return batch

    def _begin(self, job: Job) -> bool:
        """Mark a job as running, so that it can't be cancelled any more; False if it was, or has waited too long."""
        if not job.result.set_running_or_notify_cancel():
            return False
        if time.monotonic() - job.since > self.expire_s:
            job.result.set_exception(timed_out(self.expire_s))
            return False
        return True
