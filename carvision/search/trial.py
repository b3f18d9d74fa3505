"""Run one trial in its own process: a training that reports its epochs to the study, which may prune it.

A worker forks this process, or starts it as python -m carvision.search.trial PLAN, such as for several processes.
"""

import contextlib
import json
import logging
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytorch_lightning as pl

from carvision.config.compose import compose_sweep
from carvision.errors import one_line, one_line_errors
from carvision.search.queue import PRUNE_AFTER, PRUNED, owns
from carvision.search.study import create_pruner, open_storage
from carvision.system.runtime import end_with_parent
from carvision.training.callbacks import History
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
        config, _ = compose_sweep(plan["words"])
        config["run"] |= {"dir": plan["run"], "test": False}
        config["callbacks"] |= {"monitor": plan["monitor"], "mode": plan["mode"], "progress_bar": False}
        start_processes(config["trainer"])
        reporting = Reporting(plan)
        train(config, plan["study"], [reporting])
    sys.exit(PRUNED if reporting.pruned and is_first_process() else 0)


class Reporting(pl.Callback):
    """Report the monitored metric to the study after each epoch.

    If the pruner decides to prune, the run ends before the next epoch, in all its processes; its folder holds what a
    stopped run's does. If the trial has become another worker's, as this one was frozen, the run ends before anything
    else is written. plan: what the worker wrote for this trial.
    """

    def __init__(self, plan: dict):
        self.plan, self.should_prune, self.pruned = plan, False, False
        self.trial_id: int = plan["trial_id"]
        self.study: optuna.Study | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Report epochs of a continued trial that an outage of the storage has kept from the study."""
        if not trainer.is_global_zero or self.study is not None or not trainer.current_epoch:
            return
        [history] = callbacks_of(trainer, History)
        values = {row["epoch"] + 1: row.get(self.plan["monitor"]) for row in history.rows}
        known = {epoch: float(value) for epoch, value in values.items() if value is not None and not math.isnan(value)}
        self._report(known, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._stop_if_lost(trainer)
        value = trainer.callback_metrics.get(self.plan["monitor"])
        if trainer.is_global_zero and value is not None:
            self._report({trainer.current_epoch + 1: float(value)}, trainer.current_epoch + 1)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict) -> None:
        self._stop_if_lost(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Not at the epoch's end, before its checkpoint is written. After the last epoch pruning would save nothing
        self.pruned = broadcast_object(self.should_prune)
        if self.pruned:
            raise Stopped(f"pruned after epoch {trainer.current_epoch}")

    def _stop_if_lost(self, trainer: pl.Trainer) -> None:
        lost = False
        if trainer.is_global_zero:
            with self._outages_logged("it is unknown whose trial this is"):
                self._open()
                lost = not owns(self.plan["worker"], self.storage.get_trial(self.trial_id))
        if broadcast_object(lost):
            raise Stopped("another worker continues this trial")

    def _report(self, values: dict[int, float], epochs: int) -> None:
        """Report values that the study lacks; note whether to prune the trial after so many epochs."""
        with self._outages_logged(f"epoch {epochs} could not be reported"):
            study = self._open()
            trial = self.storage.get_trial(self.trial_id)
            for epoch in values.keys() - trial.intermediate_values.keys():
                self.storage.set_trial_intermediate_value(self.trial_id, epoch, values[epoch])
            trial = self.storage.get_trial(self.trial_id)
            after = trial.user_attrs.get(PRUNE_AFTER)
            # Stored, as a pruner judges each epoch once, and the worker may die before the trial ends
            if after is None and study.pruner.prune(study, trial):
                after = trial.last_step
                self.storage.set_trial_user_attr(self.trial_id, PRUNE_AFTER, after)
            self.should_prune = after is not None and epochs >= after

    @contextlib.contextmanager
    def _outages_logged(self, problem: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a storage outage must not end the training
            log.warning("%s: %s", problem, one_line(error, 200))

    def _open(self) -> optuna.Study:
        if self.study is None:
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            self.storage = open_storage(self.plan["storage"], Path(self.plan["folder"]))
            pruner = create_pruner(self.plan["settings"], self.plan["num_epochs"])
            self.study = optuna.load_study(study_name=self.plan["study"], storage=self.storage, pruner=pruner)
        return self.study


if __name__ == "__main__":
    if is_first_process():
        end_with_parent(sys.stdin.fileno())
    run_trial(Path(sys.argv[1]))
