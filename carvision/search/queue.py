"""Choose the next trial of a search: each runs once, no more than requested, and one whose worker has died continues.

All decisions follow from the study alone, so that any number of workers agree without talking to each other. A
continued trial is a new Optuna trial with its own number; together they count as one trial of the search, under the
first one's number. If two workers requeue the same trial, the copy with the lower number runs.

A worker's death is seen on its own machine at once: it holds a lock on a file in the search's folder, which the system
releases when the process ends. Other machines see that a counter, which is stored with the trial and raised
periodically, has stopped; that needs neither synchronised clocks nor a shared disk, and works with every storage.
"""

import contextlib
import logging
import math
import os
import platform
import random
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from carvision.errors import InputError, one_line
from carvision.files.atomic import create_folder
from carvision.files.locks import LOCK, is_locked, lock_folder
from carvision.search.build import Sweep

log = logging.getLogger(__name__)

TRIALS = "trials"  # subfolder of the search's folder with the trials' runs
# Trial attributes
CELL = "cell"  # index in the grid
RETRY_OF, ROOT = "retry_of", "root"  # numbers of the trial that it continues, and of the first one
DEATHS = "deaths"  # how many workers died with it
GIVEN = "given"  # fixed values: of a cell, or of the trial that it continues
BROKEN, WHY = "broken_off", "why"  # whether its worker died or was stopped; why it failed
SURPLUS = "surplus"  # one too many, not run
EPOCHS, SECONDS, PARAMETERS, BEST_EPOCH = "epochs", "seconds", "parameters", "best_epoch"
HOST, BEAT, EVERY_S = "host", "beat", "beat_every_s"  # machine of its worker, count and interval of its heartbeats
BEATS_PER_TIMEOUT = 4  # heartbeats within the time after which a worker counts as dead
PRUNED = 64  # exit status of a pruned trial's process


class Queue:
    """One worker's view of the trials to run."""

    def __init__(self, sweep: Sweep, study: optuna.Study, storage: BaseStorage):
        self.sweep, self.study, self.storage = sweep, study, storage
        self.monitor = WorkerMonitor(sweep.folder, sweep.settings["dead_after_s"])
        self.cells, self.budget = cells_of(sweep), num_to_run(sweep)
        self.retries = sweep.settings["retries"]
        if self.cells is not None:
            self._enqueue_cells(self.cells)

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _enqueue_cells(self, cells: list[int]) -> None:
        enqueued = {trial.user_attrs.get(CELL) for trial in self.trials()}
        grid = self.sweep.space.grid()
        for cell in cells[: self.budget]:
            if cell not in enqueued:
                self.study.enqueue_trial(grid[cell], {CELL: cell, GIVEN: grid[cell]})

    def next(self) -> "tuple[Trial, Heartbeat] | None":
        """Claim a trial; return it with its running heartbeat, or None if no trial is left to start."""
        while True:
            self.requeue_stale_trials()
            trials = self.trials()
            waiting = any(trial.state == TrialState.WAITING for trial in trials)
            if not waiting and (self.cells is not None or len(latest(trials)) >= self.budget):
                return None
            trial = self.study.ask()
            lock_dir = lock_dir_of(self.sweep.folder, trial.number)
            try:
                heartbeat = Heartbeat(self.storage, trial._trial_id, lock_dir, self.sweep.settings["dead_after_s"])
            except InputError:  # SQLite may hand one trial to two workers
                continue
            if not self._is_surplus(trial.number):
                return trial, heartbeat
            trial.set_user_attr(SURPLUS, True)
            self.fail(trial._trial_id, "")
            heartbeat.end()

    def _is_surplus(self, number: int) -> bool:
        """Return whether this trial is one too many or a duplicate: several workers may have asked at the same
        moment."""
        trials = [trial for trial in self.trials() if SURPLUS not in trial.user_attrs]
        own = next(trial for trial in trials if trial.number == number)
        same = (RETRY_OF, CELL) if RETRY_OF not in own.user_attrs else (RETRY_OF,)
        for trial in trials:
            for key in same:
                value = own.user_attrs.get(key)
                if value is not None and trial.user_attrs.get(key) == value and trial.number < number:
                    return True
        if self.cells is not None:  # no cell: another worker took the last waiting one
            return CELL not in own.user_attrs
        return sorted({root_of(trial) for trial in trials}).index(root_of(own)) >= self.budget

    def requeue_stale_trials(self) -> None:
        """Mark trials whose worker has died as failed, and enqueue them again to continue."""
        for trial in self.trials():
            if trial.state == TrialState.RUNNING and self.monitor.state(trial) == "dead":
                self.mark_interrupted(trial, "its worker has died")
                remove_lock_dir(lock_dir_of(self.sweep.folder, trial.number))
        trials = self.trials()
        continued = {trial.user_attrs.get(RETRY_OF) for trial in trials if SURPLUS not in trial.user_attrs}
        for trial in latest(trials)[: self.budget if self.cells is None else None]:
            broken = BROKEN in trial.user_attrs and trial.state == TrialState.FAIL
            if broken and trial.number not in continued and not is_finished(trial, self.retries):
                known = {key: trial.user_attrs[key] for key in (CELL, DEATHS) if key in trial.user_attrs}
                # The worker may have died before all values were drawn
                given = {**trial.user_attrs.get(GIVEN, {}), **trial.params}
                attributes = {RETRY_OF: trial.number, ROOT: root_of(trial), GIVEN: given, **known}
                self.study.enqueue_trial(given, attributes)

    def mark_interrupted(self, trial: FrozenTrial, reason: str, death: bool = True) -> None:
        """Mark a trial as interrupted. Another worker may do the same at this moment."""
        try:
            self.storage.set_trial_user_attr(trial._trial_id, BROKEN, True)
            self.storage.set_trial_user_attr(trial._trial_id, DEATHS, trial.user_attrs.get(DEATHS, 0) + death)
        except UpdateFinishedTrialError:
            return
        self.fail(trial._trial_id, reason)

    def fail(self, trial_id: int, reason: str) -> None:
        try:
            self.storage.set_trial_user_attr(trial_id, WHY, reason)
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:
            return

    def others_running(self) -> dict[str, list[FrozenTrial]]:
        """Return running trials by the state of their workers: "alive", "dead" or "unknown"."""
        found: dict[str, list[FrozenTrial]] = {"alive": [], "dead": [], "unknown": []}
        for trial in self.trials():
            if trial.state == TrialState.RUNNING:
                found[self.monitor.state(trial)].append(trial)
        return found


