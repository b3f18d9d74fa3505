"""Choose the next trial of a search: each runs once, no more than requested, and one whose worker has died continues.

All decisions follow from the study alone, so that any number of workers agree without talking to each other. A trial is
one Optuna trial for life. If it is interrupted, it waits again, and the next worker takes it with its number,
parameters, reported values and folder. Trials are numbered from 0: one whose number is too high waits for a larger
sweep.trials.

On one machine, workers take trials one after the other, under a lock. Elsewhere Optuna's storage decides; if two
workers still took the same trial, it belongs to the one that wrote its id last, and the other one notices.

A worker's death is seen on its own machine at once: it holds a lock on a file in the search's folder, which the system
releases when the process ends. A worker on another machine, or one that Ctrl-Z has stopped, counts as dead once its
heartbeat stops, a counter that is stored with the trial and raised periodically; that needs neither synchronised clocks
nor a shared disk, and works with every storage. Optuna's own heartbeat (RDBStorage(heartbeat_interval=...)) is not
used: a journal has none, a trial whose worker died before its first beat never counts as stale, and one that is taken
again at once counts as stale until its first beat.
"""

import contextlib
import logging
import math
import platform
import threading
import time
import uuid
from pathlib import Path

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from carvision.errors import one_line
from carvision.files.atomic import PARTIAL, create_folder
from carvision.files.locks import LOCK, is_locked, lock_among_threads, lock_folder
from carvision.search.build import Sweep

log = logging.getLogger(__name__)

TRIALS = "trials"  # subfolder of the search's folder with the trials' runs
RUNNING = "running"  # subfolder of the search's folder, with a folder for each worker
PLAN = "plan.json"  # there: what the worker's trial process is to do
# Trial attributes
WORKER = "worker"  # {"host", "id", "beat_every_s"} of the worker whose trial it is, or was until it died
BEAT = "beat"  # how many heartbeats it has sent
CELL = "cell"  # index in the grid
DEATHS = "deaths"  # how many workers died with it
WHY = "why"  # why it failed, or was last interrupted
PRUNE_AFTER = "prune_after"  # number of epochs after which the pruner ended it
EPOCHS, SECONDS, PARAMETERS, BEST_EPOCH = "epochs", "seconds", "parameters", "best_epoch"
BEATS_PER_TIMEOUT = 4  # heartbeats within the time after which a worker counts as dead
PRUNED = 64  # exit status of a pruned trial's process


class Queue:
    """One worker's view of the trials to run."""

    def __init__(self, sweep: Sweep, study: optuna.Study, storage: BaseStorage):
        self.sweep, self.study, self.storage = sweep, study, storage
        self.presence = Presence(sweep.folder, sweep.settings["dead_after_s"])

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def next(self) -> "tuple[Trial, Heartbeat] | None":
        """Claim a trial; return it with its running heartbeat, or None if there is none to start now."""
        if not (self._can_start() or self._dead()):
            return None
        with self.presence.one_at_a_time():
            for trial in self._dead():
                self.put_back(trial, "its worker has died", died=True)
            if not self._can_start():
                return None
            trial = self.study.ask()
            heartbeat = Heartbeat(self.storage, trial._trial_id, self.presence.worker)
        if trial.number < self.sweep.num_trials and heartbeat.is_ours():
            if self.sweep.cells is not None:
                trial.set_user_attr(CELL, self.sweep.cells[trial.number])
            return trial, heartbeat
        heartbeat.end()
        if trial.number >= self.sweep.num_trials:  # another machine's worker asked at the same moment
            self.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        return None

    def is_over(self) -> bool:
        """Return whether all trials have ended. While others run one, its worker may die, and it continues here."""
        return not self._can_start() and not any(trial.state == TrialState.RUNNING for trial in self.trials())

    def _can_start(self) -> bool:
        trials = self.trials()[: self.sweep.num_trials]
        return len(trials) < self.sweep.num_trials or any(trial.state == TrialState.WAITING for trial in trials)

    def _dead(self) -> list[FrozenTrial]:
        return [t for t in self.trials() if t.state == TrialState.RUNNING and self.presence.is_dead(t)]

    def put_back(self, trial: FrozenTrial, reason: str, died: bool) -> None:
        """Let an interrupted trial wait for a worker to continue it, or fail if too many have died with it."""
        deaths = trial.user_attrs.get(DEATHS, 0) + died
        state = TrialState.FAIL if deaths > self.sweep.settings["retries"] else TrialState.WAITING
        with contextlib.suppress(UpdateFinishedTrialError):  # it had just ended
            self.storage.set_trial_user_attr(trial._trial_id, DEATHS, deaths)
            self.storage.set_trial_user_attr(trial._trial_id, WHY, reason)
            self.storage.set_trial_state_values(trial._trial_id, state)


