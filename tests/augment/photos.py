"""Images and draws for the tests of the steps, and their comparison with a reference, image by image."""

from collections.abc import Callable

import torch
from torch import Tensor

NEARLY_1 = 1 - 2**-24  # the largest draw


def made_up_photos(num: int = 8, height: int = 24, width: int = 30, seed: int = 0) -> Tensor:
    """Create float (num, 3, height, width), multiples of 1/255: smooth colours with some noise, the last one flat."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num, 3, 4, 5, generator=random)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    images = (images + 0.2 * torch.rand(images.shape, generator=random) - 0.1).clamp(0, 1)
    images[-1] = 0.6
    return (images * 255).round() / 255


def made_up_draws(num: int, count: int, seed: int = 1) -> Tensor:
    """Create float (num, count) in [0, 1); the first row is 0, the second as near to 1 as draws come."""
    draws = torch.rand(num, count, generator=torch.Generator().manual_seed(seed))
    draws[0], draws[1] = 0.0, NEARLY_1
    return draws


def between(draw: float, low: float, high: float) -> float:
    return low + (high - low) * draw


def check_step(step: Callable, expected: Callable, num_draws: int = 1, atol: float = 1e-6, images=None) -> None:
    """Compare step(images, draws) with expected(image, *draws) of each image."""
    images = made_up_photos() if images is None else images
    draws = made_up_draws(len(images), num_draws)
    for image, result, own in zip(images, step(images, draws), draws.tolist(), strict=True):
        torch.testing.assert_close(result, torch.as_tensor(expected(image, *own)).to(result), atol=atol, rtol=0)
