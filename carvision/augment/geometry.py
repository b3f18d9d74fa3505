"""Steps of the augmentation that move pixels: images float (B, 3, H, W), draws float (B, n) -> images like them.

Coordinates are in pixels from the middle of the photo, x to the right and y down. Grids are made by plain products:
under autocast a matrix product would give them in half precision, which misplaces pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from carvision.augment.draws import between

# What lies beyond the photo's edge: its mirror image without the edge's own pixels (OpenCV's BORDER_REFLECT_101),
# the edge's pixels repeated (Keras' "nearest"), or nothing. With align_corners=True these are grid_sample's modes.
BORDERS = {"reflect": "reflection", "edge": "border", "black": "zeros"}

Row = tuple[Tensor | float, Tensor | float, Tensor | float]  # of a matrix; each a number or (B,)


def flip(images: Tensor, draws: Tensor) -> Tensor:
    return images.flip(3)


def vertical_flip(images: Tensor, draws: Tensor) -> Tensor:
    return images.flip(2)


def rotate(images: Tensor, draws: Tensor, degrees: float, border: str) -> Tensor:
    """By an angle within +-degrees, against the clock where it is positive, about the middle."""
    sin, cos = _sin_cos(between(draws[:, 0], -degrees, degrees))
    return warp(images, (cos, -sin, 0.0), (sin, cos, 0.0), border)


def shift_scale_rotate(
    images: Tensor, draws: Tensor, shift: float, scale: float, degrees: float, border: str
) -> Tensor:
    """albumentations' ShiftScaleRotate: turned and scaled by 1 +- scale about the middle, then moved by +-shift of
    the width and, by itself, of the height."""
    height, width = images.shape[2:]
    sin, cos = _sin_cos(between(draws[:, 0], -degrees, degrees))
    factor = between(draws[:, 1], 1 - scale, 1 + scale)
    right, down = between(draws[:, 2], -shift, shift) * width, between(draws[:, 3], -shift, shift) * height
    sin, cos = sin / factor, cos / factor
    return warp(images, (cos, -sin, sin * down - cos * right), (sin, cos, -sin * right - cos * down), border)


def affine(
    images: Tensor, draws: Tensor, degrees: float, shift: float, shear_degrees: float, zoom: float, border: str
) -> Tensor:
    """Keras' ImageDataGenerator: the matrix rotation x shift x shear x zoom takes each pixel's (row, column) to where
    its colour comes from. The two directions are zoomed independently, by 1 +- zoom."""
    height, width = images.shape[2:]
    sin, cos = _sin_cos(between(draws[:, 0], -degrees, degrees))
    down, right = between(draws[:, 1], -shift, shift) * height, between(draws[:, 2], -shift, shift) * width
    shear_sin, shear_cos = _sin_cos(between(draws[:, 3], -shear_degrees, shear_degrees))
    zoom_y, zoom_x = between(draws[:, 4], 1 - zoom, 1 + zoom), between(draws[:, 5], 1 - zoom, 1 + zoom)
    y_from = ((cos * -shear_sin - sin * shear_cos) * zoom_x, cos * zoom_y, cos * down - sin * right)
    x_from = ((sin * -shear_sin + cos * shear_cos) * zoom_x, sin * zoom_y, sin * down + cos * right)
    return warp(images, x_from, y_from, border)


def grid_distortion(images: Tensor, draws: Tensor, num_steps: int, limit: float, border: str) -> Tensor:
    """albumentations' GridDistortion: the width, and likewise the height, is divided into num_steps equal parts, each
    of which shows a stretch of the photo that is 1 +- limit times as long, one after the other from the left (top).

    Where albumentations divides the photo at whole pixels, and squeezes what is left over into the last few, the
    parts here are equal at any size. draws: 2 * num_steps a photo.
    """
    lengths = between(draws, 1 - limit, 1 + limit)
    height, width = images.shape[2:]
    x = _stretched(lengths[:, :num_steps], width)[:, None, :]
    y = _stretched(lengths[:, num_steps:], height)[:, :, None]
    return sample(images, x, y, border)


def _stretched(lengths: Tensor, size: int) -> Tensor:
    """lengths (B, parts) of the parts of an axis, relative to equal ones -> (B, size), where each pixel looks."""
    parts = lengths.shape[1]
    place = torch.arange(size, device=lengths.device, dtype=lengths.dtype) * (parts / size)
    within = (place - torch.arange(parts, device=lengths.device)[:, None]).clamp(0, 1)  # how far into each part
    return (lengths[:, :, None] * within).sum(1) * (size / parts) - (size - 1) / 2


def warp(images: Tensor, x_from: Row, y_from: Row, border: str) -> Tensor:
    """Each pixel (x, y) takes the colour at x' = a x + b y + c, where x_from = (a, b, c), and y' likewise."""
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device, dtype=images.dtype) - (width - 1) / 2
    y = torch.arange(height, device=images.device, dtype=images.dtype)[:, None] - (height - 1) / 2
    return sample(images, _along(x_from, x, y), _along(y_from, x, y), border)


def sample(images: Tensor, x: Tensor, y: Tensor, border: str) -> Tensor:
    """The colours, bilinear, at x and y, which broadcast to (B, H, W). border: a key of BORDERS."""
    height, width = images.shape[2:]
    if images.device.type == "xla":  # which would take the batch to the CPU for grid_sample
        return sample_by_gathering(images, x + (width - 1) / 2, y + (height - 1) / 2, border)
    x, y = torch.broadcast_tensors(x * (2 / (width - 1)), y * (2 / (height - 1)))
    return F.grid_sample(images, torch.stack([x, y], -1), "bilinear", BORDERS[border], align_corners=True)


def sample_by_gathering(images: Tensor, x: Tensor, y: Tensor, border: str) -> Tensor:
    """As `sample`, but x and y count from the first pixel."""
    height, width = images.shape[2:]
    x, y = torch.broadcast_tensors(_within(x, width, border), _within(y, height, border))
    left, top = x.floor(), y.floor()
    pixels = images.flatten(2)
    total = torch.zeros_like(images)
    for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
        weight = (1 - (x - column).abs()) * (1 - (y - row).abs())
        # Beyond the edge lies nothing; where the borders are mirrored or repeated only with the weight 0
        weight = weight * ((column >= 0) & (column < width) & (row >= 0) & (row < height))
        place = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
        colours = pixels.gather(2, place.flatten(1)[:, None].expand(-1, pixels.shape[1], -1))
        total = total + weight[:, None] * colours.view_as(images)
    return total


def _within(place: Tensor, size: int, border: str) -> Tensor:
    """Where a place outside of 0 ... size - 1 finds its colour."""
    if border == "edge":
        return place.clamp(0, size - 1)
    if border == "reflect":
        place = place.abs() % (2 * (size - 1))
        return torch.minimum(place, 2 * (size - 1) - place)
    return place


def _along(row: Row, x: Tensor, y: Tensor) -> Tensor:
    a, b, c = (value[:, None, None] if isinstance(value, Tensor) else value for value in row)
    return a * x + b * y + c


def _sin_cos(degrees: Tensor) -> tuple[Tensor, Tensor]:
    angle = torch.deg2rad(degrees)
    return angle.sin(), angle.cos()
