"""Create learning-rate schedules by name."""

import math
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

from carvision.errors import InputError

R0_RISING_EPOCHS = 5  # epochs before report R0's curve falls


def create_schedule(
    optimizer: torch.optim.Optimizer,
    name: str,
    lr: float,
    num_steps: int,
    steps_per_epoch: float,
    batches_per_epoch: int,
    **values,
) -> dict:
    """Create the schedule that conf/schedule names, as configure_optimizers returns it to Lightning.

    lr: optimizer.lr, the rate that the schedule scales. num_steps: weight updates in all phases' epochs; with gradient
    accumulation an epoch has more batches than updates. Raises InputError for keys that the schedule does not have.
    """
    try:
        if name == "plateau":
            return _create_plateau(optimizer, batches_per_epoch, **values)
        if name == "one_cycle":
            # Momentum falls as the rate rises, if the optimizer has one
            cycle_momentum = any(optimizer.defaults.get(key) for key in ("momentum", "betas"))
            rates = [group["lr"] for group in optimizer.param_groups]
            # One more: the schedule is also stepped after the last update
            schedule = OneCycleLR(optimizer, rates, num_steps + 1, cycle_momentum=cycle_momentum, **values)
        else:
            schedule = LambdaLR(optimizer, lr_factor(name, lr, num_steps, steps_per_epoch, **values))
    except (TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"schedule: {name} can't be built with {values or 'no values'} ({text})") from None
    return {"scheduler": schedule, "interval": "step"}


def _create_plateau(
    optimizer: torch.optim.Optimizer, batches_per_epoch: int, monitor: str, mode: str, patience: int, **values
) -> dict:
    # PyTorch waits one epoch longer than its patience, Keras (and callbacks.patience) does not. Both require a change
    # of 1e-4, Keras in absolute terms.
    schedule = ReduceLROnPlateau(optimizer, mode, patience=patience - 1, threshold_mode="abs", **values)
    # "step" means a batch here: step at the epoch's last batch, after validation. Lightning would step a schedule by
    # epochs only after writing the checkpoint.
    return {"scheduler": schedule, "interval": "step", "frequency": batches_per_epoch, "monitor": monitor}


def lr_factor(
    name: str,
    lr: float,
    num_steps: int,
    steps_per_epoch: float,
    warmup_epochs: float = 0.0,
    final_fraction: float = 0.0,
    decay: float | None = None,
    peak: float | None = None,
) -> Callable[[int], float]:
    """Return the function from step to factor of the learning rate `lr`, for the name and keys of conf/schedule."""
    if name == "inverse_time" and decay is None:
        raise ValueError("decay is missing")
    if name == "constant":
        return lambda step: 1.0
    if name == "r0":
        return lambda step: r0_lr(int(step / steps_per_epoch), peak or lr) / lr
    if name == "inverse_time":
        return lambda step: 1 / (1 + decay * step)
    num_warmup = min(round(warmup_epochs * steps_per_epoch), num_steps - 1)
    return lambda step: cosine_factor(step, num_steps, num_warmup, final_fraction)


def r0_lr(epoch: int, peak: float) -> float:
    """Return report R0's learning rate: 1e-6 + e (peak - 1e-6) / 6 for epochs e < 5, then peak exp(-0.1 e); e counts
    from 0."""
    if epoch < R0_RISING_EPOCHS:
        return 1e-6 + epoch * (peak - 1e-6) / 6
    return peak * math.exp(-0.1 * epoch)


def cosine_factor(step: int, num_steps: int, num_warmup: int, final_fraction: float) -> float:
    """Return the factor: linear from 1/num_warmup to 1 over the first num_warmup steps, then half a cosine down to
    final_fraction."""
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = min(1.0, (step - num_warmup) / max(1, num_steps - num_warmup))
    return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))
