"""Measure how long each stage of a run takes."""

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
    """Measure the seconds of each stage: reading, building, training (validations included, and listed separately),
    test; "total" of all stages; and "cpu" of this process and its workers.

    file: seconds.json, to whose values of earlier starts this one adds; updated every epoch. earlier: use these values
    instead of the file's.
    """

    def __init__(self, file: Path, earlier: dict[str, float] | None = None):
        self.file = file
        self.seconds = dict(earlier or _read_seconds(file))
        self.last, self.last_cpu = time.perf_counter(), cpu_seconds()

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to `stage`."""
        now, cpu = time.perf_counter(), cpu_seconds()
        for name, passed in {stage: now - self.last, "total": now - self.last, "cpu": cpu - self.last_cpu}.items():
            self.add(name, passed)
        self.last, self.last_cpu = now, cpu

    def add(self, name: str, passed: float) -> None:
        self.seconds[name] = round(self.seconds.pop(name, 0.0) + passed, 3)

    def save(self) -> None:
        write_json(self.file, self.seconds)

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.validation_started = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self.add("validation", time.perf_counter() - self.validation_started)

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
    """Return the CPU seconds of this process and of its children that have exited (Lightning ends its workers after
    each stage)."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
