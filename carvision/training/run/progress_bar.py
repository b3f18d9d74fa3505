"""Show a run's progress on a terminal: epoch, batches, running loss and accuracy, and the time left of all epochs."""

import math
import shutil
import time

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from carvision.files.progress import create_batch_bar
from carvision.reports.tables import percent
from carvision.system.terminal import num_cells
from carvision.training.module import LitClassifier, callbacks_of
from carvision.training.run.expected_time import ExpectedTime

READ_EVERY_S = 0.5  # between two readings of the running metrics
SHARE = 0.5  # of the terminal's width, at most, for the metrics
VAL_BATCH = 0.3  # of the time of a training batch, until an epoch was validated


class RunBar(pl.Callback):
    """Draw a bar for each epoch, its validation, and the test; messages appear above it.

    The running metrics are copied from a GPU without waiting for it, and read once they have arrived. From an
    accelerator that can't do that they are not read.
    """

    def __init__(self):
        self.bar = None

    def _show(self, what: str, done: int, total: int, after: str = "") -> None:
        """Show `done` of `total` batches. after: the text behind the bar."""
        if self.bar is None:
            self.bar = create_batch_bar()
            self.task = self.bar.add_task(what, total=total, after="")
            self.bar.start()
        self.bar.update(self.task, description=what, total=total, completed=done, after=after)

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def on_train_start(self, trainer: pl.Trainer, module: LitClassifier) -> None:
        # Of this phase, as another one trains other layers. The first batch prepares much and is not timed.
        self.seconds, self.batches = {"train": 0.0, "val": 0.0}, {"train": 0, "val": 0}
        self.last = math.nan
        self.arriving: tuple[list[str], Tensor, torch.cuda.Event | None] | None = None
        self.metrics: dict[str, float] = {}
        self.read_after = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, module: LitClassifier) -> None:
        self.metrics, self.arriving, self.read_after = {}, None, 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, module: LitClassifier, outputs, batch, batch_idx: int) -> None:
        self._time("train")
        if time.monotonic() > self.read_after:
            self.read_after = time.monotonic() + READ_EVERY_S
            self._read(module)
        num_batches = int(trainer.num_training_batches)
        left = _epochs_left(trainer, module) * num_batches - batch_idx - 1
        epoch = f"epoch {trainer.current_epoch + 1}/{module.num_epochs}"
        val_left = _epochs_left(trainer, module) * _num_val_batches(trainer)
        after = f"{self._metrics_text(module)}{self._left_text(trainer, module, left, val_left)}"
        self._show(epoch, batch_idx + 1, num_batches, after)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, module: LitClassifier, outputs, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._time("val")
        num_batches, epochs_after = _num_val_batches(trainer), _epochs_left(trainer, module) - 1
        left, val_left = epochs_after * int(trainer.num_training_batches), (epochs_after + 1) * num_batches
        after = f"{self._metrics_text(module)}{self._left_text(trainer, module, left, val_left - batch_idx - 1)}"
        self._show("validation", batch_idx + 1, num_batches, after)

    def on_test_batch_end(
        self, trainer: pl.Trainer, module: LitClassifier, outputs, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._show("test", batch_idx + 1, int(sum(trainer.num_test_batches)))

    def on_train_end(self, trainer: pl.Trainer, module: LitClassifier) -> None:
        self._stop()

    def on_test_end(self, trainer: pl.Trainer, module: LitClassifier) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, module: LitClassifier, exception: BaseException) -> None:
        self._stop()

    def _time(self, split: str) -> None:
        now = time.monotonic()
        if not math.isnan(self.last):
            self.seconds[split] += now - self.last
            self.batches[split] += 1
        self.last = now

    def _left_text(self, trainer: pl.Trainer, module: LitClassifier, train_batches: int, val_batches: int) -> str:
        """Return the time that so many batches of this phase take, and the phases after it: "1:02:03 left"."""
        if not self.batches["train"]:
            return ""
        of_train = self.seconds["train"] / self.batches["train"]
        of_val = self.seconds["val"] / self.batches["val"] if self.batches["val"] else VAL_BATCH * of_train
        after = sum(each.seconds_after_phase(trainer, module, of_train) for each in callbacks_of(trainer, ExpectedTime))
        minutes, seconds = divmod(round(train_batches * of_train + val_batches * of_val + after), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"

    def _read(self, module: LitClassifier) -> None:
        """Take over the metrics that have arrived, and send for new ones."""
        kind = module.device.type
        if self.arriving is None and kind in ("cpu", "cuda"):
            running = module.train_metrics.running()
            values = torch.stack([*running.values()]).to("cpu", non_blocking=True)
            event = torch.cuda.Event() if kind == "cuda" else None
            if event is not None:
                event.record()
            self.arriving = list(running), values, event
        if self.arriving is not None:
            names, values, event = self.arriving
            if event is None or event.query():
                self.metrics, self.arriving = dict(zip(names, values.tolist(), strict=True)), None

    def _metrics_text(self, module: LitClassifier) -> str:
        """Return loss and accuracies, followed by two spaces; fewer of them on a narrow terminal."""
        if not self.metrics:
            return ""
        loss = f"loss {self.metrics['loss']:.3f}"
        of_heads = [f"{name} {percent(self.metrics[f'{name}/top1'])} %" for name in module.class_heads]
        for shown in ([loss, *of_heads], [loss, *of_heads[-1:]], [loss]):
            text = "  ".join(shown) + "  "
            if num_cells(text) <= SHARE * shutil.get_terminal_size().columns:
                break
        return text


def _epochs_left(trainer: pl.Trainer, module: LitClassifier) -> int:
    """Return the epochs of this phase that are not finished."""
    return module.phase_position["phase_begun"] + module.phase["epochs"] - trainer.current_epoch


def _num_val_batches(trainer: pl.Trainer) -> int:
    return int(sum(trainer.num_val_batches))
