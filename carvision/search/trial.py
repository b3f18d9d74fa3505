"""Run one trial in its own process: a training that reports its epochs to the study, which may prune it.

A worker forks this process, or starts it as python -m carvision.search.trial PLAN, such as for several processes.
"""

import copy
import json
import logging
import math
import sys
from pathlib import Path

import optuna
import pytorch_lightning as pl
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial

from carvision.errors import one_line, one_line_errors
from carvision.search.build import compose
from carvision.search.queue import BROKEN, PRUNED, SURPLUS, end_with_parent, root_of
from carvision.search.study import create_pruner, open_storage
from carvision.training.callbacks import History, read_history
from carvision.training.distributed.collectives import broadcast_object
from carvision.training.distributed.launch import is_first_process, start_processes
from carvision.training.module import callbacks_of
from carvision.training.run.start import train
from carvision.training.run.stopping import Stopped

log = logging.getLogger(__name__)


def run_trial(plan_file: Path) -> None:
    """Run the trial, and exit with status 0, PRUNED, or another of carvision.train's."""
    plan = json.loads(plan_file.read_text(encoding="utf-8"))
    with one_line_errors():
        config = compose(plan["words"])[0]
        config["run"] |= {"dir": plan["run"], "test": False}
        config["callbacks"] |= {"monitor": plan["monitor"], "mode": plan["mode"], "progress_bar": False}
        start_processes(config["trainer"])
        reporting = Reporting(plan)
        train(config, plan["study"], [reporting])
    sys.exit(PRUNED if reporting.pruned and is_first_process() else 0)


class Reporting(pl.Callback):
    """Report the monitored metric to the study after each epoch.

    If the pruner decides to prune, the run ends before the next epoch, in all its processes; its folder holds what a
    stopped run's does. plan: what the worker wrote for this trial.
    """

    def __init__(self, plan: dict):
        self.plan, self.should_prune, self.pruned = plan, False, False
        self.study: optuna.Study | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Report the earlier epochs' values of a continued trial, too."""
        if not trainer.is_global_zero or self.study is not None or not trainer.current_epoch:
            return
        [history] = callbacks_of(trainer, History)
        for row in history.rows or read_history(history.file):
            value = row.get(self.plan["monitor"])
            if row["epoch"] < trainer.current_epoch and value is not None and not math.isnan(value):
                self.should_prune = self._report(row["epoch"] + 1, float(value))

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        value = trainer.callback_metrics.get(self.plan["monitor"])
        if trainer.is_global_zero and value is not None:
            self.should_prune = self._report(trainer.current_epoch + 1, float(value))

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Not at the epoch's end, before its checkpoint is written. After the last epoch pruning would save nothing
        self.pruned = broadcast_object(self.should_prune)
        if self.pruned:
            raise Stopped(f"pruned after epoch {trainer.current_epoch}")

    def _report(self, step: int, value: float) -> bool:
        """Report a value; return whether to prune the trial."""
        try:
            return self._ask(step, value)
        except UpdateFinishedTrialError:  # another worker considered this one dead, and continues the trial
            return True
        except Exception as error:  # a storage outage must not end the training
            log.warning("epoch %d could not be reported: %s", step, one_line(error, 200))
            return False

    def _ask(self, step: int, value: float) -> bool:
        if self.study is None:
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            self.storage = open_storage(self.plan["storage"], Path(self.plan["folder"]))
            pruner = create_pruner(self.plan["settings"], self.plan["num_epochs"])
            self.study = optuna.load_study(study_name=self.plan["study"], storage=self.storage, pruner=pruner)
            count_once(self.study)
        trial_id = self.plan["trial_id"]
        self.storage.set_trial_intermediate_value(trial_id, step, value)
        return self.study.pruner.prune(self.study, as_first(self.storage.get_trial(trial_id)))


def count_once(study: optuna.Study) -> None:
    """Let the pruner see a continued trial as one: interrupted attempts are hidden, and the number of the first
    fixes Hyperband's bracket."""
    every = study._storage.get_all_trials

    def get_all_trials(study_id: int, deepcopy: bool = True, states=None) -> list[FrozenTrial]:
        trials = every(study_id, deepcopy=deepcopy, states=states)
        return [as_first(t) for t in trials if BROKEN not in t.user_attrs and SURPLUS not in t.user_attrs]

    study._storage.get_all_trials = get_all_trials


def as_first(trial: FrozenTrial) -> FrozenTrial:
    """Return a copy of the trial with the number of the first one that it continues."""
    same = copy.copy(trial)
    same.number = root_of(trial)
    return same


if __name__ == "__main__":
    if is_first_process():
        end_with_parent(sys.stdin.fileno())
    run_trial(Path(sys.argv[1]))
