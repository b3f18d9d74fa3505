"""Augmentation steps that move pixels: images float (B, 3, H, W) and draws float (B, n) -> images like them.

Coordinates are in pixels from the image's centre, x to the right and y down. Sampling grids are computed by elementwise
products: under autocast, a matrix product would be in half precision, which displaces pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from carvision.augment.draws import between

# Pixels beyond the edge: mirrored without repeating the edge (OpenCV's BORDER_REFLECT_101), the edge repeated (Keras'
# "nearest"), or black. The values are grid_sample's modes for align_corners=True.
BORDERS = {"reflect": "reflection", "edge": "border", "black": "zeros"}

Row = tuple[Tensor | float, Tensor | float, Tensor | float]  # of a matrix; each entry a number or (B,)


def flip(images: Tensor, draws: Tensor) -> Tensor:
    """Mirror left and right."""
    return images.flip(3)


def vertical_flip(images: Tensor, draws: Tensor) -> Tensor:
    """Mirror top and bottom."""
    return images.flip(2)


def rotate(images: Tensor, draws: Tensor, degrees: float, border: str) -> Tensor:
    """Rotate about the centre by an angle within +-degrees, counterclockwise if positive."""
    sin, cos = _sin_cos(between(draws[:, 0], -degrees, degrees))
    return warp(images, (cos, -sin, 0.0), (sin, cos, 0.0), border)


def shift_scale_rotate(
    images: Tensor, draws: Tensor, shift: float, scale: float, degrees: float, border: str
) -> Tensor:
    """Rotate within +-degrees and scale by 1 +- scale about the centre, then shift by +-shift of the width and,
    independently, of the height (albumentations' ShiftScaleRotate)."""
    height, width = images.shape[2:]
    sin, cos = _sin_cos(between(draws[:, 0], -degrees, degrees))
    factor = between(draws[:, 1], 1 - scale, 1 + scale)
    right, down = between(draws[:, 2], -shift, shift) * width, between(draws[:, 3], -shift, shift) * height
    sin, cos = sin / factor, cos / factor
    return warp(images, (cos, -sin, sin * down - cos * right), (sin, cos, -sin * right - cos * down), border)


def affine(
    images: Tensor, draws: Tensor, degrees: float, shift: float, shear_degrees: float, zoom: float, border: str
) -> Tensor:
    """Warp by the matrix rotation x shift x shear x zoom, which maps each pixel's (row, column) to its source (Keras'
    ImageDataGenerator). Both directions are zoomed independently, by 1 +- zoom."""
    height, width = images.shape[2:]
    sin, cos = _sin_cos(between(draws[:, 0], -degrees, degrees))
    down, right = between(draws[:, 1], -shift, shift) * height, between(draws[:, 2], -shift, shift) * width
    shear_sin, shear_cos = _sin_cos(between(draws[:, 3], -shear_degrees, shear_degrees))
    zoom_y, zoom_x = between(draws[:, 4], 1 - zoom, 1 + zoom), between(draws[:, 5], 1 - zoom, 1 + zoom)
    y_from = ((cos * -shear_sin - sin * shear_cos) * zoom_x, cos * zoom_y, cos * down - sin * right)
    x_from = ((sin * -shear_sin + cos * shear_cos) * zoom_x, sin * zoom_y, sin * down + cos * right)
    return warp(images, x_from, y_from, border)


def grid_distortion(images: Tensor, draws: Tensor, num_steps: int, limit: float, border: str) -> Tensor:
    """Stretch and squeeze a grid (albumentations' GridDistortion): width and height are divided into num_steps equal
    parts, each of which shows a stretch of the image 1 +- limit times as long, in sequence from the left (top).

    albumentations divides at whole pixels and squeezes the remainder into the last few; here all parts are equal at any
    size. draws: (B, 2 * num_steps).
    """
    lengths = between(draws, 1 - limit, 1 + limit)
    height, width = images.shape[2:]
    x = _stretched(lengths[:, :num_steps], width)[:, None, :]
    y = _stretched(lengths[:, num_steps:], height)[:, :, None]
    return sample(images, x, y, border)


def _stretched(lengths: Tensor, size: int) -> Tensor:
    """Return the source coordinate of each pixel of an axis, (B, size). lengths: (B, parts), relative to equal
    parts."""
    parts = lengths.shape[1]
    position = torch.arange(size, device=lengths.device, dtype=lengths.dtype) * (parts / size)
    within = (position - torch.arange(parts, device=lengths.device)[:, None]).clamp(0, 1)  # share of each part passed
    return (lengths[:, :, None] * within).sum(1) * (size / parts) - (size - 1) / 2


def warp(images: Tensor, x_from: Row, y_from: Row, border: str) -> Tensor:
    """Give each pixel (x, y) the colour at x' = a x + b y + c, where x_from = (a, b, c), and y' likewise."""
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device, dtype=images.dtype) - (width - 1) / 2
    y = torch.arange(height, device=images.device, dtype=images.dtype)[:, None] - (height - 1) / 2
    return sample(images, _along(x_from, x, y), _along(y_from, x, y), border)


def sample(images: Tensor, x: Tensor, y: Tensor, border: str) -> Tensor:
    """Sample the images bilinearly at x and y, which broadcast to (B, H, W). border: a key of BORDERS."""
    height, width = images.shape[2:]
    if images.device.type == "xla":  # torch-xla would run grid_sample on the CPU
        return sample_by_gathering(images, x + (width - 1) / 2, y + (height - 1) / 2, border)
    x, y = torch.broadcast_tensors(x * (2 / (width - 1)), y * (2 / (height - 1)))
    return F.grid_sample(images, torch.stack([x, y], -1), "bilinear", BORDERS[border], align_corners=True)


def sample_by_gathering(images: Tensor, x: Tensor, y: Tensor, border: str) -> Tensor:
    """Sample as `sample` does, but with x and y counted from the first pixel."""
    height, width = images.shape[2:]
    x, y = torch.broadcast_tensors(_within(x, width, border), _within(y, height, border))
    left, top = x.floor(), y.floor()
    pixels = images.flatten(2)
    total = torch.zeros_like(images)
    for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
        weight = (1 - (x - column).abs()) * (1 - (y - row).abs())
        # Pixels beyond the edge are black; with the other borders their weight is 0 anyway
        weight = weight * ((column >= 0) & (column < width) & (row >= 0) & (row < height))
        index = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
        colours = pixels.gather(2, index.flatten(1)[:, None].expand(-1, pixels.shape[1], -1))
        total = total + weight[:, None] * colours.view_as(images)
    return total


def _within(position: Tensor, size: int, border: str) -> Tensor:
    """Map positions outside of 0 ... size - 1 to those that have their colour."""
    if border == "edge":
        return position.clamp(0, size - 1)
    if border == "reflect":
        position = position.abs() % (2 * (size - 1))
        return torch.minimum(position, 2 * (size - 1) - position)
    return position


def _along(row: Row, x: Tensor, y: Tensor) -> Tensor:
    a, b, c = (value[:, None, None] if isinstance(value, Tensor) else value for value in row)
    return a * x + b * y + c


def _sin_cos(degrees: Tensor) -> tuple[Tensor, Tensor]:
    angle = torch.deg2rad(degrees)
    return angle.sin(), angle.cos()
