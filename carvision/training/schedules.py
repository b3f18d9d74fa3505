"""Learning-rate schedules by name."""

import math
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

NUM_RISING = 5  # epochs before report R0's curve begins to fall


def create_schedule(
    optimizer: torch.optim.Optimizer, name: str, lr: float, num_steps: int, steps_per_epoch: float, **values
) -> dict:
    """By the name and keys of conf/schedule, as Lightning takes it from configure_optimizers.

    lr: optimizer.lr, the rate that the schedule scales. num_steps: updates of the weights in all.
    """
    if name == "plateau":
        monitor, patience = values.pop("monitor"), values.pop("patience")
        # PyTorch waits for one epoch more than its patience, Keras (and callbacks.patience) does not. Both ask for a
        # change of 1e-4, Keras in absolute terms.
        schedule = ReduceLROnPlateau(optimizer, patience=patience - 1, threshold_mode="abs", **values)
        # By steps, although once an epoch: Lightning takes an epoch's own step after it has written the checkpoint
        frequency = max(1, round(steps_per_epoch))
        return {"scheduler": schedule, "interval": "step", "frequency": frequency, "monitor": monitor}
    if name == "one_cycle":
        # Momentum runs against the rate, where the optimizer has one
        cycle_momentum = any(key in optimizer.defaults for key in ("momentum", "betas"))
        rates = [group["lr"] for group in optimizer.param_groups]
        # One more than will be taken, as a schedule is asked once more after the last update
        schedule = OneCycleLR(optimizer, rates, num_steps + 1, cycle_momentum=cycle_momentum, **values)
    else:
        schedule = LambdaLR(optimizer, lr_factor(name, lr, num_steps, steps_per_epoch, **values))
    return {"scheduler": schedule, "interval": "step"}


def lr_factor(
    name: str,
    lr: float,
    num_steps: int,
    steps_per_epoch: float,
    warmup_epochs: float = 0.0,
    final_fraction: float = 0.0,
    decay: float = 0.0,
) -> Callable[[int], float]:
    """step -> factor of the learning rate `lr`, by the name and keys of conf/schedule."""
    if name == "constant":
        return lambda step: 1.0
    if name == "r0":
        return lambda step: r0_lr(int(step / steps_per_epoch), lr) / lr
    if name == "inverse_time":
        return lambda step: 1 / (1 + decay * step)
    num_warmup = min(round(warmup_epochs * steps_per_epoch), num_steps - 1)
    return lambda step: cosine_factor(step, num_steps, num_warmup, final_fraction)


def r0_lr(epoch: int, peak: float) -> float:
    """Report R0's curve: 1e-6 + e (peak - 1e-6) / 6 while e < 5, then peak exp(-0.1 e); e counts from 0."""
    if epoch < NUM_RISING:
        return 1e-6 + epoch * (peak - 1e-6) / 6
    return peak * math.exp(-0.1 * epoch)


def cosine_factor(step: int, num_steps: int, num_warmup: int, final_fraction: float) -> float:
    """Linear from 1/num_warmup to 1 over the first num_warmup steps, then half a cosine down to final_fraction."""
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = min(1.0, (step - num_warmup) / max(1, num_steps - num_warmup))
    return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))
