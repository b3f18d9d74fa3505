"""Mixup and CutMix on batches, after the augmentation, on the device."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from carvision.data.augment_steps.draws import of_photos
from carvision.data.augment_steps.erasing import rectangles


@dataclass(frozen=True)
class Mix:
    """Each photo of a batch is mixed with the next one, the last with the first: batches come in random order.

    mixup: alpha of the Beta distribution of a photo's own share (Zhang et al. 2017, arXiv:1710.09412); 0: none. The
    paper draws one share a batch; here each photo draws its own, and takes the larger of the two shares, so that every
    photo is most of its picture once an epoch. Which pairs are mixed, and how, has the paper's distribution.
    cutmix: alpha of that of the area that a photo keeps (Yun et al. 2019, arXiv:1905.04899); 0: none. With both, each
    photo takes one of them, equally likely. p: chance that a photo is mixed.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    p: float = 1.0

    @property
    def active(self) -> bool:
        """Whether it can change anything."""
        return self.p > 0 and (self.mixup > 0 or self.cutmix > 0)

    def __call__(self, images: Tensor, valid: Tensor, key: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """(images, partner int64 (B,), share float (B,)): share is the weight of a photo's own targets, 1 - share that
        of the targets of its partner, of every head.

        images: float (B, 3, H, W). valid: bool (B,); a photo whose partner is not valid stays as it is, share 1.
        key: what the randomness depends on: (seed, epoch, number of the batch, rank).
        """
        num, _, height, width = images.shape
        plan = torch.from_numpy(plan_mixing(self, num, height, width, key))
        # non_blocking: a few numbers go to the device, and nothing waits for it
        plan = plan.to(images.device, images.dtype, non_blocking=True)
        partner = (torch.arange(num, device=images.device) + 1) % num
        good = valid[partner]
        share, outside, top, left, bottom, right = plan.unbind(1)
        weight = torch.where(rectangles(images, top, left, bottom, right), 0.0, of_photos(outside))
        weight = torch.where(of_photos(good), weight, 1.0)
        return torch.lerp(images[partner], images, weight), partner, torch.where(good, share, 1.0)


def plan_mixing(mix: Mix, num: int, height: int, width: int, key: tuple[int, ...]) -> np.ndarray:
    """float32 (num, 6): of each photo its share, its weight outside of the rectangle that it loses, and that rectangle
    in whole pixels: top, left, bottom, right, without area for mixup.

    A rectangle of CutMix has the photo's shape and its middle anywhere in it. What reaches outside is cut off, so the
    share is that of the pixels which are left (the paper's code).
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