def num_to_run(sweep: Sweep) -> int:
    """Return the number of trials of the whole search."""
    wanted, cells = sweep.settings["trials"], cells_of(sweep)
    return wanted if cells is None else len(cells) if wanted is None else min(wanted, len(cells))


def cells_of(sweep: Sweep) -> list[int] | None:
    """Return the indices of the grid's cells to run, in order; None without a grid."""
    settings = sweep.settings
    if settings["sampler"] != "grid":
        return None
    num = len(sweep.space.grid())
    if settings["cells"] is not None:
        return settings["cells"]
    if settings["grid_fraction"] is None:
        return list(range(num))
    count = max(1, int(num * settings["grid_fraction"]))
    # The same cells for every network: they depend only on the seed and the number of cells
    return sorted(random.Random(settings["seed"]).sample(range(num), count))


def root_of(trial: FrozenTrial) -> int:
    """Return the number of the first Optuna trial that this one continues, or its own."""
    return trial.user_attrs.get(ROOT, trial.number)


def folder_of(trial: FrozenTrial) -> Path:
    """Return the folder of the trial's run, relative to the search's. A continued trial keeps its folder."""
    return Path(TRIALS) / f"{root_of(trial):04d}"


def latest(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the search's trials: the last Optuna trial of each continued one."""
    found: dict[int, FrozenTrial] = {}
    for trial in trials:
        if SURPLUS not in trial.user_attrs:
            found[root_of(trial)] = trial
    return [found[root] for root in sorted(found)]


def is_finished(trial: FrozenTrial, retries: int) -> bool:
    """Return whether the trial will not be continued."""
    if BROKEN in trial.user_attrs and trial.state == TrialState.FAIL:
        return trial.user_attrs.get(DEATHS, 0) > retries
    return trial.state.is_finished()


def best_first(sweep: Sweep, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the completed trials, best first by the first objective; with several objectives, the Pareto front before
    all others."""
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    front = {trial.number for trial in pareto_front(sweep, done)}
    return sorted(done, key=lambda trial: (trial.number not in front, costs_of(sweep, trial), trial.number))


def pareto_front(sweep: Sweep, done: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that no other dominates (better in one objective and not worse in any)."""
    costs = [costs_of(sweep, trial) for trial in done]

    def is_dominated(own: tuple[float, ...]) -> bool:
        return any(all(a <= b for a, b in zip(other, own, strict=True)) and other != own for other in costs)

    return [trial for trial, own in zip(done, costs, strict=True) if not is_dominated(own)]


def costs_of(sweep: Sweep, trial: FrozenTrial) -> tuple[float, ...]:
    """Return the trial's objectives, negated where more is better."""
    modes = sweep.objective.values()
    return tuple(value if mode == "min" else -value for mode, value in zip(modes, values_of(trial), strict=True))


def values_of(trial: FrozenTrial) -> list[float]:
    """Return the objectives of a completed trial, in their order."""
    assert trial.values is not None
    return trial.values


def last_value(trial: FrozenTrial) -> float:
    """Return the last value that the trial reported; NaN if it reported none."""
    reported = trial.intermediate_values
    return reported[max(reported)] if reported else math.nan


class Heartbeat:
    """Send a running trial's heartbeat, from its claim to its end."""

    def __init__(self, storage: BaseStorage, trial_id: int, lock_dir: Path, dead_after_s: float):
        """Start the heartbeat. lock_dir: the trial's own folder for the lock. Raises InputError if another worker holds
        it."""
        self.storage, self.trial_id, self.interval_s = storage, trial_id, dead_after_s / BEATS_PER_TIMEOUT
        create_folder(lock_dir.parent)
        create_folder(lock_dir)
        self.lock = lock_folder(lock_dir, f"{lock_dir} belongs to another worker")
        storage.set_trial_user_attr(trial_id, EVERY_S, self.interval_s)
        storage.set_trial_user_attr(trial_id, HOST, platform.node())
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._send_beats, daemon=True, name="heartbeat")
        self.thread.start()

    def _send_beats(self) -> None:
        count, failing = 0, False
        while not self.ended.wait(self.interval_s):
            count += 1
            try:
                self.storage.set_trial_user_attr(self.trial_id, BEAT, count)
                failing = False
            except Exception as error:  # storage is unavailable, or another worker has requeued the trial
                if not failing and not self.ended.is_set():
                    log.warning("no heartbeat could be sent: %s", one_line(error, 200))
                failing = True

    def end(self) -> None:
        self.ended.set()
        self.thread.join()
        if self.lock:
            self.lock.close()


class WorkerMonitor:
    """Track which workers have died, as seen by one process."""

    def __init__(self, folder: Path, dead_after_s: float):
        """Monitor the workers of the search in `folder`, where lock_dir_of() finds the locks."""
        self.folder, self.dead_after_s = folder, dead_after_s
        # {trial: (last beat, when it was first seen, whether it has changed)}
        self.seen: dict[int, tuple[int, float, bool]] = {}

    def state(self, trial: FrozenTrial) -> str:
        """Return the state of a running trial's worker: "alive", "dead", or "unknown" until a second beat was seen."""
        lock_dir = lock_dir_of(self.folder, trial.number)
        if trial.user_attrs.get(HOST) == platform.node() and lock_dir.is_dir():
            locked = is_locked(lock_dir)
            if locked is not None:
                return "alive" if locked else "dead"
        beat, now = trial.user_attrs.get(BEAT, 0), time.monotonic()
        last, since, moved = self.seen.get(trial.number, (beat, now, False))
        if beat != last:
            since, moved = now, True
        self.seen[trial.number] = beat, since, moved
        if now - since > max(self.dead_after_s, BEATS_PER_TIMEOUT * trial.user_attrs.get(EVERY_S, 0)):
            return "dead"
        return "alive" if moved else "unknown"


def lock_dir_of(folder: Path, number: int) -> Path:
    """Return the folder of a trial's lock."""
    return folder / "running" / f"{number:04d}"


def remove_lock_dir(lock_dir: Path) -> None:
    """Remove a finished trial's lock directory."""
    with contextlib.suppress(OSError):
        (lock_dir / LOCK).unlink(missing_ok=True)
        lock_dir.rmdir()


def end_with_parent(lifeline: int, ending: signal.Signals | None = None) -> None:
    """Send this process the signal (None: SIGKILL) once the process that holds the other end of the pipe is gone."""
    ending = ending or getattr(signal, "SIGKILL", signal.SIGTERM)

    def watch() -> None:
        while os.read(lifeline, 1):
            pass
        os.kill(os.getpid(), ending)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
