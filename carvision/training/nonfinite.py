"""A loss that is not finite: the photos of its batch are named, and the run stops or leaves the batch out."""

import logging
from pathlib import Path

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from carvision.errors import InputError
from carvision.training.checkpoints import LAST
from carvision.training.many_processes import any_process, gather_objects
from carvision.whole_files import write_csv

log = logging.getLogger(__name__)

MAX_SHOWN = 5  # photos in the message; the file has all


class NonFiniteLoss(Callback):
    """Finds a training loss that is infinite or no number; the photos of its batch are in nonfinite_loss.csv.

    Otherwise than with `skip`, the run stops, before anything of it reaches a checkpoint. The loss is watched on the
    device, and looked at when a checkpoint is due, on the CPU at every step.
    skip: the run goes on. The update is left out, with all batches that were accumulated for it, and what such a batch
    did to statistics of batch norm is undone. A gradient that is not finite counts, too, and each step waits for the
    device.
    """

    def __init__(self, folder: Path, skip: bool):
        self.file, self.skip = folder / "nonfinite_loss.csv", skip

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._watch(module)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._watch(module)

    def _watch(self, module: pl.LightningModule) -> None:
        self.place = torch.full((), -1, dtype=torch.int64, device=module.device)  # of the step among those since now
        self.first_bad = self.place.clone()  # of the first one with such a loss
        self.begun: int | None = None  # the batch of the epoch with place 0
        self.bad_update = False

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch, batch_idx: int) -> None:
        if self.begun is None:
            self.begun = batch_idx
        self.place = self.place + 1
        if self.skip:
            self.bad_batch = False
            self.statistics = [value.clone() for value in floating_buffers(module)]

    def on_before_backward(self, trainer: pl.Trainer, module: pl.LightningModule, loss: Tensor) -> None:
        bad = ~loss.detach().isfinite()
        self.first_bad = torch.where(bad & (self.first_bad < 0), self.place, self.first_bad)
        if self.skip:
            self.bad_batch |= bool(bad)
            self.bad_update |= any_process(bool(bad))

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer) -> None:
        if not self.skip:
            return
        if trainer.precision != "16-mixed":  # which looks for the right scale by gradients that are not finite
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            self.bad_update |= not torch.nn.utils.get_total_norm(gradients).isfinite()
        if self.bad_update:
            optimizer.zero_grad(set_to_none=True)  # a parameter without a gradient stays as it is

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs, batch, batch_idx) -> None:
        if not self.skip:
            if module.device.type == "cpu":
                self.look(trainer)
            return
        if self.bad_batch:
            for value, before in zip(floating_buffers(module), self.statistics, strict=True):
                value.copy_(before)
        if self.bad_update and not trainer.fit_loop._should_accumulate():
            self.bad_update = False
            batches = range(batch_idx - batch_idx % trainer.accumulate_grad_batches, batch_idx + 1)
            photos = record_photos(trainer, batches, self.file)
            log.warning(
                "epoch %d, batch %d: the loss or its gradient is not finite; its update is left out (photos: %s; all "
                "are in %s)", trainer.current_epoch + 1, batch_idx + 1, photos, self.file,
            )  # fmt: skip

    def look(self, trainer: pl.Trainer) -> None:
        """Raises InputError where one was met. To be called by all processes; waits for the device."""
        firsts = gather_objects(int(self.first_bad))
        bad = [first for first in firsts if first >= 0]
        if bad and not self.skip:
            batch_idx = self.begun + min(bad)
            photos = record_photos(trainer, range(batch_idx, batch_idx + 1), self.file)
            what = f"the loss is not finite in epoch {trainer.current_epoch + 1}, batch {batch_idx + 1} (photos: "
            raise InputError(f"{what}{photos}; all are in {self.file}). {self._advice()}")

    def check_all(self, trainer: pl.Trainer) -> None:
        """Before a checkpoint: also at the weights, which a gradient can ruin, and at the validation just made."""
        self.look(trainer)
        where = f"after epoch {trainer.current_epoch + 1}, batch {trainer.fit_loop.batch_idx + 1}"
        if any_process(not are_finite(trainer.lightning_module)):
            raise InputError(f"weights are not finite {where}. {self._advice()}")
        value = trainer.callback_metrics.get("val/loss")
        if value is not None and any_process(not value.isfinite()):
            if not self.skip:
                raise InputError(f"the validation loss is {value} {where}. {self._advice()}")
            log.warning("the validation loss is %s %s", value, where)

    def _advice(self) -> str:
        kept = self.file.parent / "checkpoints" / LAST
        then = f"{kept} is from before it" if kept.exists() else "no checkpoint was written yet"
        return (
            "Often optimizer.lr is too large: go on with another and run.allow_changes=true, or try "
            "trainer.gradient_clip_val, another trainer.precision, or run.on_nonfinite_loss=skip; " + then
        )


def are_finite(module: pl.LightningModule) -> bool:
    """Whether all weights and statistics are, of those in this process; waits for the device once."""
    here = [getattr(p.detach(), "to_local", p.detach)() for p in module.parameters()]  # parts of them under FSDP
    return bool(torch.stack([value.isfinite().all() for value in (*here, *floating_buffers(module))]).all())


def floating_buffers(module: pl.LightningModule) -> list[Tensor]:
    """Among them the running statistics of batch norm."""
    return [value for value in module.model.buffers() if value.is_floating_point()]


def _read_records(file: Path) -> list[pd.DataFrame]:
    try:
        return [pd.read_csv(file, encoding="utf-8")]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        log.warning("%s can't be read (%s): what it listed is lost", file, " ".join(str(error).split())[:100])
        return []


def record_photos(trainer: pl.Trainer, batches: range, file: Path) -> str:
    """The photos of batches of this epoch, of all processes, into the file; returns the first of them."""
    rows = trainer.train_dataloader.sampler.rows(trainer.current_epoch)
    photos = trainer.datamodule.photos["train"]
    listed = [(i, photos.path(row)) for i in batches for row in rows[i]]
    if trainer.is_global_zero:
        new = pd.DataFrame(listed, columns=["batch", "path"])
        new.insert(0, "epoch", trainer.current_epoch)
        write_csv(file, pd.concat([*_read_records(file), new]))
    return ", ".join(path for _, path in listed[:MAX_SHOWN])
