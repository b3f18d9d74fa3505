"""Random erasing as a step of the augmentation."""

import math

import torch
from torch import Tensor

from carvision.data.augment_steps.draws import between, of_photos

MULTIPLIER = 0x45D9F3B  # odd, with bits all over; times 32 bits it stays within 59


def erase(images: Tensor, draws: Tensor, area: tuple[float, float], ratio: tuple[float, float], fill: str) -> Tensor:
    """A rectangle of the photo is lost (Zhong et al. 2017, arXiv:1708.04896).

    area: of the rectangle, as a share of the photo's. ratio: height by width, log-uniform, as far as a rectangle of
    that area fits. fill: "noise", the paper's best, random values for each pixel; or "mean", the photo's mean colour.
    draws: 5 a photo: area, ratio, place down and right, noise.
    """
    height, width = images.shape[2:]
    share = between(draws[:, 0], *area)
    log_ratio = between(draws[:, 1], math.log(ratio[0]), math.log(ratio[1])).clamp(share.log(), -share.log())
    high = ((share * log_ratio.exp()).sqrt() * height).round().clamp(1, height)
    wide = ((share / log_ratio.exp()).sqrt() * width).round().clamp(1, width)
    top, left = (draws[:, 2] * (height - high + 1)).floor(), (draws[:, 3] * (width - wide + 1)).floor()
    inside = rectangles(images, top, left, top + high, left + wide)
    content = images.mean(dim=(2, 3), keepdim=True) if fill == "mean" else _noise(images, draws[:, 4])
    return torch.where(inside, content, images)


def rectangles(images: Tensor, top: Tensor, left: Tensor, bottom: Tensor, right: Tensor) -> Tensor:
    """bool (B, 1, H, W): the pixels from top and left up to, but without, bottom and right, each (B,)."""
    y = torch.arange(images.shape[2], device=images.device)[:, None]
    x = torch.arange(images.shape[3], device=images.device)
    inside_y = (y >= of_photos(top)) & (y < of_photos(bottom))
    return inside_y & (x >= of_photos(left)) & (x < of_photos(right))


def _noise(images: Tensor, draws: Tensor) -> Tensor:
    """Values in [0, 1) that look random and are the same on every device: hashes of the place and the draw."""
    places = torch.arange(images[0].numel(), device=images.device).reshape(1, *images.shape[1:])
    mixed = _hashed(places) ^ of_photos(_hashed((draws * 2**24).long()))
    return (_hashed(mixed, rounds=1) >> 8).to(images.dtype).div_(2**24)


def _hashed(numbers: Tensor, rounds: int = 2) -> Tensor:
    """int64 in 0 ... 2**32 - 1 -> the same, scrambled: shifts and multiplications, modulo 2**32."""
    for _ in range(rounds):
        numbers = (numbers >> 16).bitwise_xor_(numbers).mul_(MULTIPLIER).bitwise_and_(0xFFFFFFFF)
    return (numbers >> 16).bitwise_xor_(numbers)
