"""Trainings in processes of their own, which can be killed."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests import forked


def start(folder: Path, *overrides: str, stuck: str = "") -> multiprocessing.Process:
    """Start a training into `folder`, in a session of its own; its output goes to <folder>.out.

    stuck: the name of LitClassifier's step whose first call prints "stuck" and does not end. Its thread gets no SIGINT,
    as if it waited for a device.
    """
    process = forked.process(_train, folder, overrides, stuck)
    process.start()
    return process


def _train(folder: Path, overrides: tuple[str, ...], stuck: str) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell that runs the tests may have ignored
    out = os.open(f"{folder}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(out, stream)
    from carvision.errors import one_line_errors
    from carvision.training.module import LitClassifier
    from tests.small_runs import train

    def step(self, batch, batch_idx):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        print("stuck", flush=True)
        time.sleep(600)

    if stuck:
        setattr(LitClassifier, stuck, step)
    with one_line_errors():
        train(folder, *overrides)
    sys.stdout.flush()


def wait_for(condition: Callable[[], bool], process: multiprocessing.Process, seconds: float = 240) -> None:
    """Wait until the condition holds, or the process has ended."""
    ends = time.monotonic() + seconds
    while not condition() and process.exitcode is None:
        assert time.monotonic() < ends, "nothing happened"
        time.sleep(0.002)


def printed(folder: Path) -> str:
    return Path(f"{folder}.out").read_text(encoding="utf-8")
