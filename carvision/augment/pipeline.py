"""Process batches on the device: augmentation in training, normalisation always."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from carvision.augment import colour, geometry
from carvision.augment.auto import rand_augment, trivial_augment
from carvision.augment.colour import blur
from carvision.augment.draws import per_image
from carvision.augment.mixing import erase
from carvision.data.images import Preprocessing
from carvision.errors import InputError, suggest

CPU_CHUNK = 8


class Step(NamedTuple):
    """An augmentation step. function: (images float (B, 3, H, W) in 0..1, draws float (B, num_draws), **keys of
    augment.steps.<name>) -> images. num_draws: a number, or a function of those keys."""

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
    """Apply steps in order, each to each image independently with the step's probability p.

    order: names of STEPS, possibly repeated. steps: {name: {"p": ..., the step's own keys}}, at least for those.
    num_draws: uniform numbers in [0, 1) per image: for each step one for its probability, then its own. Steps with p =
    0 are left out. Raises InputError for an unknown step.
    """

    def __init__(self, order: list[str], steps: dict[str, dict]):
        super().__init__()
        self.steps = []  # (function, p, num_draws, keys)
        for name in order:
            if name not in STEPS or name not in steps:
                known = [word for word in STEPS if word in steps]
                raise InputError(f"augment.order: {name!r} is not one of {', '.join(known)}{suggest(str(name), known)}")
            keys = dict(steps[name])
            p = keys.pop("p")
            function, num_draws = STEPS[name]
            if p > 0:
                self.steps.append((function, p, num_draws(keys) if callable(num_draws) else num_draws, keys))
        self.num_draws = sum(1 + num_draws for _, _, num_draws, _ in self.steps)

    def forward(self, images: Tensor, draws: Tensor) -> Tensor:
        """Augment images, float (B, 3, H, W) in 0..1. draws: float (B, num_draws)."""
        if not self.steps:
            return images
        draws = draws.to(images.dtype)  # half precision has rounded them
        if images.device.type != "cpu":
            # Some steps return contiguous channels; convolutions are fastest with channels last, as images arrive
            changed = self._apply_steps(images, draws)
            return changed.contiguous(memory_format=torch.channels_last)
        # Chunks that fit into the processor's cache take less than half the time
        parts = zip(images.split(CPU_CHUNK), draws.split(CPU_CHUNK), strict=True)
        return torch.cat([self._apply_steps(*part) for part in parts])

    def _apply_steps(self, images: Tensor, draws: Tensor) -> Tensor:
        start = 0
        for function, p, num_draws, keys in self.steps:
            changed = function(images, draws[:, start + 1 : start + 1 + num_draws], **keys)
            images = changed if p >= 1 else torch.where(per_image(draws[:, start] < p), changed, images)
            start += 1 + num_draws
        return images


class Normalise(nn.Module):
    """Normalise images, float (B, 3, H, W) in 0..1, to (images - mean) / std, as the weights expect them."""

    def __init__(self, preprocessing: Preprocessing):
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        mean, std = self.mean, self.std
        if images.device.type == "cpu" and images.is_contiguous(memory_format=torch.channels_last):
            # Broadcasting a whole row in the image's memory layout takes a sixth of the time of broadcasting 3 numbers
            mean, std = (_like_a_row(values, images.shape[3]) for values in (mean, std))
        return (images - mean).div_(std)


def _like_a_row(values: Tensor, width: int) -> Tensor:
    """Expand (3, 1, 1) to (3, 1, width), channels last in memory."""
    return values.expand(3, 1, width).permute(1, 2, 0).contiguous().permute(2, 0, 1)


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 0..255 to float32 0..1."""
    return images.float() / 255
