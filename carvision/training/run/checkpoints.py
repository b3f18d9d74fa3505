"""Write checkpoints, each complete or not at all: last.ckpt and best.ckpt."""

import logging
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import CheckpointIO

from carvision.errors import InputError
from carvision.files.atomic import atomic_file, create_folder, link_or_copy
from carvision.files.folders import BEST, LAST
from carvision.training.module import LitClassifier

log = logging.getLogger(__name__)


class Checkpoints(Checkpoint):
    """Write last.ckpt after every epoch; also as best.ckpt if `monitor` (mode: min or max) has its best value so far.

    before: called before writing; raises to prevent it.
    """

    def __init__(self, folder: Path, monitor: str, mode: str, before: Callable[[pl.Trainer], None]):
        self.folder, self.monitor, self.sign = folder, monitor, 1 if mode == "max" else -1
        self.before = before
        self.forget_best = False  # ignore the best value stored in the checkpoint: its best.ckpt is lost
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.saved_at = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.is_best(trainer):
            self.best, self.best_epoch = float(trainer.callback_metrics[self.monitor]), trainer.current_epoch
        if self.best_epoch is None:  # no value yet; a run needs weights to test in the end
            self.best_epoch = trainer.current_epoch
        if self.best_epoch == trainer.current_epoch:
            # First as best.ckpt: whenever this is killed, the newest checkpoint knows an epoch whose best.ckpt exists
            self.save(trainer, BEST)
            if trainer.is_global_zero:
                link_or_copy(self.folder / BEST, self.folder / LAST)
        else:
            self.save(trainer)

    def is_best(self, trainer: pl.Trainer) -> bool:
        """Return whether the epoch is better than all before; false if the monitor is NaN or undefined."""
        value = float(trainer.callback_metrics.get(self.monitor, math.nan))
        return not math.isnan(value) and (self.best is None or self.sign * value > self.sign * self.best)

    def save(self, trainer: pl.Trainer, name: str = LAST) -> None:
        """Write a checkpoint now. All processes must call this."""
        self.before(trainer)
        trainer.save_checkpoint(self.folder / name)
        self.saved_at = time.monotonic()

    def state_dict(self) -> dict:
        return {"best": self.best, "best_epoch": self.best_epoch, "monitor": self.monitor}

    def load_state_dict(self, state_dict: dict) -> None:
        if state_dict["monitor"] == self.monitor and not self.forget_best:  # values of another metric can't be compared
            self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]


class AtomicCheckpointIO(CheckpointIO):
    """Write checkpoints atomically; read them with torch's safe default."""

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options=None) -> None:
        create_folder(Path(path).parent)
        checkpoint = apply_to_collection(checkpoint, torch.Tensor, lambda tensor: tensor.cpu())
        with atomic_file(Path(path)) as partial, partial.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch replaces the OSError of a failed write by its own
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None

    def load_checkpoint(self, path: str | Path, map_location=None, weights_only: bool | None = True) -> dict:
        return torch.load(path, map_location="cpu", weights_only=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def require_space(folder: Path, lit: LitClassifier, averaged: bool) -> None:
    """Raise InputError if the run's checkpoints would not fit: last, best and a partial one, whose space the model file
    takes later. averaged: a moving average of the weights is kept, too."""
    needed_mb = 3 * checkpoint_bytes(lit, averaged) / 1e6
    files = [file.stat() for file in (folder / "checkpoints").glob("*.ckpt")]
    existing_mb = sum({file.st_ino: file.st_size for file in files}.values()) / 1e6  # best and last may be hard links
    free_mb = shutil.disk_usage(folder).free / 1e6
    if free_mb + existing_mb < needed_mb:
        raise InputError(
            f"run.dir: {folder} has {free_mb:,.0f} MB free, and the checkpoints of this network need about "
            f"{needed_mb - existing_mb:,.0f} MB; free some, or choose another disk with run.dir="
        )


def checkpoint_bytes(lit: LitClassifier, averaged: bool) -> int:
    """Estimate a checkpoint's bytes: float32 weights, their averages, and the optimizer's state of those trained."""
    sizes = [(p.numel(), p.requires_grad) for p in lit.parameters()]
    # What later phases train is not known yet: at most all
    trained = sum(size for size, in_first in sizes if in_first or len(lit.phases) > 1)
    optimizers = [phase["optimizer"] for phase in lit.phases]
    # Adam's two moments are the usual maximum
    values_per_weight = max(bool(each.get("momentum")) if "sgd" in each["name"] else 2 for each in optimizers)
    return 4 * ((1 + averaged) * sum(size for size, _ in sizes) + values_per_weight * trained)
