"""Searches that take no time, and what they left."""

import os
from pathlib import Path

import optuna
import pandas as pd
from optuna.trial import FrozenTrial

from carvision.search.build import Sweep, build_sweep
from carvision.search.queue import Queue
from carvision.search.study import open_storage, open_study
from tests.small_runs import SMALL

LR = "optimizer.lr=tag(log,interval(1e-4,1e-1))"


def overrides_for(folder: Path, *words: str) -> list[str]:
    """Of carvision.sweep."""
    small = [word for word in SMALL if not word.startswith(("callbacks.", "trainer."))]
    return [*small, "trainer.max_epochs=1", "logger=none", f"sweep.dir={folder}", *map(str, words)]


def small_sweep(folder: Path, *words: str) -> Sweep:
    return build_sweep(overrides_for(folder, *words))


def queue_of(sweep: Sweep) -> Queue:
    """Of one more worker."""
    storage = open_storage(sweep.settings["storage"], sweep.folder)
    return Queue(sweep, open_study(sweep, storage), storage)


def trials_of(folder: Path) -> list[FrozenTrial]:
    storage = open_storage(None, folder)
    return optuna.load_study(study_name=folder.name, storage=storage).get_trials(deepcopy=False)


def table_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "trials.csv", index_col="trial")


def is_running(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True
