"""Trainings in processes of their own, which can be killed."""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

from tests import forked
from tests.small_runs import SMALL

STUCK = """
import signal, time
from carvision.training.module import LitClassifier
def step(self, batch, batch_idx):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    print("stuck", flush=True)
    time.sleep(600)
LitClassifier.%s = step
"""


def start(folder: Path, *overrides: str, stuck: str = "") -> multiprocessing.Process:
    """Start a training into `folder`, in a session of its own.

    stuck: the name of LitClassifier's step whose first call prints "stuck" and does not end. Its thread gets no SIGINT,
    as if it waited for a device.
    """
    words = [*SMALL, *overrides, f"run.dir={folder}"]
    return forked.start("carvision.train", *words, cwd=folder.parent, out=folder, first=STUCK % stuck if stuck else "")


def wait_for(condition: Callable[[], bool], process: multiprocessing.Process, seconds: float = 240) -> None:
    """Wait until the condition holds, or the process has ended."""
    ends = time.monotonic() + seconds
    while not condition() and process.exitcode is None:
        assert time.monotonic() < ends, "nothing happened"
        time.sleep(0.002)


def printed(folder: Path) -> str:
    """Return what the last start has printed: the log, then results."""
    files = [folder.with_name(f"{folder.name}.{stream}") for stream in ("stderr", "stdout")]
    return "".join(file.read_text(encoding="utf-8") for file in files if file.exists())
