"""Run Lightning on torch-xla: on TPUs, or with PJRT_DEVICE=CPU on the processor, where all but the chip can be tried.

torch-xla records a step's operations, compiles them when the step ends, and reuses the compiled graph for an identical
recording. To compile in the first epoch only, all batches have one size, and each ends with a `sync`. Imported only
with trainer.accelerator=tpu: torch-xla has its own environment.
"""

import logging
import os
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import XLAAccelerator
from pytorch_lightning.plugins import CheckpointIO, XLACheckpointIO, XLAPrecision
from pytorch_lightning.plugins.environments import TorchElasticEnvironment
from pytorch_lightning.strategies import XLAStrategy
from torch import Tensor
from torchmetrics import Metric

from carvision.errors import InputError
from carvision.training.distributed.launch import require_xla

log = logging.getLogger(__name__)


def trainer_arguments(trainer: dict, checkpoint_io: CheckpointIO | None = None) -> dict:
    """Return pl.Trainer's arguments for `trainer`, the keys of conf/trainer, and the checkpoint plugin."""
    require_xla()
    arguments = {**trainer, "plugins": [XLACheckpoints(checkpoint_io)] if checkpoint_io else []}
    if os.environ.get("PJRT_DEVICE") == "CPU":
        arguments |= {"accelerator": XLAOnCPU(), "devices": 1}
    elif int(os.environ.get("WORLD_SIZE") or 1) > 1:
        num_machines = int(os.environ["WORLD_SIZE"]) // int(os.environ["LOCAL_WORLD_SIZE"])
        arguments |= {"strategy": MultiCoreStrategy(), "num_nodes": num_machines}
    else:
        arguments |= {"devices": 1 if trainer["devices"] == "auto" else trainer["devices"]}
    if trainer["precision"] == "bf16-mixed":
        log.info("bf16-mixed: torch's autocast of XLA; products and convolutions in bfloat16, weights in float32")
        arguments |= {"precision": None, "plugins": [*arguments["plugins"], BFloat16()]}
    elif trainer["precision"] == "16-mixed":
        raise InputError("trainer.precision: '16-mixed' is not for trainer=tpu; use bf16-mixed or 32-true")
    return arguments


def seed(number: int) -> None:
    """Seed the device's random generator (dropout), which torch.manual_seed does not reach. Compiles no graph."""
    import torch_xla

    torch_xla.manual_seed(number)


class XLAOnCPU(XLAAccelerator):
    """XLA's CPU device, one for each process. Lightning's own class supports TPUs only."""

    # Lightning's own results are cached, these need not be

    @staticmethod
    def is_available() -> bool:  # pyrefly: ignore[bad-override]
        return True

    @staticmethod
    def auto_device_count() -> int:  # pyrefly: ignore[bad-override]
        return 1

    @staticmethod
    def parse_devices(devices) -> int:
        return 1

    @staticmethod
    def get_parallel_devices(devices: int | list[int]) -> list[torch.device]:
        return [torch.device("xla", 0)]


class MultiCoreStrategy(XLAStrategy):
    """Use several cores, each with a process that `launch` has already started.

    Lightning's own strategy starts the processes for each fit and each test: it can't fit a second phase, and loses the
    state of callbacks after a fit.
    """

    def __init__(self):
        super().__init__()
        self._launched = True
        if TorchElasticEnvironment.detect():
            self.cluster_environment = TorchElasticEnvironment()

    def _configure_launcher(self) -> None:
        self._launcher = None

    def process_dataloader(self, dataloader):
        return dataloader  # torch-xla's wrapper would hide the position from checkpoints

    def setup(self, trainer: pl.Trainer) -> None:
        super().setup(trainer)
        for module in trainer.lightning_module.modules():
            if isinstance(module, Metric):  # torchmetrics supports torch.distributed only
                module.dist_sync_fn, module.distributed_available_fn = gather, lambda: True

    def teardown(self) -> None:
        super().teardown()
        self._launched = True


def gather(values: Tensor, group: object = None) -> list[Tensor]:
    """Return the values of all cores, by rank; the same shape on all."""
    import torch_xla.core.xla_model as xm

    return list(xm.all_gather(values[None]).unbind(0))


class BFloat16(XLAPrecision):
    """Add bf16-mixed, which Lightning lacks on XLA. Its bf16-true also converts weights, losses and counters to
    bfloat16, by an environment variable that is read only before the device's first use."""

    def forward_context(self):
        return torch.autocast("xla", dtype=torch.bfloat16)


class XLACheckpoints(XLACheckpointIO):
    """Wrap `inner`, which XLA's strategies would refuse, and move all tensors to the CPU at once."""

    def __init__(self, inner: CheckpointIO):
        super().__init__()
        self.inner = inner

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options=None) -> None:
        import torch_xla.core.xla_model as xm

        # xm.save converts like this, too; it keeps shared storage
        self.inner.save_checkpoint(xm._maybe_convert_to_cpu(checkpoint, convert=True), path, storage_options)

    def load_checkpoint(self, path: str | Path, *args, **kwargs) -> dict:
        return self.inner.load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: str | Path) -> None:
        self.inner.remove_checkpoint(path)


class Steps(pl.Callback):
    """End the recorded graph before and after each batch. Lightning does so only when weights change: the batches of a
    validation or an accumulation would form one graph, which changes with their number.

    Must be the first callback: what the others do between batches varies, and must not be part of a batch's graph.
    """

    def _end(self, *_, **__) -> None:
        import torch_xla

        torch_xla.sync()

    on_train_epoch_start = on_train_batch_start = on_train_batch_end = on_train_epoch_end = _end
    on_validation_epoch_start = on_validation_batch_start = on_validation_batch_end = _end
    on_test_epoch_start = on_test_batch_start = on_test_batch_end = _end