def owns(worker_id: str, trial: FrozenTrial) -> bool:
    """Return whether this is the trial's worker, and no other has continued or ended the trial in the meantime."""
    return trial.state == TrialState.RUNNING and trial.user_attrs.get(WORKER, {}).get("id") == worker_id


class Heartbeat:
    """Make a running trial this worker's, and send its heartbeats until end()."""

    def __init__(self, storage: BaseStorage, trial_id: int, worker: dict):
        self.storage, self.trial_id, self.worker = storage, trial_id, worker
        storage.set_trial_user_attr(trial_id, WORKER, worker)
        self.lost, self.ended = threading.Event(), threading.Event()  # lost: it is another worker's now
        self.thread = threading.Thread(target=self._send_beats, daemon=True, name="heartbeat")
        self.thread.start()

    def is_ours(self) -> bool:
        """Return whether the trial is still this worker's, as the storage has it now."""
        if not owns(self.worker["id"], self.storage.get_trial(self.trial_id)):
            self.lost.set()
        return not self.lost.is_set()

    def _send_beats(self) -> None:
        count, failing = 0, False
        while not self.ended.wait(self.worker["beat_every_s"]):
            count += 1
            try:
                if not self.is_ours():  # this process was frozen, or cut off from the storage, for too long
                    return
                self.storage.set_trial_user_attr(self.trial_id, BEAT, count)
                failing = False
            except Exception as error:  # the storage is unavailable
                if not failing and not self.ended.is_set():
                    log.warning("no heartbeat could be sent: %s", one_line(error, 200))
                failing = True

    def end(self) -> None:
        self.ended.set()
        self.thread.join()


class Presence:
    """This worker's name and lock, and what it has seen of the search's other workers."""

    def __init__(self, search_folder: Path, dead_after_s: float):
        self.folder, self.dead_after_s = create_folder(search_folder / RUNNING), dead_after_s
        self.worker = {
            "host": platform.node(), "id": uuid.uuid4().hex[:12], "beat_every_s": dead_after_s / BEATS_PER_TIMEOUT
        }  # fmt: skip
        with self.one_at_a_time():  # not while another one removes what looks like a dead worker's
            self.lock = lock_folder(create_folder(self.folder / self.worker["id"]), "")
        self.seen: dict[int, tuple[object, float]] = {}  # {trial: (its last heartbeat, when it was first seen)}

    def is_dead(self, trial: FrozenTrial) -> bool:
        """Return whether a running trial's worker has died, as far as this process can know by now."""
        worker = trial.user_attrs.get(WORKER, {})
        if worker.get("id") == self.worker["id"]:
            return False
        own = self.folder / worker.get("id", "")
        if worker.get("host") == self.worker["host"] and own.is_dir() and is_locked(own) is False:
            return True
        beat, now = (trial.datetime_start, worker.get("id"), trial.user_attrs.get(BEAT)), time.monotonic()
        last, since = self.seen.get(trial.number, (None, now))
        if beat != last:
            self.seen[trial.number] = beat, now
            return False
        return now - since > max(self.dead_after_s, BEATS_PER_TIMEOUT * worker.get("beat_every_s", 0))

    def one_at_a_time(self):
        """Hold the lock under which one worker at a time takes a trial; where disks have no locks, none is held."""
        return lock_among_threads(self.folder / LOCK, wait=True)

    def end(self) -> None:
        """Release the lock, and remove it with those of workers that have died."""
        if self.lock:
            self.lock.close()
        with contextlib.suppress(OSError), self.one_at_a_time():
            for path in self.folder.iterdir():
                if path.is_dir() and is_locked(path) is False:
                    for name in (PLAN, f"{PLAN}{PARTIAL}", LOCK):
                        (path / name).unlink(missing_ok=True)
                    path.rmdir()


def trials_of(sweep: Sweep, study: optuna.Study) -> list[FrozenTrial]:
    """Return the search's trials. Those that wait beyond the requested number are left out: it was reduced, or several
    workers asked for the last trial at once."""
    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if trial.number < sweep.num_trials or trial.state != TrialState.WAITING]


def folder_of(number: int) -> Path:
    """Return the folder of a trial's run, relative to the search's."""
    return Path(TRIALS) / f"{number:04d}"


def best_first(study: optuna.Study) -> list[FrozenTrial]:
    """Return the completed trials, best first by the first objective; with several objectives, the Pareto front before
    all others."""
    several = len(study.directions) > 1
    front = {trial.number for trial in study.best_trials} if several else set()

    def rank(trial: FrozenTrial) -> tuple:
        pairs = zip(trial.values or [], study.directions, strict=True)
        costs = [-value if direction == StudyDirection.MAXIMIZE else value for value, direction in pairs]
        return several and trial.number not in front, costs, trial.number

    return sorted(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)), key=rank)


def last_value(trial: FrozenTrial) -> float:
    """Return the last value that the trial reported; NaN if it reported none."""
    reported = trial.intermediate_values
    return reported[max(reported)] if reported else math.nan
