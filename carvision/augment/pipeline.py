"""What happens to a batch on the device: augmentation in training, normalisation always."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from carvision.augment import colour, geometry
from carvision.augment.auto import rand_augment, trivial_augment
from carvision.augment.colour import blur
from carvision.augment.draws import of_photos
from carvision.augment.mixing import erase
from carvision.data.images import Preprocessing
from carvision.errors import InputError, nearest

PHOTOS_IN_CACHE = 8


class Step(NamedTuple):
    """function: (images float (B, 3, H, W) in 0..1, draws float (B, num_draws), the step's own keys of
    augment.steps) -> images. num_draws: a number, or what gives it from those keys."""

    function: Callable[..., Tensor]
    num_draws: int | Callable[[dict], int]


STEPS = {
    "flip": Step(geometry.flip, 0),
    "vertical_flip": Step(geometry.vertical_flip, 0),
    "brightness": Step(colour.brightness, 1),
    "brightness_shift": Step(colour.brightness_shift, 1),
    "contrast": Step(colour.contrast, 1),
    "saturation": Step(colour.saturation, 1),
    "hue": Step(colour.hue, 1),
    "brightness_contrast": Step(colour.brightness_contrast, 2),
    "hue_saturation_value": Step(colour.hue_saturation_value, 3),
    "grayscale": Step(colour.grayscale, 0),
    "rotate": Step(geometry.rotate, 1),
    "shift_scale_rotate": Step(geometry.shift_scale_rotate, 4),
    "affine": Step(geometry.affine, 6),
    "grid_distortion": Step(geometry.grid_distortion, lambda values: 2 * values["num_steps"]),
    "blur": Step(blur, 1),
    "erase": Step(erase, 5),
    "rand_augment": Step(rand_augment, lambda values: 2 * values["num_ops"]),
    "trivial_augment": Step(trivial_augment, 3),
}


class Augment(nn.Module):
    """Steps one after the other, each for each photo by itself with the step's chance p.

    order: names of STEPS; one may occur twice. steps: {name: {"p": ..., the step's own keys}}, of at least those.
    num_draws: uniform numbers in [0, 1) that a photo takes: for each step one for its chance, then its own.
    A step whose p is 0 is left out.
    """

    def __init__(self, order: list[str], steps: dict[str, dict]):
        super().__init__()
        self.steps = []  # (function, p, num_draws, keys)
        for name in order:
            if name not in STEPS or name not in steps:
                known = [word for word in STEPS if word in steps]
                raise InputError(f"augment.order: {name!r} is not one of {', '.join(known)}{nearest(str(name), known)}")
            keys = dict(steps[name])
            p = keys.pop("p")
            function, num_draws = STEPS[name]
            if p > 0:
                self.steps.append((function, p, num_draws(keys) if callable(num_draws) else num_draws, keys))
        self.num_draws = sum(1 + num_draws for _, _, num_draws, _ in self.steps)

    def forward(self, images: Tensor, draws: Tensor) -> Tensor:
        """images float (B, 3, H, W) in 0..1, draws float (B, num_draws) -> images like them."""
        if not self.steps:
            return images
        draws = draws.to(images.dtype)  # which a run in half precision has made coarser
        if images.device.type != "cpu":
            # Some steps leave one channel after the other; convolutions are fastest with them together, as they came
            changed = self._one_after_the_other(images, draws)
            return changed.contiguous(memory_format=torch.channels_last)
        # A few photos at a time stay in the processor's cache: less than half the time
        parts = zip(images.split(PHOTOS_IN_CACHE), draws.split(PHOTOS_IN_CACHE), strict=True)
        return torch.cat([self._one_after_the_other(*part) for part in parts])

    def _one_after_the_other(self, images: Tensor, draws: Tensor) -> Tensor:
        start = 0
        for function, p, num_draws, keys in self.steps:
            changed = function(images, draws[:, start + 1 : start + 1 + num_draws], **keys)
            images = changed if p >= 1 else torch.where(of_photos(draws[:, start] < p), changed, images)
            start += 1 + num_draws
        return images


class Normalise(nn.Module):
    """images float (B, 3, H, W) in 0..1 -> (images - mean) / std, as the weights expect them."""

    def __init__(self, preprocessing: Preprocessing):
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        mean, std = self.mean, self.std
        if images.device.type == "cpu" and images.is_contiguous(memory_format=torch.channels_last):
            # A row of the photo at once, laid out as it is, takes a sixth of the time of three numbers over and over
            mean, std = (_like_a_row(values, images.shape[3]) for values in (mean, std))
        return (images - mean).div_(std)


def _like_a_row(values: Tensor, width: int) -> Tensor:
    """(3, 1, 1) -> (3, 1, width), with the channels last in memory."""
    return values.expand(3, 1, width).permute(1, 2, 0).contiguous().permute(2, 0, 1)


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 0..1."""
    return images.float() / 255
