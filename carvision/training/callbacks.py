"""What happens at the end of each epoch: history.csv, a line in the log, curves; and the progress bar."""

import logging
import sys
import time
from pathlib import Path

import pandas as pd
import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar

from carvision.reports.curves import plot_curves

log = logging.getLogger(__name__)


class History(pl.Callback):
    """history.csv: a row an epoch with epoch, lr (of its last step), seconds, and all figures of train and val."""

    def __init__(self, file: Path):
        self.file = file
        self.rows: list[dict] = []
        self.started = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.started = time.perf_counter()
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]  # a number on the host: nothing waits for the device

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        figures = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        seconds = time.perf_counter() - self.started
        self.rows.append({"epoch": trainer.current_epoch, "lr": self.lr, "seconds": seconds, **figures})
        if trainer.is_global_zero:
            partial = self.file.with_suffix(".partial")
            pd.DataFrame(self.rows).to_csv(partial, index=False, float_format="%.6g")
            partial.replace(self.file)


class EpochLines(pl.Callback):
    """A line an epoch in the log: losses, top-1 of each head, and whether it is the best so far."""

    def __init__(self, monitor: str):
        self.monitor = monitor
        self.best: float | None = None

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        figures = trainer.callback_metrics
        parts = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"]
        for split in ("train", "val"):
            parts.append(f"{split} loss {figures[f'{split}/loss']:.4f}")
            for name in module.labels:
                key = "top1" if f"{split}/{name}/top1" in figures else "mae"
                if f"{split}/{name}/{key}" in figures:
                    parts.append(f"{name} {key} {figures[f'{split}/{name}/{key}']:.4g}")
        checkpoint = trainer.checkpoint_callback
        best = checkpoint.best_model_score
        if best is not None and float(best) != self.best:
            self.best = float(best)
            parts.append("best so far")
        log.info("  ".join(parts))


class Curves(pl.Callback):
    """Loss and accuracy curves as PNG, drawn anew when training ends, also where it is interrupted."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._draw(trainer, module)

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._draw(trainer, module)

    def _draw(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        file = self.folder / "history.csv"
        if trainer.is_global_zero and file.exists():
            plot_curves(pd.read_csv(file), self.folder)


def create_progress_bar() -> ProgressBar:
    """Rich on a terminal. Where the output goes to a file, a line a few seconds would only fill it: none is shown."""
    if sys.stderr.isatty() or sys.stdout.isatty():
        return RichProgressBar(leave=False)
    return TQDMProgressBar(refresh_rate=0)
