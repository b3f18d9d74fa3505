"""How long each stage of a run takes."""

import json
import logging
import os
import time
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn

from carvision.whole_files import write_json

log = logging.getLogger(__name__)


class Clock(Callback):
    """Seconds of each stage: reading, building, training, test; of training also those of all validations. "total" of
    all stages, and "cpu" of this process and those that read its photos.

    file: what earlier starts of the run took, which is added; kept up to date with every epoch. earlier: instead of
    what the file holds.
    """

    def __init__(self, file: Path, earlier: dict[str, float] | None = None):
        self.file = file
        self.seconds = dict(earlier or _read_seconds(file))
        self.last, self.last_cpu = time.perf_counter(), cpu_seconds()

    def lap(self, stage: str) -> None:
        """The time since the last lap was the stage's."""
        now, cpu = time.perf_counter(), cpu_seconds()
        for name, passed in {stage: now - self.last, "total": now - self.last, "cpu": cpu - self.last_cpu}.items():
            self.add(name, passed)
        self.last, self.last_cpu = now, cpu

    def add(self, name: str, passed: float) -> None:
        self.seconds[name] = round(self.seconds.pop(name, 0.0) + passed, 3)

    def save(self) -> None:
        write_json(self.file, self.seconds)

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.validation_begun = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self.add("validation", time.perf_counter() - self.validation_begun)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.lap("training")
        if trainer.is_global_zero:
            self.save()


def _read_seconds(file: Path) -> dict[str, float]:
    try:
        seconds = json.loads(file.read_text(encoding="utf-8"))
        return {name: float(value) for name, value in seconds.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("%s is damaged (%s): the time of earlier starts is not counted", file, " ".join(str(error).split()))
        return {}


def cpu_seconds() -> float:
    times = os.times()  # of children: of those that have ended, as Lightning ends its readers after each stage
    return times.user + times.system + times.children_user + times.children_system
