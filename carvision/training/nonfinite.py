"""Stop a run whose loss is inf or NaN, and list the photos of that batch."""

from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytorch_lightning as pl
import torch
from torch import Tensor

from carvision.errors import InputError
from carvision.files.atomic import write_csv
from carvision.training.distributed.collectives import any_process, gather_objects
from carvision.training.module import LitClassifier, datamodule_of
from carvision.training.run.checkpoints import LAST

MAX_SHOWN = 5  # photos in the message; the file has all


class NonFiniteLoss(pl.Callback):
    """Stop the run before it writes a checkpoint, if a training loss was inf or NaN; write the photos of its batch to
    nonfinite_loss.csv.

    The check runs on the device; its result is read at each checkpoint, and at every step if training on the CPU.
    """

    def __init__(self, folder: Path):
        self.file = folder / "nonfinite_loss.csv"

    def on_train_start(self, trainer: pl.Trainer, module: LitClassifier) -> None:
        self.step = torch.full((), -1, dtype=torch.int64, device=module.device)  # counts this epoch's steps
        self.first_bad_step = self.step.clone()  # -1: none yet
        self.first_batch = -1  # index in the epoch of the batch of step 0; -1: not known yet

    on_train_epoch_start = on_train_start  # Lightning calls only the latter in the rest of a resumed epoch

    def on_train_batch_start(self, trainer: pl.Trainer, module: LitClassifier, batch, batch_idx: int) -> None:
        if self.first_batch < 0:
            self.first_batch = batch_idx
        self.step = self.step + 1

    def on_before_backward(self, trainer: pl.Trainer, module: LitClassifier, loss: Tensor) -> None:
        bad = ~loss.detach().isfinite()
        self.first_bad_step = torch.where(bad & (self.first_bad_step < 0), self.step, self.first_bad_step)

    def on_train_batch_end(self, trainer: pl.Trainer, module: LitClassifier, outputs, batch, batch_idx) -> None:
        if module.device.type == "cpu":
            self.check(trainer)

    def check(self, trainer: pl.Trainer) -> None:
        """Raise InputError if a loss of this epoch was not finite. All processes must call this; synchronises with the
        device."""
        bad = [first for first in gather_objects(int(self.first_bad_step)) if first >= 0]
        if bad:
            batch_idx = self.first_batch + min(bad)
            photos = record_photos(trainer, batch_idx, self.file)
            raise InputError(
                f"the loss is not finite in epoch {trainer.current_epoch + 1}, batch {batch_idx + 1} "
                f"(photos: {photos}; all are in {self.file}). {self._advice()}"
            )

    def check_all(self, trainer: pl.Trainer) -> None:
        """Check before a checkpoint: also the weights, which a gradient can ruin, and the last validation loss."""
        self.check(trainer)
        where = f"after epoch {trainer.current_epoch + 1}, batch {trainer.fit_loop.batch_idx + 1}"
        if any_process(not are_finite(cast(LitClassifier, trainer.lightning_module))):
            raise InputError(f"weights are not finite {where}. {self._advice()}")
        value = trainer.callback_metrics.get("val/loss")
        if value is not None and any_process(not value.isfinite()):
            raise InputError(f"the validation loss is {value} {where}. {self._advice()}")

    def _advice(self) -> str:
        last = self.file.parent / "checkpoints" / LAST
        state = f"{last} is from before it" if last.exists() else "no checkpoint was written yet"
        return (
            "Often optimizer.lr is too large: continue with another and run.allow_changes=true, or try "
            "trainer.gradient_clip_val or another trainer.precision; " + state
        )


def are_finite(module: LitClassifier) -> bool:
    """Return whether all weights and buffers of this process are finite; synchronises with the device once."""
    own = [getattr(p.detach(), "to_local", p.detach)() for p in module.parameters()]  # shards under FSDP
    statistics = [value for value in module.model.buffers() if value.is_floating_point()]
    return bool(torch.stack([value.isfinite().all() for value in (*own, *statistics)]).all())


def record_photos(trainer: pl.Trainer, batch_idx: int, file: Path) -> str:
    """Write the photos of a batch of this epoch, of all processes, to the file; return the first few, as text."""
    loader: Any = trainer.train_dataloader  # a ResumableLoader
    rows, photos = loader.sampler.rows(trainer.current_epoch), datamodule_of(trainer).datasets["train"]
    listed = [photos.paths[row] for row in rows[batch_idx]]
    if trainer.is_global_zero:
        write_csv(file, pd.DataFrame({"epoch": trainer.current_epoch, "batch": batch_idx, "path": listed}))
    return ", ".join(listed[:MAX_SHOWN])
