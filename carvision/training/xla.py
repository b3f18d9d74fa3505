"""Lightning on torch-xla: TPUs, and where PJRT_DEVICE=CPU is set the processor, on which all but the chip can be tried.

torch-xla records what a step does, compiles it when the step ends, and takes the compiled graph again where the same
is recorded. So that it compiles in the first epoch only, all batches have one size, and each ends with a `sync`.
Only imported where trainer.accelerator is tpu, as torch-xla lives in an environment of its own.
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
from carvision.training.tpu_cores import require_xla

log = logging.getLogger(__name__)


def trainer_arguments(trainer: dict, checkpoint_io: CheckpointIO | None = None) -> dict:
    """What pl.Trainer takes in place of `trainer`, the keys of conf/trainer, and of the plugin for checkpoints."""
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
    """The chance of dropout on the device, which torch.manual_seed does not reach. No graph is compiled for it."""
    import torch_xla

    torch_xla.manual_seed(number)


class XLAOnCPU(XLAAccelerator):
    """XLA's CPU device, of which a process has one. Lightning's own class knows TPUs alone."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def parse_devices(devices) -> int:
        return 1

    @staticmethod
    def get_parallel_devices(devices: int) -> list[torch.device]:
        return [torch.device("xla", 0)]


class MultiCoreStrategy(XLAStrategy):
    """Several cores, with a process for each that is there already, see tpu_cores.

    Lightning's own starts them itself, for each fit and each test anew: it can't fit a second phase, and what callbacks
    have learned in a fit is gone after it.
    """

    def __init__(self):
        super().__init__()
        self._launched = True
        if TorchElasticEnvironment.detect():
            self.cluster_environment = TorchElasticEnvironment()

    def _configure_launcher(self) -> None:
        self._launcher = None

    def process_dataloader(self, dataloader):
        return dataloader  # not in torch-xla's, which would hide from checkpoints how far it is

    def setup(self, trainer: pl.Trainer) -> None:
        super().setup(trainer)
        for module in trainer.lightning_module.modules():
            if isinstance(module, Metric):  # torchmetrics looks for processes of torch.distributed only
                module.dist_sync_fn, module.distributed_available_fn = gather, lambda: True

    def teardown(self) -> None:
        super().teardown()
        self._launched = True


def gather(values: Tensor, group: object = None) -> list[Tensor]:
    """Of all cores, in their order; of one shape on all."""
    import torch_xla.core.xla_model as xm

    return list(xm.all_gather(values[None]).unbind(0))


class BFloat16(XLAPrecision):
    """bf16-mixed, which Lightning lacks on XLA. Its bf16-true turns the weights, losses and counters to bfloat16, too,
    by an environment variable that counts before the first use of the device only."""

    def forward_context(self):
        return torch.autocast("xla", dtype=torch.bfloat16)


class XLACheckpoints(XLACheckpointIO):
    """`inner`, which the strategies of XLA would refuse, with all tensors brought to the CPU at once."""

    def __init__(self, inner: CheckpointIO):
        super().__init__()
        self.inner = inner

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options=None) -> None:
        import torch_xla.core.xla_model as xm

        # What xm.save does; it keeps tensors that share their memory
        self.inner.save_checkpoint(xm._maybe_convert_to_cpu(checkpoint, convert=True), path, storage_options)

    def load_checkpoint(self, path: str | Path, *args, **kwargs) -> dict:
        return self.inner.load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: str | Path) -> None:
        self.inner.remove_checkpoint(path)


class Steps(pl.Callback):
    """Ends the recording before and after each batch. Lightning does so where the weights change only: the batches of a
    validation, or of an accumulation, would become one graph, which changes with their number.

    To be the first of the callbacks: what the others do between two batches is then part of no batch's graph, as it is
    not the same for all.
    """

    def _end(self, *_, **__) -> None:
        import torch_xla

        torch_xla.sync()

    on_train_epoch_start = on_train_batch_start = on_train_batch_end = on_train_epoch_end = _end
    on_validation_epoch_start = on_validation_batch_start = on_validation_batch_end = _end
    on_test_epoch_start = on_test_batch_start = on_test_batch_end = _end
