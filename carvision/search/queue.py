"""Choose the next trial: each once, no more than requested, and continue those whose worker has died.

All decisions follow from the study alone, so that any number of workers agree without talking to each other. A
continued trial is a new Optuna trial with its own number; both together are one trial of the search, counted at the
first one's position. If two workers requeue the same trial, the lower number is valid.
"""

import random

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from carvision.errors import InputError
from carvision.search.alive import Heartbeat, WorkerMonitor, lock_dir_of, remove_lock_dir
from carvision.search.build import Sweep
from carvision.search.trials import (
    BROKEN,
    CELL,
    DEATHS,
    GIVEN,
    RETRY_OF,
    ROOT,
    SURPLUS,
    WHY,
    is_finished,
    latest,
    root_of,
)


class Queue:
    """One worker's view of the trials to run."""

    def __init__(self, sweep: Sweep, study: optuna.Study, storage: optuna.storages.BaseStorage):
        self.sweep, self.study, self.storage = sweep, study, storage
        self.monitor = WorkerMonitor(sweep.folder, sweep.settings["dead_after_s"])
        self.cells, self.budget = cells_of(sweep), num_to_run(sweep)
        self.retries = sweep.settings["retries"]
        if self.cells is not None:
            self._enqueue_cells()

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _enqueue_cells(self) -> None:
        there = {trial.user_attrs.get(CELL) for trial in self.trials()}
        grid = self.sweep.space.grid()
        for cell in self.cells[: self.budget]:
            if cell not in there:
                self.study.enqueue_trial(grid[cell], {CELL: cell, GIVEN: grid[cell]})

    def next(self) -> tuple[Trial, Heartbeat] | None:
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
