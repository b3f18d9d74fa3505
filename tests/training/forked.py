"""Training in processes of their own, which can be killed. All are forked from one that has imported everything, so
that a start takes a second."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.small_runs"])


def start(folder: Path, *overrides: str) -> multiprocessing.Process:
    """A training that writes to `folder`; what it prints is in <folder>.out. A session of its own, as a terminal's."""
    process = CONTEXT.Process(target=_train, args=(folder, overrides))
    process.start()
    return process


def _train(folder: Path, overrides: tuple[str, ...]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell that runs the tests may have ignored
    out = os.open(f"{folder}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(out, stream)
    from carvision.errors import one_line_errors
    from tests.small_runs import train

    with one_line_errors():
        train(folder, *overrides)
    sys.stdout.flush()


def wait_for(condition: Callable[[], bool], process: multiprocessing.Process, seconds: float = 240) -> None:
    """Returns as soon as the condition holds, or the process has ended."""
    ends = time.monotonic() + seconds
    while not condition() and process.exitcode is None:
        assert time.monotonic() < ends, "nothing happened"
        time.sleep(0.002)


def printed(folder: Path) -> str:
    return Path(f"{folder}.out").read_text()
