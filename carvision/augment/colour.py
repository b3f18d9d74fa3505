"""Steps of the augmentation that change light and colour: images float (B, 3, H, W) in 0..1, draws float (B, n) ->
images like them. Values are cut to 0..1 after each step.

Gaussian blur as a step of the augmentation.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from carvision.augment.draws import between, choice, of_photos

# RGB -> luma as in ITU-R 601, which Pillow and torchvision use for greyscale
LUMA = (0.299, 0.587, 0.114)


def brightness(images: Tensor, draws: Tensor, factor: tuple[float, float]) -> Tensor:
    """All values times a factor, as in torchvision's ColorJitter."""
    return (images * _factor(draws, factor)).clamp(0, 1)


def brightness_shift(images: Tensor, draws: Tensor, limit: float) -> Tensor:
    """A number within +-limit added to all values (tf.image.random_brightness)."""
    return (images + of_photos(between(draws[:, 0], -limit, limit))).clamp(0, 1)


def contrast(images: Tensor, draws: Tensor, factor: tuple[float, float], per_channel: bool) -> Tensor:
    """The distance from the mean times a factor. The mean is that of the photo's grey version (torchvision), or of
    each channel by itself (tf.image.random_contrast)."""
    mean = (images if per_channel else grey(images)).mean(dim=(2, 3), keepdim=True)
    return torch.lerp(mean, images, _factor(draws, factor)).clamp(0, 1)


def saturation(images: Tensor, draws: Tensor, factor: tuple[float, float], in_hsv: bool) -> Tensor:
    """The distance from the photo's grey version times a factor (torchvision), or HSV's saturation times a factor,
    1 at most, which keeps the largest channel of a pixel as it is (tf.image.random_saturation)."""
    times = _factor(draws, factor)
    if not in_hsv:
        return torch.lerp(grey(images), images, times).clamp(0, 1)
    value, spread = _value_and_spread(images)
    most = value / spread.clamp(min=1e-12)  # by which the smallest channel becomes 0
    return (value - (value - images) * torch.minimum(times, most)).clamp(0, 1)


def hue(images: Tensor, draws: Tensor, turns: float) -> Tensor:
    """HSV's hue moved within +-turns of the colour circle, as in torchvision's ColorJitter."""
    angle, saturation_, value = rgb_to_hsv(images)
    return hsv_to_rgb(angle + of_photos(between(draws[:, 0], -turns, turns)), saturation_, value)


def brightness_contrast(images: Tensor, draws: Tensor, brightness: float, contrast: float) -> Tensor:
    """albumentations' RandomBrightnessContrast: all values times 1 +- contrast, plus a number within +-brightness."""
    times = of_photos(between(draws[:, 0], 1 - contrast, 1 + contrast))
    return (images * times + of_photos(between(draws[:, 1], -brightness, brightness))).clamp(0, 1)


def hue_saturation_value(images: Tensor, draws: Tensor, hue: float, saturation: float, value: float) -> Tensor:
    """albumentations' HueSaturationValue: a number within these limits added to each, in OpenCV's units: hue is a
    circle of 180, saturation and value go to 255."""
    limits = zip(rgb_to_hsv(images), draws.unbind(1), (hue / 180, saturation / 255, value / 255), strict=True)
    angle, *others = (channel + of_photos(between(draw, -limit, limit)) for channel, draw, limit in limits)
    return hsv_to_rgb(angle, *(channel.clamp(0, 1) for channel in others))


def grayscale(images: Tensor, draws: Tensor) -> Tensor:
    return grey(images).expand_as(images)


def grey(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    red, green, blue = images.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]


def rgb_to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 3, H, W) in 0..1 -> hue in turns, saturation and value, each (B, 1, H, W); grey has hue 0."""
    red, green, blue = images.split(1, dim=1)
    value, spread = _value_and_spread(images)
    divisor = spread.clamp(min=1e-12)
    sixths = torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    sixths = torch.where(value == red, (green - blue) / divisor, sixths)
    return sixths / 6 % 1, spread / value.clamp(min=1e-12), value


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Each (B, 1, H, W); any hue, saturation and value in 0..1 -> (B, 3, H, W) in 0..1."""
    channels = []
    for start in (5, 3, 1):  # where on the circle, in sixths, red, green and blue begin to fall
        place = (start + 6 * hue) % 6
        channels.append(value * (1 - saturation * torch.minimum(place, 4 - place).clamp(0, 1)))
    return torch.cat(channels, dim=1)


def _value_and_spread(images: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of a pixel's channels, and how far the smallest is below it, each (B, 1, H, W)."""
    value = images.amax(1, keepdim=True)
    return value, value - images.amin(1, keepdim=True)


def _factor(draws: Tensor, factor: tuple[float, float]) -> Tensor:
    return of_photos(between(draws[:, 0], *factor))


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
