"""Attributes of a search's trials in the study, which Optuna trials belong together, and which are best."""

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from carvision.search.build import Sweep

TRIALS = "trials"  # subfolder of the search's folder with the trials' runs
# Trial attributes
CELL = "cell"  # index in the grid
RETRY_OF, ROOT = "retry_of", "root"  # numbers of the trial that it continues, and of the first one
DEATHS = "deaths"  # how many workers died with it
GIVEN = "given"  # fixed values: of a cell, or of the trial that it continues
BROKEN, WHY = "broken_off", "why"  # whether its worker died or was stopped; why it failed
SURPLUS = "surplus"  # one too many, not run
EPOCHS, SECONDS, PARAMETERS, BEST_EPOCH = "epochs", "seconds", "parameters", "best_epoch"
PRUNED = 64  # exit status of a pruned trial
SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
]  # that stop a trial


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
    return tuple(value if mode == "min" else -value for mode, value in zip(modes, trial.values, strict=True))


def end_with_parent(lifeline: int, ending: signal.Signals | None = None) -> None:
    """Send this process the signal (None: SIGKILL) once the process that holds the other end of the pipe is gone."""
    ending = ending or getattr(signal, "SIGKILL", signal.SIGTERM)

    def watch() -> None:
        while os.read(lifeline, 1):
            pass
        os.kill(os.getpid(), ending)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
