"""Process batches on the device: augmentation in training, normalisation always."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from carvision.augment import colour, geometry
from carvision.augment.auto import rand_augment, trivial_augment
from carvision.augment.draws import per_image
from carvision.augment.mixing import erase
from carvision.data.images import Preprocessing

CPU_CHUNK = 8


# By name: a function (images float (B, 3, H, W) in 0..1, draws float (B, num_draws), **keys of augment.steps.<name>) ->
# images; and num_draws, a number or a function of those keys
STEPS: dict[str, tuple[Callable[..., Tensor], int | Callable[[dict], int]]] = {
    "flip": (geometry.flip, 0),
    "vertical_flip": (geometry.vertical_flip, 0),
    "brightness": (colour.brightness, 1),
    "brightness_shift": (colour.brightness_shift, 1),
    "contrast": (colour.contrast, 1),
    "saturation": (colour.saturation, 1),
    "hue": (colour.hue, 1),
    "brightness_contrast": (colour.brightness_contrast, 2),
    "hue_saturation_value": (colour.hue_saturation_value, 3),
    "grayscale": (colour.grayscale, 0),
    "rotate": (geometry.rotate, 1),
    "shift_scale_rotate": (geometry.shift_scale_rotate, 4),
    "affine": (geometry.affine, 6),
    "grid_distortion": (geometry.grid_distortion, lambda values: 2 * values["num_steps"]),
    "blur": (colour.blur, 1),
    "erase": (erase, 5),
    "rand_augment": (rand_augment, lambda values: 2 * values["num_ops"]),
    "trivial_augment": (trivial_augment, 3),
}


class Augment(nn.Module):
    """Apply steps in order, each to each image independently with the step's probability p.

    order: names of STEPS, possibly repeated. steps: {name: {"p": ..., the step's own keys}}, at least for those.
    num_draws: uniform numbers in [0, 1) per image: for each step one for its probability, then its own. Steps with p =
    0 are left out.
    """

    def __init__(self, order: list[str], steps: dict[str, dict]):
        super().__init__()
        self.steps = []  # (function, p, num_draws)
        for name in order:
            function, num_draws = STEPS[name]
            keys = {key: value for key, value in steps[name].items() if key != "p"}
            if steps[name]["p"] > 0:
                num_draws = num_draws(keys) if callable(num_draws) else num_draws
                self.steps.append((partial(function, **keys), steps[name]["p"], num_draws))
        self.num_draws = sum(1 + num_draws for _, _, num_draws in self.steps)

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
        for function, p, num_draws in self.steps:
            changed = function(images, draws[:, start + 1 : start + 1 + num_draws])
            images = changed if p >= 1 else torch.where(per_image(draws[:, start] < p), changed, images)
            start += 1 + num_draws
        return images


class Normalise(nn.Module):
    """Normalise images, float (B, 3, H, W) in 0..1, to (images - mean) / std, as the weights expect them."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing):
        super().__init__()
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        mean, std = self.mean, self.std
        if images.device.type == "cpu" and images.is_contiguous(memory_format=torch.channels_last):
            # Broadcasting a whole row, channels last in memory, takes a sixth of the time of broadcasting 3 numbers
            rows = (values.expand(3, 1, images.shape[3]).permute(1, 2, 0).contiguous() for values in (mean, std))
            mean, std = (row.permute(2, 0, 1) for row in rows)
        return (images - mean).div_(std)


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 0..255 to float32 0..1."""
    return images.float() / 255
