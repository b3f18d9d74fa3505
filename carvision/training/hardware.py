"""Precision, determinism, settings for NVIDIA GPUs, and the profiler."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.profilers import SimpleProfiler
from torch.profiler import ProfilerActivity

from carvision.errors import InputError
from carvision.files.atomic import create_folder, write_text

log = logging.getLogger(__name__)

MIN_BF16_CAPABILITY = (8, 0)  # compute capability of Ampere, NVIDIA's first with bfloat16 matrix units

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # read when cuBLAS starts, which is not deterministic without it
REPEATABLE = (":4096:8", ":16:8")

TABLE = "profile.txt"
TRACE = "trace.pt.trace.json.gz"  # the suffix that TensorBoard's plugin expects; Perfetto takes any


def uses_cuda(accelerator: str) -> bool:
    """Return whether Lightning uses CUDA for this trainer.accelerator."""
    return accelerator in ("gpu", "auto") and torch.cuda.is_available()


def resolve_precision(
    precision: str, accelerator: str, devices: str | int | list[int] = "auto", strategy: str = "auto"
) -> str:
    """Return trainer.precision with "auto" replaced. The other arguments are those of conf/trainer.

    On CUDA bf16-mixed if all devices have it in hardware, else 16-mixed (32-true with fsdp, which does not scale the
    loss); 32-true elsewhere. torch.cuda.is_bf16_supported() is not used: it is also true where bfloat16 is emulated,
    slower than float32.
    """
    if precision != "auto":
        return precision
    if not uses_cuda(accelerator):
        return "32-true"
    numbers = devices if isinstance(devices, list) else range(torch.cuda.device_count())
    if all(torch.cuda.get_device_capability(number) >= MIN_BF16_CAPABILITY for number in numbers):
        return "bf16-mixed"
    return "32-true" if strategy == "fsdp" else "16-mixed"


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or the kind of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def hardware_used(trainer: pl.Trainer) -> dict:
    """Return device, resolved precision and, on CUDA, peak memory in MB since the process started; for metrics.json."""
    device = trainer.strategy.root_device
    used: dict[str, str | int] = {"device": device_name(device), "precision": str(trainer.precision)}
    if device.type == "cuda":
        used["peak_memory_mb"] = round(torch.cuda.max_memory_allocated(device) / 1e6)
    return used


def set_deterministic(wanted: bool) -> None:
    """Turn torch's deterministic algorithms on or off. Call before anything runs on a GPU. Operations without a
    deterministic form then raise RuntimeError."""
    if wanted and os.environ.setdefault(WORKSPACE, REPEATABLE[0]) not in REPEATABLE:
        raise InputError(
            f"deterministic: the environment variable {WORKSPACE}={os.environ[WORKSPACE]} lets matrix products differ; "
            f"unset it, or set it to {' or '.join(REPEATABLE)}"
        )
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.deterministic = wanted
    if wanted:
        torch.backends.cudnn.benchmark = False  # it chooses kernels by timing


@contextlib.contextmanager
def nondeterministic_operation_errors() -> Iterator[None]:
    """Turn the RuntimeError of an operation without a deterministic form into an InputError that names it."""
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"(\S+) does not have a deterministic implementation", str(error))
        if not found:
            raise
        other = "model.pool=avg" if "adaptive_max_pool" in found[1] else "another network"
        raise InputError(
            f"deterministic: {found[1]} has no form that is repeatable to the bit on this device; "
            f"choose {other}, or deterministic=false"
        ) from error


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
    """Profile three training steps of the first process with torch.profiler: every operator and, on a GPU, every
    kernel.

    Writes a trace in profile/, for https://ui.perfetto.dev or TensorBoard, and a table in profile.txt.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.schedule = torch.profiler.schedule(wait=10, warmup=2, active=3, repeat=1)
        self.profile: torch.profiler.profile | None = None
        self.written = False

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.is_global_zero and not self.written:
            kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (module.device.type == "cuda")
            self.profile = torch.profiler.profile(activities=kinds, schedule=self.schedule, on_trace_ready=self._write)
            self.profile.start()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs, batch, batch_idx) -> None:
        if self.profile is not None:
            self.profile.step()
            if self.written:
                self._stop()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.profile is not None:
            self._stop()  # writes what it has if there were too few steps
            if not self.written:
                log.warning("trainer.profiler=torch: training had too few steps for a trace")

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        profile, self.profile = self.profile, None
        if profile is not None:
            profile.stop()

    def _write(self, profile: torch.profiler.profile) -> None:
        trace = create_folder(self.folder / "profile") / TRACE
        trace.unlink(missing_ok=True)  # the profiler would write through a link
        profile.export_chrome_trace(str(trace))
        order = "self_cuda_time_total" if ProfilerActivity.CUDA in profile.activities else "self_cpu_time_total"
        write_text(self.folder / TABLE, profile.key_averages().table(sort_by=order, row_limit=40))
        self.written = True
        log.info("trainer.profiler=torch: %s (open it at https://ui.perfetto.dev) and %s", trace, self.folder / TABLE)
