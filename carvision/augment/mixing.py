"""Mixup, CutMix and random erasing of batches on the device."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from carvision.augment.draws import between, per_image

MULTIPLIER = 0x45D9F3B  # odd, with well distributed bits; its product with 32 bits stays within 59


@dataclass(frozen=True)
class Mix:
    """Mix each photo of a batch with the next one, the last with the first: batches are in random order anyway.

    mixup: alpha of the Beta distribution of a photo's own share (Zhang et al. 2017, arXiv:1710.09412); 0: no mixup. The
    paper draws one share per batch; here each photo draws its own and takes the larger of the two shares, so that every
    photo dominates one image per epoch. The distribution of mixed pairs is the paper's.
    cutmix: alpha of the Beta distribution of the area that a photo keeps (Yun et al. 2019, arXiv:1905.04899); 0: no
    CutMix. With both, each photo uses one of them, equally likely. p: probability that a photo is mixed.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    p: float = 1.0

    @property
    def active(self) -> bool:
        """Return whether it can change anything."""
        return self.p > 0 and (self.mixup > 0 or self.cutmix > 0)

    def __call__(self, images: Tensor, valid: Tensor, key: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Return images, partner int64 (B,) and share float (B,): in every head, a photo's own targets have the weight
        share, those of its partner 1 - share.

        images: float (B, 3, H, W). valid: bool (B,); a photo whose partner is not valid stays unchanged, with share 1.
        key: decides the randomness: (seed, epoch, number of the batch, rank).
        """
        num, _, height, width = images.shape
        plan = torch.from_numpy(plan_mixing(self, num, height, width, key))
        # non_blocking, so that nothing waits for the device
        plan = plan.to(images.device, images.dtype, non_blocking=True)
        partner = (torch.arange(num, device=images.device) + 1) % num
        good = valid[partner]
        share, outside, top, left, bottom, right = plan.unbind(1)
        weight = torch.where(rectangles(images, top, left, bottom, right), 0.0, per_image(outside))
        weight = torch.where(per_image(good), weight, 1.0)
        return torch.lerp(images[partner], images, weight), partner, torch.where(good, share, 1.0)


def plan_mixing(mix: Mix, num: int, height: int, width: int, key: tuple[int, ...]) -> np.ndarray:
    """Draw float32 (num, 6): each photo's share, its weight outside of the rectangle that it loses, and that rectangle
    in whole pixels (top, left, bottom, right), empty for mixup.

    A CutMix rectangle has the photo's shape and its centre anywhere in it. It is clipped at the edges, and the share is
    that of the remaining pixels (as in the paper's code).
    """
    random = np.random.default_rng(key)
    own = np.stack([random.beta(alpha, alpha, num) if alpha else np.ones(num) for alpha in (mix.mixup, mix.cutmix)])
    own[0] = np.maximum(own[0], 1 - own[0])
    chance, kind, y, x = random.random((4, num))
    cut = kind < (0.5 if mix.mixup and mix.cutmix else float(mix.cutmix > 0))
    mixed = chance < mix.p
    sides = [np.floor(size * np.sqrt(1 - own[1])) * (cut & mixed) for size in (height, width)]
    middles = np.floor(y * height), np.floor(x * width)
    top, left = (np.maximum(middle - side // 2, 0) for middle, side in zip(middles, sides, strict=True))
    bottom, right = (
        np.minimum(middle - side // 2 + side, size)
        for middle, side, size in zip(middles, sides, (height, width), strict=True)
    )
    outside = np.where(mixed & ~cut, own[0], 1.0)
    share = outside * (1 - (bottom - top) * (right - left) / (height * width))
    return np.stack([share, outside, top, left, bottom, right], axis=1).astype(np.float32)


def erase(images: Tensor, draws: Tensor, area: tuple[float, float], ratio: tuple[float, float], fill: str) -> Tensor:
    """Replace a random rectangle (Zhong et al. 2017, arXiv:1708.04896).

    area: range of its share of the image. ratio: range of height / width, log-uniform, limited so that the rectangle
    fits. fill: "noise", the paper's best, random values for each pixel; or "mean", the image's mean colour.
    draws: (B, 5): area, ratio, top, left, noise.
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
    """Return masks of rectangles, bool (B, 1, H, W). top, left, bottom, right: (B,); bottom and right are excluded."""
    y = torch.arange(images.shape[2], device=images.device)[:, None]
    x = torch.arange(images.shape[3], device=images.device)
    inside_y = (y >= per_image(top)) & (y < per_image(bottom))
    return inside_y & (x >= per_image(left)) & (x < per_image(right))


def _noise(images: Tensor, draws: Tensor) -> Tensor:
    """Return pseudo-random values in [0, 1), equal on every device: hashes of the pixel's index and the draw."""
    indices = torch.arange(images[0].numel(), device=images.device).reshape(1, *images.shape[1:])
    mixed = _hashed(indices) ^ per_image(_hashed((draws * 2**24).long()))
    return (_hashed(mixed, rounds=1) >> 8).to(images.dtype).div_(2**24)


def _hashed(numbers: Tensor, rounds: int = 2) -> Tensor:
    """Hash int64 in 0 ... 2**32 - 1 to the same range, by shifts and multiplications modulo 2**32."""
    for _ in range(rounds):
        numbers = (numbers >> 16).bitwise_xor_(numbers).mul_(MULTIPLIER).bitwise_and_(0xFFFFFFFF)
    return (numbers >> 16).bitwise_xor_(numbers)
