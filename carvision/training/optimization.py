"""Optimizers and learning-rate schedules."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
NUM_RISING = 5  # epochs before report R0's curve begins to fall


def create_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], name: str, **values
) -> torch.optim.Optimizer:
    """By the name and keys of conf/optimizer, over the parameters that require gradients.

    Biases and the scales of norms (parameters with one dimension) get no weight decay, as is usual: decay would pull
    a norm's scale to 0, which is no simpler network.
    """
    parameters = [p for _, p in named_parameters if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[name]([group for group in groups if group["params"]], **values)


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


def lr_factor(
    name: str,
    lr: float,
    num_steps: int,
    steps_per_epoch: float,
    warmup_epochs: float = 0.0,
    final_fraction: float = 0.0,
) -> Callable[[int], float]:
    """step -> factor of the learning rate `lr`, by the name and keys of conf/schedule."""
    if name == "constant":
        return lambda step: 1.0
    if name == "r0":
        return lambda step: r0_lr(int(step / steps_per_epoch), lr) / lr
    num_warmup = min(round(warmup_epochs * steps_per_epoch), num_steps - 1)
    return lambda step: cosine_factor(step, num_steps, num_warmup, final_fraction)
