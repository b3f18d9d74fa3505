"""Work shared by several processes that read photos, its results in order."""

import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from carvision.data.inspection import become_worker
from carvision.errors import InputError


def in_processes(function: Callable, tasks: Iterable[tuple], num_workers: int, ahead: int = 4) -> Generator:
    """function(*task) of each, in order; only a few tasks are under way at a time, however many there are.

    num_workers: processes, each of which imports the function's module; 0: in this one. ahead: tasks that are made and
    wait, for each process. To be closed (contextlib.closing), so that the processes end.
    """
    if num_workers == 0:
        for task in tasks:
            yield function(*task)
        return
    # Spawned, not forked: the parent may hold threads and locks (a progress bar, torch), which a fork copies halfway.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(num_workers, context, initializer=become_worker)
    waiting: deque = deque()
    done = False
    try:
        for task in tasks:
            with _interrupts_held():
                waiting.append(pool.submit(function, *task))
            if len(waiting) >= ahead * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        done = True
    except BrokenProcessPool:
        raise InputError(
            "num_workers: a process that reads photos died, perhaps for want of memory; "
            f"use fewer than {num_workers}, or 0 to read in the main process"
        ) from None
    finally:
        for process in () if done else set(multiprocessing.active_children()) - others:
            process.terminate()  # an interrupted command does not wait for tasks that may take minutes
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """A Ctrl-C in here is delivered at the end. Processes that start in here inherit that and never see one, also
    not while they still import and would print a traceback each."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
