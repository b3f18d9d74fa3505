"""Run one worker of a search: claim trial after trial, run each in its own process, and record its result in the study.

A trial's process is forked, if possible, from one that has already imported everything.
"""

import contextlib
import json
import logging
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from carvision.errors import InputError, one_line
from carvision.files.atomic import create_folder, open_kept, write_json
from carvision.files.folders import remove_checkpoints
from carvision.files.locks import is_locked
from carvision.search import queue
from carvision.search.build import Sweep
from carvision.search.queue import PRUNED, Heartbeat, Queue, best_first, folder_of
from carvision.system.runtime import STOP_SIGNALS, end_with_parent

log = logging.getLogger(__name__)

# A worker whose first trials all fail gives up after this many: the sampled values are unlikely to be the cause
MAX_FAILURES = 3
POLL_EVERY_S = 0.2
IDLE_POLL_S = 1.0  # of a worker that has no trial


class Interrupted(Exception):
    """Raised after a signal, with its number."""


class Worker:
    """Run trials until none is left. report: called with a trial when it starts and when it ends."""

    def __init__(self, sweep: Sweep, study: optuna.Study, storage: BaseStorage, report: Callable[[FrozenTrial], None]):
        self.sweep, self.study, self.storage, self.report = sweep, study, storage, report
        self.queue = Queue(sweep, study, storage)
        self.received: list[int] = []  # signal numbers
        self.num_failures, self.has_succeeded = 0, False
        trainer = sweep.config["trainer"]
        is_single = trainer["devices"] in (1, "1") and trainer["num_nodes"] == 1 and trainer["accelerator"] != "tpu"
        self.can_fork = is_single and sys.platform == "linux"  # elsewhere forking is not safe
        self.can_fork &= not any(key.partition(".")[0] == "trainer" for key in sweep.space.keys)

    def work(self) -> None:
        """Run trials until all have ended, also those that others run: one of them may die. Raise InputError if all
        fail, Interrupted after a signal."""
        before = {s: signal.signal(s, lambda number, _: self.received.append(number)) for s in STOP_SIGNALS}
        waiting = False
        try:
            while True:
                if self.received:
                    raise Interrupted(self.received[0])
                claimed = self.queue.next()
                if claimed:
                    self._run(*claimed)
                elif self.queue.is_over():
                    return
                else:
                    if not waiting:
                        log.info("no trial is left to start; waiting for those that other workers run")
                    time.sleep(IDLE_POLL_S)
                waiting = not claimed
        finally:
            self.queue.presence.end()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self, trial: Trial, heartbeat: Heartbeat) -> None:
        try:
            drawn = self.sweep.space.draw(trial)
            frozen = self.storage.get_trial(trial._trial_id)
            self.report(frozen)
            try:
                overrides = self.sweep.overrides_for(drawn)
            except InputError as error:  # keys that can't follow from the drawn values
                heartbeat.end()
                self._fail(frozen, str(error))
            else:
                run = self.sweep.folder / folder_of(trial.number)
                exitcode, output = self._train(frozen, heartbeat, overrides, run)
                heartbeat.end()
                if heartbeat.is_ours():
                    self._record_result(frozen, run, exitcode, output)
            drop_checkpoints(self.sweep, self.study)
        except UpdateFinishedTrialError:
            heartbeat.lost.set()
        finally:
            heartbeat.end()
        if heartbeat.lost.is_set():
            log.warning("trial %d: another worker has taken it, as this one was frozen or cut off", trial.number)
        else:
            self.report(self.storage.get_trial(trial._trial_id))

    def _train(self, trial: FrozenTrial, heartbeat: Heartbeat, overrides: list[str], run: Path) -> tuple[int, Path]:
        """Run the trial's process; return its exit status, and the file with its output."""
        output = self.sweep.folder / "logs" / f"{run.name}.txt"
        create_folder(output.parent)
        create_folder(run.parent)
        while True:
            while is_locked(run):  # the process of the worker that had this trial is just ending
                time.sleep(POLL_EVERY_S)
                if self.received or heartbeat.lost.is_set():
                    return 128, output
            if (run / "metrics.json").exists():  # that worker died before it recorded them
                return 0, output
            exitcode = self._run_process(trial, heartbeat, overrides, run, output)
            if exitcode in (0, PRUNED) or self.received or heartbeat.lost.is_set() or not is_locked(run):
                return exitcode, output  # else the process of another worker was first

    def _run_process(
        self, trial: FrozenTrial, heartbeat: Heartbeat, overrides: list[str], run: Path, output: Path
    ) -> int:
        plan = self.sweep.folder / queue.RUNNING / heartbeat.worker["id"] / queue.PLAN
        settings = {key: self.sweep.settings[key] for key in ("pruner", "min_epochs", "reduction_factor")}
        monitor, mode = self.sweep.monitor
        write_json(plan, {
            "words": overrides, "run": str(run), "folder": str(self.sweep.folder), "study": self.sweep.name,
            "storage": self.sweep.settings["storage"], "trial_id": trial._trial_id, "settings": settings,
            "worker": heartbeat.worker["id"], "num_epochs": self.sweep.num_epochs, "monitor": monitor, "mode": mode,
        })  # fmt: skip
        process = TrialProcess(plan, output, self.can_fork)
        signals_sent = 0
        try:
            while (exitcode := process.exitcode) is None:
                process.wait(POLL_EVERY_S)
                if heartbeat.lost.is_set():  # before it writes a checkpoint
                    process.kill()
                elif len(self.received) > signals_sent:
                    process.kill() if signals_sent else process.terminate()  # only the first one allows a checkpoint
                    signals_sent = len(self.received)
        except BaseException:
            process.kill()
            raise
        finally:
            plan.unlink(missing_ok=True)
        return exitcode

    def _record_result(self, trial: FrozenTrial, run: Path, exitcode: int, output: Path) -> None:
        epochs = self.storage.get_trial(trial._trial_id).last_step or 0
        for key, value in training_attributes(run, epochs).items():
            self.storage.set_trial_user_attr(trial._trial_id, key, value)
        if exitcode == 0 and (run / "metrics.json").exists():
            values, reason = objective_values(run, self.sweep.objective)
            if values is None:
                self._fail(trial, reason)
            else:
                self.has_succeeded = True
                self._finish(trial, TrialState.COMPLETE, values)
        elif exitcode == PRUNED:
            self._finish(trial, TrialState.PRUNED)
        elif self.received:
            self.queue.put_back(self.storage.get_trial(trial._trial_id), "interrupted", died=False)
        else:
            self._fail(trial, failure_reason(exitcode, output))

    def _fail(self, trial: FrozenTrial, reason: str) -> None:
        self.storage.set_trial_user_attr(trial._trial_id, queue.WHY, reason)
        self._finish(trial, TrialState.FAIL)
        if self.has_succeeded or "memory" in reason.lower():  # other values may need less memory
            return
        self.num_failures += 1
        if self.num_failures == MAX_FAILURES:
            raise InputError(
                f"sweep: the first {MAX_FAILURES} trials of this worker failed, the last with: {reason}. Fix that, and "
                f"give the same command again; their output is in {self.sweep.folder / 'logs'}"
            )

    def _finish(self, trial: FrozenTrial, state: TrialState, values: list[float] | None = None) -> None:
        try:
            self.study.tell(trial.number, values, state)
        except (UpdateFinishedTrialError, ValueError) as error:  # another worker has just taken the trial
            log.warning("trial %d: %s", trial.number, one_line(error, 200))


