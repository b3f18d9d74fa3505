"""Start a trial's process; forked, if possible, from one that has already imported everything."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

from carvision.machine import FORK
from carvision.search.trials import end_with_parent
from carvision.whole_files import open_kept


class TrialProcess:
    """Run one trial in its own process. exitcode: None while it runs; negative if a signal ended it. Its output is
    appended to the file `output`."""

    def __init__(self, plan: Path, output: Path, single_process: bool):
        """Start the process. single_process: the training is one process, on a device that a forked one can use."""
        self.forked = FORK is not None and single_process
        if self.forked:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["carvision.search.trial"])
            # The process ends when the other end is closed, as by kill -9 of this one
            theirs, self.lifeline = context.Pipe(duplex=False)
            self.process = context.Process(target=_run_forked, args=(plan, output, theirs))
            self.process.start()
            theirs.close()
        else:
            with open_kept(output, "ab") as file:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "carvision.search.trial", str(plan)],
                    stdin=subprocess.PIPE, stdout=file, stderr=file, start_new_session=True,
                )  # fmt: skip

    @property
    def exitcode(self) -> int | None:
        return self.process.exitcode if self.forked else self.process.poll()

    def wait(self, seconds: float) -> None:
        if self.forked:
            self.process.join(seconds)
            return
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return

    def stop(self) -> None:
        """Ask the process to stop with a checkpoint."""
        if self.exitcode is None:
            self.process.terminate()

    def kill(self) -> None:
        if self.exitcode is None:
            self.process.kill()


def _run_forked(plan: Path, output: Path, lifeline) -> None:
    os.setsid()  # only the worker forwards a terminal's or scheduler's signals
    with open_kept(output, "ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    end_with_parent(lifeline.fileno())
    from carvision.search.trial import run_trial

    run_trial(plan)
