"""RandAugment and TrivialAugment as steps: operations with their magnitudes as in torchvision's v2 classes.

Each image has its own operation, yet the batch needs only three passes: every geometric operation is a matrix (one
resampling), every blend a weight and a second image (one interpolation), every mapping of values a table of 256 (one
look-up). A pass leaves images with operations of other kinds unchanged, to the bit.

Unlike torchvision's default, geometric operations resample bilinearly; pixels from outside the image are black.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from carvision.augment.colour import grey
from carvision.augment.draws import choice, per_image, sign
from carvision.augment.geometry import warp

OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate",
    "brightness", "colour", "contrast", "sharpness",
    "posterize", "solarize", "auto_contrast", "equalize",
)  # fmt: skip
GEOMETRIC, BLENDS, TABLES = OPERATIONS[1:6], OPERATIONS[6:10], OPERATIONS[10:]
MAX_MAGNITUDE = 30  # magnitudes are 0 ... 30


class Limits(NamedTuple):
    """The effect of the largest magnitude. shear: tangent; translate_px: (x, y); blend: difference from 1."""

    shear: float
    translate_px: tuple[float, float]
    degrees: float
    blend: float
    bits: int  # lost by posterize


def rand_augment(images: Tensor, draws: Tensor, num_ops: int, magnitude: int) -> Tensor:
    """Apply num_ops random operations of one magnitude in turn: Cubuk et al. 2020, arXiv:1909.13719.

    images: float (B, 3, H, W) in 0..1. draws: (B, 2 * num_ops).
    """
    height, width = images.shape[2:]
    limits = Limits(0.3, (150 / 331 * width, 150 / 331 * height), 30.0, 0.9, 4)
    for i in range(num_ops):
        operation, direction = choice(draws[:, 2 * i], len(OPERATIONS)), sign(draws[:, 2 * i + 1])
        images = apply_operation(images, operation, torch.full_like(direction, magnitude), direction, limits)
    return images


def trivial_augment(images: Tensor, draws: Tensor) -> Tensor:
    """Apply one random operation of random magnitude: Mueller and Hutter 2021, arXiv:2103.10158, its wide space.

    images: float (B, 3, H, W) in 0..1. draws: (B, 3).
    """
    magnitude = choice(draws[:, 1], MAX_MAGNITUDE + 1).to(images.dtype)
    limits = Limits(0.99, (32.0, 32.0), 135.0, 0.99, 6)
    return apply_operation(images, choice(draws[:, 0], len(OPERATIONS)), magnitude, sign(draws[:, 2]), limits)


def apply_operation(images: Tensor, operation: Tensor, magnitude: Tensor, direction: Tensor, limits: Limits) -> Tensor:
    """Apply an operation to each image. operation: int64 (B,), indices into OPERATIONS. magnitude: float (B,), whole, 0
    to 30. direction: (B,), -1 or 1."""
    images = _move(images, operation, direction * magnitude / MAX_MAGNITUDE, limits)
    images = _blend(images, operation, direction * magnitude / MAX_MAGNITUDE, limits)
    return _map_values(images, operation, magnitude, limits)


def _is(operation: Tensor, *names: str) -> Tensor:
    """Return bool (B,): the operation is one of `names`, which are adjacent in OPERATIONS."""
    first, last = OPERATIONS.index(names[0]), OPERATIONS.index(names[-1])
    return (operation >= first) & (operation <= last)


def _move(images: Tensor, operation: Tensor, level: Tensor, limits: Limits) -> Tensor:
    """Apply the geometric operations: shears about the top left corner, as in torchvision; translations by whole
    pixels."""
    height, width = images.shape[2:]
    shear_x, shear_y = (_is(operation, name) * level * limits.shear for name in ("shear_x", "shear_y"))
    right = _is(operation, "translate_x") * (level * limits.translate_px[0]).trunc()
    down = _is(operation, "translate_y") * (level * limits.translate_px[1]).trunc()
    angle = torch.deg2rad(_is(operation, "rotate") * level * limits.degrees)
    sin, cos = angle.sin(), angle.cos()
    x_from = (cos, shear_x - sin, shear_x * (height / 2) - right)
    y_from = (sin + shear_y, cos, shear_y * (width / 2) - down)
    moved = warp(images, x_from, y_from, "black")
    return torch.where(per_image(_is(operation, *GEOMETRIC)), moved, images)


def _blend(images: Tensor, operation: Tensor, level: Tensor, limits: Limits) -> Tensor:
    """Apply the blends: interpolate between the image and its black, grey, flat or smooth version, or extrapolate."""
    weight = per_image(1 + _is(operation, *BLENDS) * level * limits.blend)
    greys = grey(images)
    others = torch.where(per_image(_is(operation, "contrast")), greys.mean(dim=(2, 3), keepdim=True), greys)
    others = torch.where(per_image(_is(operation, "brightness")), 0.0, others)
    others = torch.where(per_image(_is(operation, "sharpness")), _smooth(images), others)
    return torch.lerp(others, images, weight).clamp(0, 1)


def _smooth(images: Tensor) -> Tensor:
    """Smooth by 3 x 3 means in which the centre counts five times; the outermost pixels stay."""
    height, width = images.shape[2:]
    rows = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = F.pad((sums + 4 * images[:, :, 1:-1, 1:-1]) / 13, (1, 1, 1, 1))
    y, x = torch.arange(height, device=images.device)[:, None], torch.arange(width, device=images.device)
    edge = (y == 0) | (y == height - 1) | (x == 0) | (x == width - 1)
    return torch.where(edge, images, smooth)


def _map_values(images: Tensor, operation: Tensor, magnitude: Tensor, limits: Limits) -> Tensor:
    """Apply the mappings to values rounded to 0 ... 255, for which these operations are defined."""
    values = (images * 255).round().long().clamp(0, 255).flatten(2)
    mapped = _tables(values, operation, magnitude, limits).gather(2, values).view(images.shape)
    return torch.where(per_image(_is(operation, *TABLES)), mapped.to(images.dtype) / 255, images)


def _tables(values: Tensor, operation: Tensor, magnitude: Tensor, limits: Limits) -> Tensor:
    """Return the tables float (B, 3, 256) that map 0 ... 255 for each image and channel. values: int64 (B, 3,
    pixels)."""
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.int32, device=values.device)
    counts.scatter_add_(2, values, counts.new_ones(()).expand_as(values))
    all_values = torch.arange(256, device=values.device)
    table = torch.where(_is(operation, "auto_contrast")[:, None, None], _auto_contrast(counts), _equalize(counts))
    steps = 2 ** (magnitude * limits.bits / MAX_MAGNITUDE).round()[:, None, None]
    table = torch.where(_is(operation, "posterize")[:, None, None], (all_values / steps).floor() * steps, table)
    bright = all_values >= (255 - 255 / MAX_MAGNITUDE * magnitude)[:, None, None]  # 8.5 each, which floats hold exactly
    solarized = torch.where(bright, 255 - all_values, all_values).to(table.dtype)
    return torch.where(_is(operation, "solarize")[:, None, None], solarized, table)


def _auto_contrast(counts: Tensor) -> Tensor:
    """Return tables that stretch each channel to 0 ... 255. counts: (B, 3, 256), how often each value occurs."""
    all_values = torch.arange(256, device=counts.device, dtype=torch.float32)
    low = torch.where(counts > 0, all_values, 255.0).amin(2, keepdim=True)
    high = torch.where(counts > 0, all_values, 0.0).amax(2, keepdim=True)
    stretched = ((all_values - low) * (255 / (high - low).clamp(min=1))).clamp(0, 255)
    return torch.where(high > low, stretched, all_values)


def _equalize(counts: Tensor) -> Tensor:
    """Return tables that equalise each channel's histogram by Pillow's formula. counts: (B, 3, 256)."""
    all_values = torch.arange(256, device=counts.device)
    counts = counts.long()  # torch-xla sums int32 in int32, others in int64
    up_to = counts.cumsum(2)
    highest = torch.where(counts > 0, all_values, 0).amax(2, keepdim=True)
    step = torch.div(up_to[..., -1:] - counts.gather(2, highest), 255, rounding_mode="floor")
    below = up_to - counts
    table = torch.div(below + torch.div(step, 2, rounding_mode="floor"), step.clamp(min=1), rounding_mode="floor")
    return torch.where(step > 0, table.clamp(0, 255), all_values).float()
