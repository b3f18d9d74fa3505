"""Callbacks of a run: times, history.csv, log lines, curves, moving average, early stopping."""

import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, WeightAveraging
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from carvision.data.loading.loader import BATCHES_AHEAD, Loader
from carvision.files.atomic import write_csv, write_json
from carvision.reports.tables import percent
from carvision.training.module import LitClassifier
from carvision.training.run.folder import read_json

log = logging.getLogger(__name__)


class Clock(pl.Callback):
    """Measure the seconds of each stage: reading, building, training (validations included, and listed separately),
    test; "total" of all stages; and "cpu" of this process and its workers.

    file: seconds.json, to whose values of earlier starts this one adds; updated every epoch. earlier: use these values
    instead of the file's.
    """

    def __init__(self, file: Path, earlier: dict[str, float] | None = None):
        self.file = file
        stored = earlier or read_json(file, dict, "the time of earlier starts is not counted") or {}
        self.seconds = {name: value for name, value in stored.items() if isinstance(value, float | int)}
        self.last, self.last_cpu = time.perf_counter(), cpu_seconds()

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to `stage`."""
        now, cpu = time.perf_counter(), cpu_seconds()
        self.add(stage, now - self.last)
        self.add("total", now - self.last)
        self.add("cpu", cpu - self.last_cpu)
        self.last, self.last_cpu = now, cpu

    def add(self, name: str, passed: float) -> None:
        self.seconds[name] = round(self.seconds.pop(name, 0.0) + passed, 3)

    def save(self) -> None:
        write_json(self.file, self.seconds)

    def on_validation_start(self, trainer: pl.Trainer, module: LitClassifier) -> None:
        self.validation_started = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, module: LitClassifier) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self.add("validation", time.perf_counter() - self.validation_started)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: LitClassifier) -> None:
        self.lap("training")
        if trainer.is_global_zero:
            self.save()


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children that have exited."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class ReadAhead(pl.Callback):
    """Start reading validation photos in the last steps of training, whose own photos are read by then."""

    def on_train_batch_start(self, trainer: pl.Trainer, module: LitClassifier, batch, batch_idx: int) -> None:
        loader = trainer.val_dataloaders
        if isinstance(loader, Loader) and trainer.num_training_batches - batch_idx <= BATCHES_AHEAD:
            loader.start()


class History(pl.Callback):
    """Write history.csv: a row an epoch with epoch, phase (if there are several), lr (the largest of all parameter
    groups, in the epoch's last step), seconds, and all train and val metrics.

    The file is never read: every checkpoint holds the rows, for the run that resumes there.
    """

    def __init__(self, file: Path):
        self.file = file
        self.rows: list[dict] = []
        self.started = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, module: LitClassifier) -> None:
        self.started = time.perf_counter()

    def state_dict(self) -> dict:
        """Return the seconds of the current epoch and all rows."""
        return {"seconds": time.perf_counter() - self.started, "rows": self.rows}

    def load_state_dict(self, state_dict: dict) -> None:
        self.started = time.perf_counter() - state_dict["seconds"]
        self.rows = state_dict["rows"]

    def on_train_batch_start(self, trainer: pl.Trainer, module: LitClassifier, batch, batch_idx: int) -> None:
        # Host values: no device synchronisation
        self.lr = max(group["lr"] for group in trainer.optimizers[0].param_groups)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: LitClassifier) -> None:
        # Before the checkpoint callbacks: an epoch with a checkpoint also has its row.
        names = [f"{split}/{name}" for split, metrics in module.epoch_metrics().items() for name in metrics]
        found = {**dict.fromkeys(names), **trainer.callback_metrics}  # undefined metrics become empty cells
        metrics = {name: value if value is None else float(value) for name, value in sorted(found.items())}
        seconds = time.perf_counter() - self.started
        phase = {"phase": module.phase["name"]} if len(module.phases) > 1 else {}
        self.rows.append({"epoch": trainer.current_epoch, **phase, "lr": float(self.lr), "seconds": seconds, **metrics})
        if trainer.is_global_zero:
            write_csv(self.file, pd.DataFrame(self.rows), float_format="%.6g")


class EpochLines(pl.Callback):
    """Log a line an epoch: losses, accuracy of each head in %, and whether the epoch is the best so far.

    is_best: Checkpoints', which counts the epoch only later.
    """

    def __init__(self, is_best: Callable[[pl.Trainer], bool]):
        self.is_best = is_best

    def on_train_epoch_end(self, trainer: pl.Trainer, module: LitClassifier) -> None:
        metrics = trainer.callback_metrics
        parts = [f"epoch {trainer.current_epoch + 1}/{module.num_epochs}"]
        for split in ("train", "val"):
            loss = metrics.get(f"{split}/loss")
            parts.append(f"{split} loss {'–' if loss is None else f'{loss:.3f}'}")
            for name, label in module.labels.items():
                if "ids" in label:
                    top1 = metrics.get(f"{split}/{name}/top1")
                    parts.append(f"{name} {percent(None if top1 is None else float(top1))} %")
                else:
                    error = metrics.get(f"{split}/{name}/mae")
                    parts.append(f"{name} mae {'–' if error is None else f'{error:.4g}'}")
        if self.is_best(trainer):
            parts.append("best")
        # A wider gap before "val", where a narrow terminal then breaks the line
        log.info("  ".join(parts).replace("  val loss", "   val loss"))


class Curves(pl.Callback):
    """Draw loss and accuracy curves as PNG when training ends or is interrupted. keras: as plot_curves takes it."""

    def __init__(self, folder: Path, history: History, keras: bool):
        self.folder, self.history, self.keras = folder, history, keras

    def on_fit_end(self, trainer: pl.Trainer, module: LitClassifier) -> None:
        if trainer.is_global_zero and self.history.rows:
            from carvision.reports.plots import plot_curves  # late import: matplotlib, which training does not need

            num_classes = {head: len(label["ids"]) for head, label in module.labels.items() if "ids" in label}
            plot_curves(pd.DataFrame(self.history.rows), self.folder, num_classes, self.keras)

    def on_exception(self, trainer: pl.Trainer, module: LitClassifier, exception: BaseException) -> None:
        self.on_fit_end(trainer, module)


class MovingAverage(WeightAveraging):
    """Use an exponential moving average of weights and buffers for validation, checkpoints and the model file.

    The decay at update t is min(decay, (1 + t) / (10 + t)), or the initial weights would dominate for epochs. Each
    phase starts a new average from the previous phase's.
    """

    def __init__(self, decay: float):
        super().__init__()
        self.decay = decay

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: LitClassifier, outputs, batch: dict, batch_idx: int
    ) -> None:
        if trainer.global_step > self._latest_update_step:
            self._update(module)
            self._latest_update_step = trainer.global_step

    @torch.no_grad()
    def _update(self, module: LitClassifier) -> None:
        # Like torch's AveragedModel, which reads its counter from the device twice a step
        average = self._average_model
        assert isinstance(average, AveragedModel)
        count = average.n_averaged
        decay = ((1 + count) / (10 + count)).clamp(max=self.decay) * (count > 0)  # the first average is the weights
        for averaged, current in zip(_tensors(average.module), _tensors(module), strict=True):
            if averaged.is_floating_point():
                averaged.copy_(torch.lerp(current, averaged, decay.to(averaged)))
            else:  # Counters. Not copy_: torch-xla would alias both tensors
                averaged.add_(current - averaged)
        count += 1

    def setup(self, trainer: pl.Trainer, module: LitClassifier, stage: str) -> None:
        self._device = trainer.strategy.root_device  # the module is moved there only later
        super().setup(trainer, module, stage)

    def on_fit_end(self, trainer: pl.Trainer, module: LitClassifier) -> None:
        # Lightning does this in on_train_end, which is not called if a start resumes at the end of a phase.
        self._copy_average_to_current(module)

    # After training, the best checkpoint's weights, already averages, are validated as they are.

    def on_validation_epoch_start(self, trainer: pl.Trainer, module: LitClassifier) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_validation_epoch_start(trainer, module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: LitClassifier) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_validation_epoch_end(trainer, module)


def _tensors(module: torch.nn.Module) -> Iterator[Tensor]:
    return itertools.chain(module.parameters(), module.buffers())


class Patience(EarlyStopping):
    """Stop early, with the patience of the current configuration rather than the checkpoint's. NaN counts as no
    improvement; Lightning's check_finite would end the training."""

    def __init__(self, monitor: str, mode: str, patience: int):
        super().__init__(monitor, patience=patience, mode=mode, check_finite=False, check_on_train_epoch_end=False)

    def load_state_dict(self, state_dict: dict) -> None:
        state = {**state_dict, "patience": self.patience}
        if state["wait_count"] < self.patience:  # it would not have stopped the run with this patience
            state |= {"stopped_epoch": 0, "stopping_reason": EarlyStoppingReason.NOT_STOPPED.value}
            state["stopping_reason_message"] = None
        super().load_state_dict(state)
