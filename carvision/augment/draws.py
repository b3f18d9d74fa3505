"""Turn uniform random numbers in [0, 1), one per image, into what an augmentation needs. All tensors are (B,)."""

import torch
from torch import Tensor


def between(draws: Tensor, low: float, high: float) -> Tensor:
    """Scale to uniform numbers from low to high."""
    return low + (high - low) * draws


def choice(draws: Tensor, count: int) -> Tensor:
    """Choose one of 0 ... count - 1, equally likely, int64. A draw rounded up to 1 chooses the last."""
    return (draws * count).long().clamp(max=count - 1)


def sign(draws: Tensor) -> Tensor:
    """Choose -1 or 1, equally likely."""
    return torch.where(draws < 0.5, -1.0, 1.0).to(draws.dtype)


def per_image(values: Tensor) -> Tensor:
    """Reshape (B,) to (B, 1, 1, 1), to broadcast with images (B, 3, H, W)."""
    return values[:, None, None, None]
