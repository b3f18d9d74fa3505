"""Profile training, for `trainer.profiler`."""

import logging
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.profilers import SimpleProfiler
from torch.profiler import ProfilerActivity

from carvision.whole_files import own_folder, write_text

log = logging.getLogger(__name__)

TABLE = "profile.txt"
TRACE = "profile/trace.pt.trace.json.gz"  # the suffix that TensorBoard's plugin expects; Perfetto takes any
ROWS = 40


class SimpleProfile(pl.Callback):
    """Write profile.txt: how often each part of the training loop ran and how long it took, after each fit and test.

    Times are the host's: on a GPU a part's time includes waiting for work that earlier parts launched.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.profiler = SimpleProfiler()

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            table = self.profiler.summary().partition("Profiler Report")[2].strip()  # drops the name of the last stage
            write_text(self.folder / TABLE, table + "\n")
            if stage == "fit":
                log.info("trainer.profiler=simple: %s", self.folder / TABLE)


class TorchProfile(pl.Callback):
    """Profile a few training steps of the first process with torch.profiler: every operator and, on a GPU, every
    kernel.

    Writes a trace in profile/, for https://ui.perfetto.dev or TensorBoard, and a table in profile.txt. wait, warmup,
    active: steps skipped, run with the profiler on, and recorded.
    """

    def __init__(self, folder: Path, wait: int = 10, warmup: int = 2, active: int = 3):
        self.folder = folder
        self.schedule = torch.profiler.schedule(wait=wait, warmup=warmup, active=active, repeat=1)
        self.profile: torch.profiler.profile | None = None
        self.written = False

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.is_global_zero and not self.written:
            kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (module.device.type == "cuda")
            self.profile = torch.profiler.profile(activities=kinds, schedule=self.schedule, on_trace_ready=self._write)
            self.profile.start()

    def on_train_batch_end(self, *_) -> None:
        if self.profile is not None:
            self.profile.step()
            if self.written:
                self._stop()

    def on_train_end(self, *_) -> None:
        if self.profile is not None:
            self._stop()  # writes what it has if there were too few steps
            if not self.written:
                log.warning("trainer.profiler=torch: training had too few steps for a trace")

    def on_exception(self, *_) -> None:
        if self.profile is not None:
            self._stop()

    def _stop(self) -> None:
        profile, self.profile = self.profile, None
        profile.stop()

    def _write(self, profile: torch.profiler.profile) -> None:
        trace = self.folder / TRACE
        own_folder(trace.parent)
        trace.unlink(missing_ok=True)  # the profiler would write through a link
        profile.export_chrome_trace(str(trace))
        order = "self_cuda_time_total" if ProfilerActivity.CUDA in profile.activities else "self_cpu_time_total"
        write_text(self.folder / TABLE, profile.key_averages().table(sort_by=order, row_limit=ROWS))
        self.written = True
        log.info("trainer.profiler=torch: %s (open it at https://ui.perfetto.dev) and %s", trace, self.folder / TABLE)


def create_profile(kind: str | None, folder: Path) -> SimpleProfile | TorchProfile | None:
    """Create the profiler callback. kind: trainer.profiler."""
    if kind is None:
        return None
    return {"simple": SimpleProfile, "torch": TorchProfile}[kind](folder)
