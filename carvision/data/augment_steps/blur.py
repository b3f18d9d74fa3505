"""Gaussian blur as a step of the augmentation."""

import math

from torch import Tensor
from torch.nn import functional as F

from carvision.data.augment_steps.draws import choice, of_photos

# For these sizes OpenCV takes binomial weights rather than those of a Gaussian. From the middle outwards.
OPENCV_KERNELS = {
    1: [1.0],
    3: [0.5, 0.25],
    5: [0.375, 0.25, 0.0625],
    7: [0.28125, 0.21875, 0.109375, 0.03125],
}


def blur(images: Tensor, draws: Tensor, kernel_px: tuple[int, int]) -> Tensor:
    """albumentations' GaussianBlur: the kernel's size is one of the odd numbers of this range, all equally likely, and
    its weights are those that OpenCV gives a kernel of that size. Edges are mirrored (BORDER_REFLECT_101)."""
    kernels = [gaussian_kernel(size) for size in range(kernel_px[0], kernel_px[1] + 1, 2)]
    chosen = choice(draws[:, 0], len(kernels))
    weights = []
    for distance in range(len(kernels[-1])):
        shares = [
            (chosen == place) * kernel[distance] for place, kernel in enumerate(kernels) if distance < len(kernel)
        ]
        weights.append(of_photos(sum(shares[1:], shares[0])))
    return _along(_along(images, weights, 2), weights, 3)


def gaussian_kernel(size: int) -> list[float]:
    """The weights of OpenCV's Gaussian kernel of an odd size whose sigma is not given, from the middle outwards."""
    if size in OPENCV_KERNELS:
        return OPENCV_KERNELS[size]
    sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8
    weights = [math.exp(-((distance / sigma) ** 2) / 2) for distance in range(size // 2 + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    return [weight / total for weight in weights]


def _along(images: Tensor, weights: list[Tensor], dim: int) -> Tensor:
    """One dimension's part of a separable filter. weights: (B, 1, 1, 1) for each distance from the middle."""
    radius, size = len(weights) - 1, images.shape[dim]
    padding = (radius, radius, 0, 0) if dim == 3 else (0, 0, radius, radius)
    padded = F.pad(images, padding, mode="reflect")
    total = weights[0] * images
    for distance in range(1, radius + 1):
        before, after = (padded.narrow(dim, radius + shift, size) for shift in (-distance, distance))
        total.addcmul_(weights[distance], before + after)
    return total
