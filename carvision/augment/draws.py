"""From uniform numbers in [0, 1), one for each photo, to what an augmentation needs. All tensors are (B,)."""

import torch
from torch import Tensor


def between(draws: Tensor, low: float, high: float) -> Tensor:
    """Uniform from low to high."""
    return low + (high - low) * draws


def choice(draws: Tensor, count: int) -> Tensor:
    """int64, each of 0 ... count - 1 equally likely. A draw that was rounded up to 1 takes the last."""
    return (draws * count).long().clamp(max=count - 1)


def sign(draws: Tensor) -> Tensor:
    """-1 or 1, equally likely."""
    return torch.where(draws < 0.5, -1.0, 1.0).to(draws.dtype)


def of_photos(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1), to meet images (B, 3, H, W)."""
    return values[:, None, None, None]
