"""One trial, in a process of its own: a training whose epochs are reported to the study, which may prune it.

As a command, where the training has several processes: python -m carvision.search.trial PLAN
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

from carvision.errors import one_line_errors
from carvision.search.build import compose
from carvision.search.study import create_pruner, open_storage
from carvision.search.trial_process import PRUNED, end_with_parent
from carvision.search.trials import BROKEN, SURPLUS, root_of
from carvision.training.callbacks import History, read_history
from carvision.training.launch import is_first_process
from carvision.training.many_processes import broadcast_object
from carvision.training.runs import run
from carvision.training.stopping import Stopped

log = logging.getLogger(__name__)


class Reporting(pl.Callback):
    """After each epoch the value of `monitor` goes to the study. Where its pruner has seen enough, the run ends before
    the next epoch, in all its processes; its folder holds what it reached, as of any run that was stopped.

    plan: what the worker wrote for this trial.
    """

    def __init__(self, plan: dict):
        self.plan, self.wanted, self.pruned = plan, False, False  # wanted: by the pruner
        self.study: optuna.Study | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """A trial that goes on for one that broke off has the earlier epochs' values, too."""
        if not trainer.is_global_zero or self.study is not None or not trainer.current_epoch:
            return
        history = next(hook for hook in trainer.callbacks if isinstance(hook, History))
        for row in history.rows or read_history(history.file):
            value = row.get(self.plan["monitor"])
            if row["epoch"] < trainer.current_epoch and value is not None and not math.isnan(value):
                self.wanted = self._report(row["epoch"] + 1, float(value))

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        value = trainer.callback_metrics.get(self.plan["monitor"])
        if trainer.is_global_zero and value is not None:
            self.wanted = self._report(trainer.current_epoch + 1, float(value))

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Not before: the checkpoint of the epoch that was judged is the last thing written of it. After the last
        # epoch there is nothing left to save
        self.pruned = broadcast_object(self.wanted)
        if self.pruned:
            raise Stopped(f"pruned after epoch {trainer.current_epoch}")

    def _report(self, step: int, value: float) -> bool:
        """Whether the trial is to be pruned."""
        try:
            return self._ask(step, value)
        except UpdateFinishedTrialError:  # other workers took this one's for dead: one of them has the trial now
            return True
        except Exception as error:  # the database or the disk is away for a moment; the training is worth more
            log.warning("epoch %d could not be reported: %s", step, " ".join(str(error).split())[:200])
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
    """For the pruner, a trial that went on for another is one with it: what broke off does not compete, and the number,
    which decides about Hyperband's bracket, is the first one's."""
    every = study._storage.get_all_trials

    def get_all_trials(study_id: int, deepcopy: bool = True, states=None) -> list[FrozenTrial]:
        trials = every(study_id, deepcopy=deepcopy, states=states)
        return [as_first(t) for t in trials if BROKEN not in t.user_attrs and SURPLUS not in t.user_attrs]

    study._storage.get_all_trials = get_all_trials


def as_first(trial: FrozenTrial) -> FrozenTrial:
    same = copy.copy(trial)
    same.number = root_of(trial)
    return same


def run_trial(plan_file: Path) -> None:
    """Ends the process, with status 0, PRUNED, or another of carvision.train's."""
    plan = json.loads(plan_file.read_text(encoding="utf-8"))
    with one_line_errors():
        config = compose(plan["words"])[0]
        config["run"] |= {"dir": plan["run"], "test": False}
        config["callbacks"] |= {"monitor": plan["monitor"], "mode": plan["mode"], "progress_bar": False}
        if config["trainer"]["accelerator"] == "tpu":
            from carvision.training.tpu_cores import use_cores

            use_cores(config["trainer"]["devices"])
        reporting = Reporting(plan)
        run(config, plan["study"], [reporting])
    sys.exit(PRUNED if reporting.pruned and is_first_process() else 0)


if __name__ == "__main__":
    if is_first_process():
        end_with_parent(sys.stdin.fileno())
    run_trial(Path(sys.argv[1]))
