"""Which trial comes next: each once, no more than were asked for, and those whose worker has died go on.

Everything is decided from the study alone, so that any number of workers agree without a word. A trial of Optuna's
that goes on for another is a new one with a number of its own; both together are one trial of the search, counted at
the place of the first. Where two workers bring the same one back, that of the smaller number holds.
"""

import random

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from carvision.errors import InputError
from carvision.search.alive import Heartbeat, WorkerMonitor, clear, lock_dir_of
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
    """Of one worker."""

    def __init__(self, sweep: Sweep, study: optuna.Study, storage: optuna.storages.BaseStorage):
        self.sweep, self.study, self.storage = sweep, study, storage
        self.watch = WorkerMonitor(sweep.folder, sweep.settings["dead_after_s"])
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
        """One that is this worker's now, with its sign of life. None where none is left to begin."""
        while True:
            self.requeue_stale_trials()
            trials = self.trials()
            waiting = any(trial.state == TrialState.WAITING for trial in trials)
            if not waiting and (self.cells is not None or len(latest(trials)) >= self.budget):
                return None
            trial = self.study.ask()
            place = lock_dir_of(self.sweep.folder, trial.number)
            try:
                alive = Heartbeat(self.storage, trial._trial_id, place, self.sweep.settings["dead_after_s"])
            except InputError:  # SQLite may give one trial to two workers
                continue
            if not self._is_surplus(trial.number):
                return trial, alive
            trial.set_user_attr(SURPLUS, True)
            self.fail(trial._trial_id, "")
            alive.end()

    def _is_surplus(self, number: int) -> bool:
        """Whether there was one too many, or this one twice: several workers may have asked at the same moment."""
        trials = [trial for trial in self.trials() if SURPLUS not in trial.user_attrs]
        own = next(trial for trial in trials if trial.number == number)
        same = (RETRY_OF, CELL) if RETRY_OF not in own.user_attrs else (RETRY_OF,)
        for trial in trials:
            for key in same:
                value = own.user_attrs.get(key)
                if value is not None and trial.user_attrs.get(key) == value and trial.number < number:
                    return True
        if self.cells is not None:  # without one where another worker took the last that waited
            return CELL not in own.user_attrs
        return sorted({root_of(trial) for trial in trials}).index(root_of(own)) >= self.budget

    def requeue_stale_trials(self) -> None:
        """Trials whose worker has died fail, and are put in again to go on."""
        for trial in self.trials():
            if trial.state == TrialState.RUNNING and self.watch.state(trial) == "dead":
                self.mark_interrupted(trial, "its worker has died")
                clear(lock_dir_of(self.sweep.folder, trial.number))
        trials = self.trials()
        succeeded = {trial.user_attrs.get(RETRY_OF) for trial in trials if SURPLUS not in trial.user_attrs}
        for trial in latest(trials)[: self.budget if self.cells is None else None]:
            broken = BROKEN in trial.user_attrs and trial.state == TrialState.FAIL
            if broken and trial.number not in succeeded and not is_finished(trial, self.retries):
                known = {key: trial.user_attrs[key] for key in (CELL, DEATHS) if key in trial.user_attrs}
                # Its worker may have died before all was drawn
                given = {**trial.user_attrs.get(GIVEN, {}), **trial.params}
                attributes = {RETRY_OF: trial.number, ROOT: root_of(trial), GIVEN: given, **known}
                self.study.enqueue_trial(given, attributes)

    def mark_interrupted(self, trial: FrozenTrial, why: str, death: bool = True) -> None:
        """Another worker may do the same at this moment."""
        try:
            self.storage.set_trial_user_attr(trial._trial_id, BROKEN, True)
            self.storage.set_trial_user_attr(trial._trial_id, DEATHS, trial.user_attrs.get(DEATHS, 0) + death)
        except UpdateFinishedTrialError:
            return
        self.fail(trial._trial_id, why)

    def fail(self, trial_id: int, why: str) -> None:
        try:
            self.storage.set_trial_user_attr(trial_id, WHY, why)
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:
            return

    def others_running(self) -> dict[str, list[FrozenTrial]]:
        """Running trials by what is known of their workers."""
        found: dict[str, list[FrozenTrial]] = {"alive": [], "dead": [], "unknown": []}
        for trial in self.trials():
            if trial.state == TrialState.RUNNING:
                found[self.watch.state(trial)].append(trial)
        return found


def num_to_run(sweep: Sweep) -> int:
    """Trials of the whole search."""
    wanted, cells = sweep.settings["trials"], cells_of(sweep)
    return wanted if cells is None else len(cells) if wanted is None else min(wanted, len(cells))


def cells_of(sweep: Sweep) -> list[int] | None:
    """Numbers of the grid's cells that are to be run, in their order; None without a grid."""
    settings = sweep.settings
    if settings["sampler"] != "grid":
        return None
    num = len(sweep.space.grid())
    if settings["cells"] is not None:
        return settings["cells"]
    if settings["grid_fraction"] is None:
        return list(range(num))
    count = max(1, int(num * settings["grid_fraction"]))
    # The same draws for every network: by the seed and the number of cells alone
    return sorted(random.Random(settings["seed"]).sample(range(num), count))
