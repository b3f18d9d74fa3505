"""What is known of the trials of a search: their attributes in the study, which of Optuna's are one of the search's,
and which are the best."""

from collections.abc import Sequence
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from carvision.search.build import Sweep

TRIALS = "trials"  # the folder of their trainings, in that of the search
# Attributes of a trial
CELL = "cell"  # of the grid
RETRY_OF, ROOT = "retry_of", "root"  # the trial it goes on for, and the first of them
DEATHS = "deaths"  # of workers that had it
GIVEN = "given"  # the values that it is to draw, of a cell or of one that goes on
BROKEN, WHY = "broken_off", "why"  # of a failed one: its worker has died or was stopped; what happened
SURPLUS = "surplus"  # one too many, of which nothing was run
EPOCHS, SECONDS, PARAMETERS, BEST_EPOCH = "epochs", "seconds", "parameters", "best_epoch"  # attributes of a trial


def root_of(trial: FrozenTrial) -> int:
    return trial.user_attrs.get(ROOT, trial.number)


def folder_of(trial: FrozenTrial) -> Path:
    """Of its training, in the search's folder. One that goes on for another has that one's."""
    return Path(TRIALS) / f"{root_of(trial):04d}"


def latest(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials of the search: of those that go on for each other the last one."""
    found: dict[int, FrozenTrial] = {}
    for trial in trials:
        if SURPLUS not in trial.user_attrs:
            found[root_of(trial)] = trial
    return [found[root] for root in sorted(found)]


def is_finished(trial: FrozenTrial, retries: int) -> bool:
    """Whether nothing more is to come of it."""
    if BROKEN in trial.user_attrs and trial.state == TrialState.FAIL:
        return trial.user_attrs.get(DEATHS, 0) > retries
    return trial.state.is_finished()


def best_first(sweep: Sweep, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Those that came to their end, by the first objective; of several, those of the Pareto front before all others."""
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    front = {trial.number for trial in pareto_front(sweep, done)}
    return sorted(done, key=lambda trial: (trial.number not in front, costs_of(sweep, trial), trial.number))


def pareto_front(sweep: Sweep, done: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Those than which no other is better in one objective and not worse in any."""
    costs = [costs_of(sweep, trial) for trial in done]

    def is_dominated(own: tuple[float, ...]) -> bool:
        return any(all(a <= b for a, b in zip(other, own, strict=True)) and other != own for other in costs)

    return [trial for trial, own in zip(done, costs, strict=True) if not is_dominated(own)]


def costs_of(sweep: Sweep, trial: FrozenTrial) -> tuple[float, ...]:
    """Its objectives, of which less is better."""
    modes = sweep.objective.values()
    return tuple(value if mode == "min" else -value for mode, value in zip(modes, trial.values, strict=True))
