"""Helpers for sheets of photos: small upright photos, and text of a given width."""

import math
from pathlib import Path

import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from PIL import Image

from carvision.data.images import SIDEWAYS, BadImage, check_box, open_image, to_rgb, upright_turn
from carvision.data.shards import PackedPhoto
from carvision.reports.style import DPI

ELLIPSIS, INDENT = "\u2026", "    "


def read_small(
    photo: str | Path | PackedPhoto, room_px: tuple[int, int], box: np.ndarray | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """Read a photo, or its box, upright and scaled to fit into room_px (width, height).

    Also returns the size of the whole upright photo, which boxes refer to. Raises BadImage, also for a box outside the
    photo.
    """
    with open_image(photo) as image:
        try:
            turn = upright_turn(image)
            width, height = image.size[::-1] if turn in SIDEWAYS else image.size
            left, top, right, bottom = 0, 0, width, height
            if box is not None and not np.isnan(box).any():
                check_box(box, width, height)
                left, top, right, bottom = np.clip(box, 0, (width, height, width, height)).tolist()
            wide, high = right - left, bottom - top
            # libjpeg scales while decoding, to at least twice the wanted size
            shrink = max(1, int(min(wide, high) // (2 * max(room_px))))
            image.draft("RGB", (image.width // shrink, image.height // shrink))
            image = to_rgb(image)
            image = image if turn is None else image.transpose(turn)
            scale = min(room_px[0] / wide, room_px[1] / high)
            size = (max(1, round(wide * scale)), max(1, round(high * scale)))
            x, y = image.width / width, image.height / height
            part = (left * x, top * y, min(right * x, image.width), min(bottom * y, image.height))
            return image.resize(size, Image.Resampling.BICUBIC, box=part), (width, height)
        except BadImage:
            raise
        except Exception as error:  # each decoder raises its own types
            raise BadImage(f"can't be decoded ({error})") from None


def width_px(line: str, size: float, weight: str = "normal") -> int:
    """Return the width of a line of text; size in points."""
    font = FontProperties(size=size, weight=weight)
    points, _, _ = text_to_path.get_text_width_height_descent(line, font, ismath=False)
    return math.ceil(points * DPI / 72)


def shorten_to_width(text: str, end: str, room_px: int, size: float) -> str:
    """Return text + end, with the text shortened to fit into room_px; size in points."""
    if width_px(text + end, size) <= room_px:
        return text + end
    while len(text) > 1 and width_px(text + ELLIPSIS + end, size) > room_px:
        text = text[:-1].rstrip()
    return text + ELLIPSIS + end


def wrap_label(name: str, end: str, room_px: int, size: float) -> list[str]:
    """Wrap name + end to one or two lines of room_px; the second is indented and shortened if necessary."""
    words = name.split()
    if width_px(" ".join(words) + end, size) <= room_px:
        return [" ".join(words) + end]
    num = max(1, len(words) - 1)  # words of the first line
    while num > 1 and width_px(" ".join(words[:num]), size) > room_px:
        num -= 1
    first, rest = " ".join(words[:num]), " ".join(words[num:])
    if not rest:
        return [shorten_to_width(first, end, room_px, size)]
    return [shorten_to_width(first, "", room_px, size), shorten_to_width(INDENT + rest, end, room_px, size)]
