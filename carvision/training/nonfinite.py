"""Handle a loss that is inf or NaN: list the photos of its batch, and stop the run or skip the batch."""

import logging
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytorch_lightning as pl
import torch
from torch import Tensor

from carvision.errors import InputError, one_line
from carvision.files.atomic import write_csv
from carvision.training.distributed.collectives import any_process, gather_objects
from carvision.training.module import LitClassifier, datamodule_of
from carvision.training.run.checkpoints import LAST

log = logging.getLogger(__name__)

MAX_SHOWN = 5  # photos in the message; the file has all


class NonFiniteLoss(pl.Callback):
    """Find a training loss that is inf or NaN, and write the photos of its batch to nonfinite_loss.csv.

    Without `skip` the run stops, before a checkpoint is written. The check runs on the device; its result is read at
    each checkpoint, and at every step if training on the CPU. skip: the run continues. The update is skipped, with all
    batches accumulated for it, and the batch's effect on batch-norm statistics is undone. Non-finite gradients count,
    too; each step waits for the device.
    """

    def __init__(self, folder: Path, skip: bool):
        self.file, self.skip = folder / "nonfinite_loss.csv", skip

    def on_train_start(self, trainer: pl.Trainer, module: LitClassifier) -> None:
        self._reset(module)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: LitClassifier) -> None:
        self._reset(module)

    def _reset(self, module: LitClassifier) -> None:
        self.step = torch.full((), -1, dtype=torch.int64, device=module.device)  # counts steps since this reset
        self.first_bad_step = self.step.clone()  # -1: none yet
        self.first_batch = -1  # index in the epoch of the batch of step 0; -1: not known yet
        self.bad_update = False

    def on_train_batch_start(self, trainer: pl.Trainer, module: LitClassifier, batch, batch_idx: int) -> None:
        if self.first_batch < 0:
            self.first_batch = batch_idx
        self.step = self.step + 1
        if self.skip:
            self.bad_batch = False
            self.statistics = [value.clone() for value in floating_buffers(module)]

    def on_before_backward(self, trainer: pl.Trainer, module: LitClassifier, loss: Tensor) -> None:
        bad = ~loss.detach().isfinite()
        self.first_bad_step = torch.where(bad & (self.first_bad_step < 0), self.step, self.first_bad_step)
        if self.skip:
            self.bad_batch |= bool(bad)
            self.bad_update |= any_process(bool(bad))

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: LitClassifier, optimizer) -> None:
        if not self.skip:
            return
        if trainer.precision != "16-mixed":  # its loss scaling relies on non-finite gradients
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            self.bad_update |= not torch.nn.utils.get_total_norm(gradients).isfinite()
        if self.bad_update:
            optimizer.zero_grad(set_to_none=True)  # parameters without a gradient are not updated

    def on_train_batch_end(self, trainer: pl.Trainer, module: LitClassifier, outputs, batch, batch_idx) -> None:
        if not self.skip:
            if module.device.type == "cpu":
                self.check(trainer)
            return
        if self.bad_batch:
            for value, before in zip(floating_buffers(module), self.statistics, strict=True):
                value.copy_(before)
        if self.bad_update and not trainer.fit_loop._should_accumulate():
            self.bad_update = False
            batches = range(batch_idx - batch_idx % trainer.accumulate_grad_batches, batch_idx + 1)
            photos = record_photos(trainer, batches, self.file)
            log.warning(
                "epoch %d, batch %d: the loss or its gradient is not finite; its update is skipped (photos: %s; all "
                "are in %s)", trainer.current_epoch + 1, batch_idx + 1, photos, self.file,
            )  # fmt: skip

    def check(self, trainer: pl.Trainer) -> None:
        """Raise InputError if a non-finite loss occurred since the reset. All processes must call this; synchronises
        with the device."""
        firsts = gather_objects(int(self.first_bad_step))
        bad = [first for first in firsts if first >= 0]
        if bad and not self.skip:
            batch_idx = self.first_batch + min(bad)
            photos = record_photos(trainer, range(batch_idx, batch_idx + 1), self.file)
            where = f"in epoch {trainer.current_epoch + 1}, batch {batch_idx + 1}"
            message = f"the loss is not finite {where} (photos: {photos}; all are in {self.file})"
            raise InputError(f"{message}. {self._advice()}")

    def check_all(self, trainer: pl.Trainer) -> None:
        """Check before a checkpoint: also the weights, which a gradient can ruin, and the last validation loss."""
        self.check(trainer)
        where = f"after epoch {trainer.current_epoch + 1}, batch {trainer.fit_loop.batch_idx + 1}"
        if any_process(not are_finite(cast(LitClassifier, trainer.lightning_module))):
            raise InputError(f"weights are not finite {where}. {self._advice()}")
        value = trainer.callback_metrics.get("val/loss")
        if value is not None and any_process(not value.isfinite()):
            if not self.skip:
                raise InputError(f"the validation loss is {value} {where}. {self._advice()}")
            log.warning("the validation loss is %s %s", value, where)

    def _advice(self) -> str:
        last = self.file.parent / "checkpoints" / LAST
        state = f"{last} is from before it" if last.exists() else "no checkpoint was written yet"
        return (
            "Often optimizer.lr is too large: continue with another and run.allow_changes=true, or try "
            "trainer.gradient_clip_val, another trainer.precision, or run.on_nonfinite_loss=skip; " + state
        )


def are_finite(module: LitClassifier) -> bool:
    """Return whether all weights and buffers of this process are finite; synchronises with the device once."""
    own = [getattr(p.detach(), "to_local", p.detach)() for p in module.parameters()]  # shards under FSDP
    return bool(torch.stack([value.isfinite().all() for value in (*own, *floating_buffers(module))]).all())


def floating_buffers(module: LitClassifier) -> list[Tensor]:
    """Return the model's floating-point buffers, such as batch norm's running statistics."""
    return [value for value in module.model.buffers() if value.is_floating_point()]


def _read_records(file: Path) -> list[pd.DataFrame]:
    """Return the records that an earlier start wrote to the file, as a list of at most one frame."""
    try:
        return [pd.read_csv(file, encoding="utf-8")]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        log.warning("%s can't be read (%s): what it listed is lost", file, one_line(error, 100))
        return []


def record_photos(trainer: pl.Trainer, batches: range, file: Path) -> str:
    """Add the photos of these batches of the epoch, of all processes, to the file; return the first few, as text."""
    loader: Any = trainer.train_dataloader  # a ResumableLoader
    rows, photos = loader.sampler.rows(trainer.current_epoch), datamodule_of(trainer).datasets["train"]
    listed = [(i, photos.path(row)) for i in batches for row in rows[i]]
    if trainer.is_global_zero:
        new = pd.DataFrame(listed, columns=["batch", "path"])
        new.insert(0, "epoch", trainer.current_epoch)
        write_csv(file, pd.concat([*_read_records(file), new]))
    return ", ".join(path for _, path in listed[:MAX_SHOWN])
