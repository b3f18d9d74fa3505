"""Build searches of tiny runs, and read what they left."""

from pathlib import Path

import optuna
import pandas as pd
from optuna.trial import FrozenTrial

from carvision.search.build import Sweep, build_sweep
from carvision.search.queue import Heartbeat, Queue
from carvision.search.study import open_storage, open_study
from tests.small_runs import SMALL

optuna.logging.set_verbosity(optuna.logging.ERROR)
LR = "optimizer.lr=tag(log,interval(1e-4,1e-1))"


def overrides_for(folder: Path, *words: str) -> list[str]:
    """Return the arguments of carvision.sweep for a search of tiny runs of one epoch."""
    small = [word for word in SMALL if not word.startswith(("callbacks.", "trainer."))]
    return [*small, "trainer.max_epochs=1", "logger=none", f"sweep.dir={folder}", *map(str, words)]


def small_sweep(folder: Path, *words: str) -> Sweep:
    return build_sweep(overrides_for(folder, *words))


def study_of(sweep: Sweep) -> optuna.Study:
    return open_study(sweep, open_storage(sweep.settings["storage"], sweep.folder))


def queue_of(sweep: Sweep) -> Queue:
    """Return the queue as one more worker sees it. Another one of the same process counts as dead."""
    storage = open_storage(sweep.settings["storage"], sweep.folder)
    return Queue(sweep, open_study(sweep, storage), storage)


def claim(queue: Queue) -> tuple[optuna.Trial, Heartbeat] | None:
    """Claim a trial and draw its values; its heartbeat is running."""
    if claimed := queue.next():
        queue.sweep.space.draw(claimed[0])
    return claimed


def claim_quietly(queue: Queue) -> optuna.Trial | None:
    """Claim a trial and draw its values; its heartbeat has ended."""
    trial, heartbeat = claim(queue) or (None, None)
    if heartbeat:
        heartbeat.end()
    return trial


def trials_of(folder: Path, url: str | None = None) -> list[FrozenTrial]:
    storage = open_storage(url, folder)
    return optuna.load_study(study_name=folder.name, storage=storage).get_trials(deepcopy=False)


def table_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "trials.csv", index_col="trial")
