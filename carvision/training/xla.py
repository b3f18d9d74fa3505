"""Lightning on torch-xla: TPUs, and where PJRT_DEVICE=CPU is set the processor, on which all but the chip can be tried.

Only imported where trainer.accelerator is tpu.
"""

import logging
import os

import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import XLAAccelerator
from pytorch_lightning.plugins import XLAPrecision

log = logging.getLogger(__name__)


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


class BFloat16(XLAPrecision):
    """bf16-mixed: products and convolutions in bfloat16, weights and losses in float32, by torch's autocast."""

    def forward_context(self):
        return torch.autocast("xla", dtype=torch.bfloat16)


class Steps(pl.Callback):
    """Runs what each evaluation batch has put off. Lightning does so after training steps only: an epoch's validation
    would become one graph, which changes with the number of its batches."""

    def on_validation_batch_end(self, *_) -> None:
        import torch_xla

        torch_xla.sync()

    on_test_batch_end = on_validation_batch_end


def trainer_arguments(trainer: dict) -> dict:
    """What pl.Trainer takes in place of `trainer`, the keys of conf/trainer."""
    arguments = dict(trainer)
    if os.environ.get("PJRT_DEVICE") == "CPU":
        arguments |= {"accelerator": XLAOnCPU(), "devices": 1}
    if arguments["precision"] == "bf16-mixed":
        arguments |= {"precision": None, "plugins": [BFloat16()]}
    return arguments
