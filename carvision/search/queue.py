"""Choose the next trial of a search: each runs once, no more than requested, and one whose worker has died continues.

All decisions follow from the study alone, so that any number of workers agree without talking to each other. A trial is
one Optuna trial for life. If it is interrupted, it waits again, and the next worker takes it with its number,
parameters, reported values and folder. Trials are numbered from 0: one whose number is too high waits for a larger
sweep.trials.

On one machine, workers take trials one after the other, under a lock. Elsewhere Optuna's storage decides; if two
workers still took the same trial, it belongs to the one that wrote its name last, and the other one notices.
"""

import math
import random
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from carvision.search.build import Sweep
from carvision.search.heartbeat import Heartbeat, Presence

TRIALS = "trials"  # subfolder of the search's folder with the trials' runs
# Trial attributes
CELL = "cell"  # index in the grid
DEATHS = "deaths"  # how many workers died with it
WHY = "why"  # why it failed, or was last interrupted
PRUNE_AFTER = "prune_after"  # number of epochs after which the pruner ended it
EPOCHS, SECONDS, PARAMETERS, BEST_EPOCH = "epochs", "seconds", "parameters", "best_epoch"
PRUNED = 64  # exit status of a pruned trial's process


class Queue:
    """One worker's view of the trials to run."""

    def __init__(self, sweep: Sweep, study: optuna.Study, storage: BaseStorage):
        self.sweep, self.study, self.storage = sweep, study, storage
        self.presence = Presence(sweep.folder, sweep.settings["dead_after_s"])
        self.cells, self.budget = cells_of(sweep), num_to_run(sweep)

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def next(self) -> tuple[Trial, Heartbeat] | None:
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
        if trial.number < self.budget and heartbeat.is_ours():
            if self.cells is not None:
                trial.set_user_attr(CELL, self.cells[trial.number])
            return trial, heartbeat
        heartbeat.end()
        if trial.number >= self.budget:  # another machine's worker asked at the same moment
            self.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        return None

    def is_over(self) -> bool:
        """Return whether all trials have ended. While others run one, its worker may die, and it continues here."""
        return not self._can_start() and not any(trial.state == TrialState.RUNNING for trial in self.trials())

    def _can_start(self) -> bool:
        trials = self.trials()
        return len(trials) < self.budget or any(t.state == TrialState.WAITING for t in trials[: self.budget])

    def _dead(self) -> list[FrozenTrial]:
        return [t for t in self.trials() if t.state == TrialState.RUNNING and self.presence.is_dead(t)]

    def put_back(self, trial: FrozenTrial, reason: str, died: bool) -> None:
        """Let an interrupted trial wait for a worker to continue it, or fail if too many have died with it."""
        deaths = trial.user_attrs.get(DEATHS, 0) + died
        state = TrialState.FAIL if deaths > self.sweep.settings["retries"] else TrialState.WAITING
        try:
            self.storage.set_trial_user_attr(trial._trial_id, DEATHS, deaths)
            self.storage.set_trial_user_attr(trial._trial_id, WHY, reason)
            self.storage.set_trial_state_values(trial._trial_id, state)
        except UpdateFinishedTrialError:  # it had just ended
            return


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


def trials_of(sweep: Sweep, study: optuna.Study) -> list[FrozenTrial]:
    """Return the search's trials. Those that wait beyond the requested number are left out: it was reduced, or several
    workers asked for the last trial at once."""
    trials, wanted = study.get_trials(deepcopy=False), num_to_run(sweep)
    return [trial for trial in trials if trial.number < wanted or trial.state != TrialState.WAITING]


def folder_of(number: int) -> Path:
    """Return the folder of a trial's run, relative to the search's."""
    return Path(TRIALS) / f"{number:04d}"


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
