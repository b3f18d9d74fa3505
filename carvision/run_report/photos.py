"""Small pictures for a page: JPEGs as data URIs, of a photo, of its part that the network saw, of a heat map on it."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from carvision.data.images import BadImage
from carvision.data.packs.read import PackedPhoto
from carvision.reports.photos import read_small

QUALITY = 78
PhotoFile = str | Path | PackedPhoto


def data_uri(image: Image.Image, quality: int = QUALITY) -> str:
    """Return an image as a JPEG in a data URI."""
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def small_photo(photo: PhotoFile, size_px: int, box: Sequence[float] | np.ndarray | None = None) -> Image.Image | None:
    """Return a photo, or its part inside a box, scaled to at most size_px on each side; None if it can't be read."""
    crop = None if box is None or np.isnan(box).any() else np.asarray(box, np.float32)
    try:
        return read_small(photo, (size_px, size_px), crop)[0]
    except BadImage:
        return None


def thumbnail(photo: PhotoFile, size_px: int, box: np.ndarray | None = None, quality: int = QUALITY) -> str:
    """Return a photo as a data URI, "" if it can't be read. The arguments are small_photo's."""
    image = small_photo(photo, size_px, box)
    return "" if image is None else data_uri(image, quality)
