"""Choose a run's precision, and set up and describe its hardware."""

import logging

import pytorch_lightning as pl
import torch

log = logging.getLogger(__name__)

MIN_BF16_CAPABILITY = (
    8,
    0,
)  # compute capability of Ampere, NVIDIA's first with bfloat16 matrix units


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
    native = all(torch.cuda.get_device_capability(number) >= MIN_BF16_CAPABILITY for number in numbers)
    if native:
        return "bf16-mixed"
    return "32-true" if strategy == "fsdp" else "16-mixed"


def prepare_cuda() -> None:
    """Allow TF32 (10 bits of mantissa) for float32 matrix products, as torch allows it for convolutions by default."""
    torch.set_float32_matmul_precision("high")


def log_hardware(trainer: pl.Trainer, wanted: str) -> None:
    """Log device and precision. wanted: trainer.precision as the user wrote it."""
    device = trainer.strategy.root_device
    origin = " (trainer.precision=auto)" if wanted == "auto" else ""
    log.info("%s, precision %s%s", device_name(device), trainer.precision, origin)


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or the kind of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def hardware_used(trainer: pl.Trainer) -> dict:
    """Return device, resolved precision and, on CUDA, peak memory in MB since the process started; for metrics.json."""
    device = trainer.strategy.root_device
    used = {"device": device_name(device), "precision": str(trainer.precision)}
    if device.type == "cuda":
        used["peak_memory_mb"] = round(torch.cuda.max_memory_allocated(device) / 1e6)
    return used