def training_attributes(run: Path, epochs: int) -> dict[str, float]:
    """Return the trial attributes known from its run's folder, also of an unfinished run. epochs: that it reported."""
    facts: dict[str, float] = {queue.EPOCHS: epochs}
    with contextlib.suppress(OSError, ValueError, KeyError):
        facts[queue.SECONDS] = json.loads((run / "seconds.json").read_text(encoding="utf-8"))["total"]
    if (run / "metrics.json").exists():
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        facts |= {queue.SECONDS: metrics["seconds"]["total"], queue.PARAMETERS: metrics["parameters"]}
        facts[queue.BEST_EPOCH] = metrics["best_epoch"] + 1
    return facts


def objective_values(run: Path, objective: dict[str, str]) -> tuple[list[float] | None, str]:
    """Return the objective's values in the best epoch, and ""; or None and the reason, if one is missing or NaN."""
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    known = {f"val/{name}": value for name, value in metrics["val"].items()}
    known |= {"seconds": metrics["seconds"]["total"], "parameters": metrics["parameters"]}
    for name in objective:
        if known.get(name) is None or math.isnan(known[name]):
            return None, f"{name} is undefined in the best epoch, or no metric of this training"
    return [float(known[name]) for name in objective], ""


def failure_reason(exitcode: int, output: Path) -> str:
    """Return why a trial's process failed: its signal, or the last line of its output."""
    if exitcode < 0:
        name = signal.Signals(-exitcode).name
        return f"its process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    text = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
    lines = text.strip().splitlines() or [f"its process ended with status {exitcode}"]
    return lines[-1].strip().removeprefix("error: ")[:500]


def drop_checkpoints(sweep: Sweep, study: optuna.Study) -> None:
    """Delete the checkpoints and models of all but the best trials. Another worker may be doing the same."""
    keep = {trial.number for trial in best_first(study)[: sweep.settings["keep"]]}
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished() and trial.number not in keep:
            run = sweep.folder / folder_of(trial.number)
            remove_checkpoints(run / "checkpoints")
            for name in ("model.safetensors", "model.json"):
                (run / name).unlink(missing_ok=True)


class TrialProcess:
    """The process of one trial. Its output is appended to the file `output`."""

    def __init__(self, plan: Path, output: Path, forked: bool):
        """Start the process. forked: from one that has imported everything, for a training in one process."""
        self.process: BaseProcess | subprocess.Popen
        if forked:
            from multiprocessing import forkserver  # not on Windows

            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["carvision.search.trial"])
            # The server inherits this: a terminal's Ctrl-C would end it, with a traceback, while it imports
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            forkserver.ensure_running()
            signal.signal(signal.SIGINT, before)
            # The trial's process ends when the other end is closed, as by kill -9 of this one
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
        self.terminate, self.kill = self.process.terminate, self.process.kill  # the former asks for a checkpoint

    @property
    def exitcode(self) -> int | None:
        """Return the exit status: None while it runs, negative if a signal ended it."""
        return self.process.poll() if isinstance(self.process, subprocess.Popen) else self.process.exitcode

    def wait(self, timeout_s: float) -> None:
        """Wait until it ends, at most so long."""
        if isinstance(self.process, subprocess.Popen):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout_s)
        else:
            self.process.join(timeout_s)


def _run_forked(plan: Path, output: Path, lifeline) -> None:
    os.setsid()  # only the worker forwards a terminal's or scheduler's signals
    with open_kept(output, "ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    end_with_parent(lifeline.fileno())
    from carvision.search.trial import run_trial

    run_trial(plan)
