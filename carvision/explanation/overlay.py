"""Draw a heat map over a photo: colours whose lightness grows evenly with the value, so that it can be read in grey."""

from typing import Any

import numpy as np
from PIL import Image

from carvision.data.decode import decode_part, to_rgb
from carvision.data.images import Preprocessing
from carvision.reports.matrix import shade

# matplotlib's inferno in steps of an eighth: perceptually even, from black to light yellow
INFERNO = ("000004", "1f0c48", "550f6d", "88226a", "ba3655", "e35933", "f98c0a", "f9c932", "fcffa4")
OPACITY = (0.3, 0.75)  # of the colours, where the value is 0 and 1
CONTOUR = 0.5  # value at which the line is drawn


def overlay(image: Image.Image, values: np.ndarray) -> Image.Image:
    """Return the image in grey under the map's colours, RGB of the same size, with a line at half of the maximum, white
    inside and black outside.

    values: float (h, w) in 0..1 of equal parts of the image; between their centres they are interpolated.
    """
    grey = np.asarray(to_rgb(image).convert("L"), np.float32)[..., None] / 255
    smooth = _enlarged(values, image.size)
    opacity = (OPACITY[0] + (OPACITY[1] - OPACITY[0]) * smooth)[..., None]
    pixels = (1 - opacity) * grey + opacity * shade(smooth, INFERNO)
    inside, width = smooth >= CONTOUR, max(1, round(max(image.size) / 300))
    pixels[_edge(~inside, width)], pixels[_edge(inside, width)] = 0, 1
    return Image.fromarray((pixels * 255).round().astype(np.uint8))


def seen_part(image: Image.Image, preprocessing: Preprocessing, box: Any = None) -> Image.Image:
    """Return the part of a photo that the network sees, upright, RGB: the one that a map's values belong to.

    box: left, top, right, bottom in pixels of the upright photo, or None for the whole. Raises BadImage.
    """
    image.load()  # else a JPEG would be decoded scaled down
    return decode_part(image, preprocessing, None if box is None else np.asarray(box, np.float32))


def _enlarged(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the values for each pixel, float32 (height, width) in 0..1."""
    cells = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(cells.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)


def _edge(inside: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels inside that are within `width` of one outside; the image's own border is none."""
    padded = np.pad(inside, width, mode="edge")
    height_px, width_px = inside.shape
    shifts = [padded[y : y + height_px, x : x + width_px] for y in (0, 2 * width) for x in (0, 2 * width)]
    return inside & ~np.logical_and.reduce(shifts)
