"""What happens to a batch on the device: augmentation in training, normalisation always."""

import torch
from torch import Tensor, nn

from carvision.data.images import Preprocessing

# RGB -> luma as in ITU-R 601, which Pillow and torchvision use for greyscale
LUMA = (0.299, 0.587, 0.114)


class Augment(nn.Module):
    """Random flip and changes of light and colour, for each photo by itself.

    flip: chance of a horizontal flip. brightness, contrast, saturation: each a factor drawn from 1 - x to 1 + x, and
    applied as in torchvision's ColorJitter: a blend with black, with the photo's mean grey, with its grey version.
    """

    num_draws = 4  # numbers in [0, 1) that a photo's augmentation takes

    def __init__(self, flip: float = 0.0, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0):
        super().__init__()
        self.flip, self.brightness, self.contrast, self.saturation = flip, brightness, contrast, saturation

    def forward(self, images: Tensor, draws: Tensor) -> Tensor:
        """images float (B, 3, H, W) in 0..1, draws float (B, num_draws) -> images like them."""
        draws = draws[:, :, None, None, None]
        if self.flip:
            images = torch.where(draws[:, 0] < self.flip, images.flip(3), images)
        if self.brightness:
            images = (images * _factor(draws[:, 1], self.brightness)).clamp(0, 1)
        if self.contrast:
            mean = _grey(images).mean(dim=(2, 3), keepdim=True)
            images = torch.lerp(mean, images, _factor(draws[:, 2], self.contrast)).clamp(0, 1)
        if self.saturation:
            images = torch.lerp(_grey(images), images, _factor(draws[:, 3], self.saturation)).clamp(0, 1)
        return images


class Normalise(nn.Module):
    """images float (B, 3, H, W) in 0..1 -> (images - mean) / std, as the weights expect them."""

    def __init__(self, preprocessing: Preprocessing):
        super().__init__()
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 0..1."""
    return images.float() / 255


def _factor(draws: Tensor, spread: float) -> Tensor:
    return 1 - spread + 2 * spread * draws


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]
