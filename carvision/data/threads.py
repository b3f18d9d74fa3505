"""Run a function over many photos in threads, in order and a bounded number ahead. Imports no torch.

Reading, decoding and resizing release Python's lock, so threads of this process do what worker processes would, without
a copy of the program, of its memory, or of the photos.
"""

import contextlib
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

AHEAD = 4  # tasks per thread that have been started and not yet been asked for
END_S = 5.0  # for all threads to finish what they are doing; one that waits for a disk longer ends with the process


class InThreads(Iterator):
    """Iterate over function(*task) for each task, in order. An error is raised in its turn, and ends the iteration.

    tasks: consumed lazily, and only by the thread that iterates, so that `ahead` of them wait or run at a time.
    num_threads: 0 runs each task in this thread, when it is asked for. prepare: called in each thread before the first
    task, and before the constructor returns.

    The threads end after the last task, with close() (contextlib.closing), when nothing refers to this object any more,
    and when the interpreter exits; tasks that wait are then dropped. No thread keeps the process from ending, unlike
    those of concurrent.futures' executor, which is why it is not used.
    """

    def __init__(
        self,
        function: Callable,
        tasks: Iterable[tuple],
        num_threads: int,
        ahead: int | None = None,
        prepare: Callable[[], object] = lambda: None,
    ):
        self.function, self.tasks = function, iter(tasks)
        self.ahead = AHEAD * num_threads if ahead is None else ahead
        self.waiting: deque[Future] = deque()
        self.queue: queue.SimpleQueue = queue.SimpleQueue()
        started = threading.Barrier(num_threads + 1)
        arguments = (self.queue, prepare, started)
        self.threads = [threading.Thread(target=_work, args=arguments, daemon=True) for _ in range(num_threads)]
        for thread in self.threads:
            thread.start()
        started.wait()
        self.end = weakref.finalize(self, _end, self.queue, self.threads)
        if num_threads:
            self._start_tasks()

    def __next__(self) -> Any:
        if not self.threads:
            return self.function(*next(self.tasks))
        if not self.waiting:
            self.close()
            raise StopIteration
        future = self.waiting.popleft()
        try:
            self._start_tasks()
            return future.result()
        except BaseException:  # also Ctrl-C
            self.close()
            raise
        finally:
            del future  # an error refers to this frame, and the future to the error

    def close(self) -> None:
        """End the threads, after the tasks that they are running."""
        self.waiting.clear()
        self.end()

    def _start_tasks(self) -> None:
        while len(self.waiting) < self.ahead and (task := next(self.tasks, None)) is not None:
            self.waiting.append(Future())
            self.queue.put((self.waiting[-1], self.function, task))


def _work(tasks: queue.SimpleQueue, prepare: Callable[[], object], started: threading.Barrier) -> None:
    prepare()
    started.wait()
    while task := tasks.get():
        _run(*task)
        del task  # a batch that has been handed out must not be kept until the next one


def _run(future: Future, function: Callable, arguments: tuple) -> None:
    try:
        future.set_result(function(*arguments))
    except BaseException as error:
        future.set_exception(error)


def _end(tasks: queue.SimpleQueue, threads: list[threading.Thread]) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            tasks.get_nowait()
    for _ in threads:
        tasks.put(None)
    ends = time.monotonic() + END_S
    for thread in threads:
        if thread is not threading.current_thread():  # in which this object may have been collected
            thread.join(max(0.0, ends - time.monotonic()))
