"""Measure on random images how closely an exported network agrees with the run's."""

import torch
from torch import Tensor

from carvision.errors import InputError


def random_images(num: int, size_px: int) -> Tensor:
    """Return standard normal (num, 3, size_px, size_px), as normalised photos are; always the same ones."""
    return torch.randn(num, 3, size_px, size_px, generator=torch.Generator().manual_seed(num))


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Return the largest |ours - theirs| over all names, as a fraction of the largest |ours| of that name.

    Infinite if shapes differ or a value is not finite.
    """
    largest = 0.0
    for name, values in ours.items():
        if values.shape != theirs[name].shape or not theirs[name].isfinite().all():
            return float("inf")
        scale = values.abs().max().clamp(min=1e-6)
        largest = max(largest, ((values - theirs[name]).abs().max() / scale).item())
    return largest


def require_agreement(difference: float, allowed: float, what: str) -> None:
    """Raise InputError if the difference is more than allowed, or NaN."""
    if not difference <= allowed:
        raise InputError(
            f"{what} differs from the run's network by {difference:.1e} of its largest value, more than {allowed:.0e}: "
            "it was not kept. Choose another --format, and report the network's name"
        )
