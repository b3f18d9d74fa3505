"""Augmentation steps that change brightness, contrast and colours, or blur.

Each takes images, float (B, 3, H, W) in 0..1, and draws, float (B, n), and returns images like them, clamped to 0..1.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from carvision.augment.draws import between, choice, per_image

# RGB -> luma by ITU-R 601, as Pillow and torchvision convert to greyscale
LUMA = (0.299, 0.587, 0.114)


def brightness(images: Tensor, draws: Tensor, factor: tuple[float, float]) -> Tensor:
    """Multiply all values by a factor, as torchvision's ColorJitter."""
    return (images * _factor(draws, factor)).clamp(0, 1)


def brightness_shift(images: Tensor, draws: Tensor, limit: float) -> Tensor:
    """Add a number within +-limit to all values (tf.image.random_brightness)."""
    return (images + per_image(between(draws[:, 0], -limit, limit))).clamp(0, 1)


def contrast(images: Tensor, draws: Tensor, factor: tuple[float, float], per_channel: bool) -> Tensor:
    """Scale the distance from the mean: that of the greyscale image (torchvision), or of each channel
    (tf.image.random_contrast)."""
    mean = (images if per_channel else grey(images)).mean(dim=(2, 3), keepdim=True)
    return torch.lerp(mean, images, _factor(draws, factor)).clamp(0, 1)


def saturation(images: Tensor, draws: Tensor, factor: tuple[float, float], in_hsv: bool) -> Tensor:
    """Scale the distance from the greyscale image (torchvision), or HSV's saturation, up to 1, which keeps a pixel's
    largest channel (tf.image.random_saturation)."""
    times = _factor(draws, factor)
    if not in_hsv:
        return torch.lerp(grey(images), images, times).clamp(0, 1)
    value, spread = _value_and_spread(images)
    limit = value / spread.clamp(min=1e-12)  # at which the smallest channel becomes 0
    return (value - (value - images) * torch.minimum(times, limit)).clamp(0, 1)


def hue(images: Tensor, draws: Tensor, turns: float) -> Tensor:
    """Shift HSV's hue within +-turns of the colour circle, as torchvision's ColorJitter."""
    angle, saturation_, value = rgb_to_hsv(images)
    return hsv_to_rgb(angle + per_image(between(draws[:, 0], -turns, turns)), saturation_, value)


def brightness_contrast(images: Tensor, draws: Tensor, brightness: float, contrast: float) -> Tensor:
    """Multiply all values by 1 +- contrast and add a number within +-brightness (albumentations'
    RandomBrightnessContrast)."""
    times = per_image(between(draws[:, 0], 1 - contrast, 1 + contrast))
    return (images * times + per_image(between(draws[:, 1], -brightness, brightness))).clamp(0, 1)


def hue_saturation_value(images: Tensor, draws: Tensor, hue: float, saturation: float, value: float) -> Tensor:
    """Add numbers within these limits to hue, saturation and value (albumentations' HueSaturationValue).

    Units are OpenCV's: hue is a circle of 180, saturation and value go to 255.
    """
    limits = zip(rgb_to_hsv(images), draws.unbind(1), (hue / 180, saturation / 255, value / 255), strict=True)
    angle, *others = (channel + per_image(between(draw, -limit, limit)) for channel, draw, limit in limits)
    return hsv_to_rgb(angle, *(channel.clamp(0, 1) for channel in others))


def grayscale(images: Tensor, draws: Tensor) -> Tensor:
    """Convert to greyscale."""
    return grey(images).expand_as(images)


def grey(images: Tensor) -> Tensor:
    """Convert (B, 3, H, W) to luma, (B, 1, H, W)."""
    red, green, blue = images.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]


def rgb_to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Convert (B, 3, H, W) in 0..1 to hue in turns, saturation and value, each (B, 1, H, W); grey has hue 0."""
    red, green, blue = images.split(1, dim=1)
    value, spread = _value_and_spread(images)
    divisor = spread.clamp(min=1e-12)
    sixths = torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    sixths = torch.where(value == red, (green - blue) / divisor, sixths)
    return sixths / 6 % 1, spread / value.clamp(min=1e-12), value


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Convert any hue, and saturation and value in 0..1, each (B, 1, H, W), to (B, 3, H, W) in 0..1."""
    channels = []
    for start in (5, 3, 1):  # where on the circle, in sixths, red, green and blue start to fall
        sixths = (start + 6 * hue) % 6
        channels.append(value * (1 - saturation * torch.minimum(sixths, 4 - sixths).clamp(0, 1)))
    return torch.cat(channels, dim=1)


def _value_and_spread(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return each pixel's largest channel, and its difference from the smallest, both (B, 1, H, W)."""
    value = images.amax(1, keepdim=True)
    return value, value - images.amin(1, keepdim=True)


def _factor(draws: Tensor, factor: tuple[float, float]) -> Tensor:
    """Draw a factor from this range for each image, (B, 1, 1, 1)."""
    return per_image(between(draws[:, 0], *factor))


# OpenCV uses binomial weights for these sizes, not Gaussian ones. From the centre outwards.
OPENCV_KERNELS = {1: [1.0], 3: [0.5, 0.25], 5: [0.375, 0.25, 0.0625], 7: [0.28125, 0.21875, 0.109375, 0.03125]}


def blur(images: Tensor, draws: Tensor, kernel_px: tuple[int, int]) -> Tensor:
    """Blur with OpenCV's Gaussian kernel of a random odd size within this range (albumentations' GaussianBlur).

    Edges are mirrored (BORDER_REFLECT_101).
    """
    kernels = [gaussian_kernel(size) for size in range(kernel_px[0], kernel_px[1] + 1, 2)]
    chosen = choice(draws[:, 0], len(kernels))
    weights = []
    for distance in range(len(kernels[-1])):
        shares = [(chosen == i) * kernel[distance] for i, kernel in enumerate(kernels) if distance < len(kernel)]
        weights.append(per_image(sum(shares[1:], shares[0])))
    return _along(_along(images, weights, 2), weights, 3)


def gaussian_kernel(size: int) -> list[float]:
    """Return the weights of OpenCV's Gaussian kernel of an odd size, with its default sigma, from the centre
    outwards."""
    if size in OPENCV_KERNELS:
        return OPENCV_KERNELS[size]
    sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8
    weights = [math.exp(-((distance / sigma) ** 2) / 2) for distance in range(size // 2 + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    return [weight / total for weight in weights]


def _along(images: Tensor, weights: list[Tensor], dim: int) -> Tensor:
    """Apply a separable filter along one dimension. weights: (B, 1, 1, 1) for each distance from the centre."""
    radius, size = len(weights) - 1, images.shape[dim]
    padding = (radius, radius, 0, 0) if dim == 3 else (0, 0, radius, radius)
    padded = F.pad(images, padding, mode="reflect")
    total = weights[0] * images
    for distance in range(1, radius + 1):
        before, after = (padded.narrow(dim, radius + shift, size) for shift in (-distance, distance))
        total.addcmul_(weights[distance], before + after)
    return total
