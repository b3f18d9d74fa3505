"""Decode a photo's bytes into the network's input: a square uint8 image, cropped and resized.

JPEGs are decoded by simplejpeg (its own libjpeg-turbo: the same pixels on every machine), scaled down to the smallest
of 1/8, 1/4 and 1/2 that leaves enough pixels; raw pixels (8-bit PPM, as in packs) are taken as they are. Everything
else, and any unusual or damaged JPEG, goes through Pillow (`decode_part`), which returns the same picture up to
rounding. Only resizing needs torch, which is imported then.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import simplejpeg
from PIL import Image

from carvision.data.images import (
    INTERPOLATIONS,
    BadImage,
    Bytes,
    Preprocessing,
    check_box,
    check_claimed_size,
    check_size,
    open_bytes,
    reason_of,
)

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import TiffImageFile
    from torch import Tensor

PPM = re.compile(rb"P6\s(\d+)\s(\d+)\s255\s")
GREY_OR_COLOUR = ("Gray", "YCbCr", "RGB")  # simplejpeg's names; others (CMYK) are left to Pillow
RUN_PROGRAMS = ("EPS", "WMF", "IPTC", "BUFR", "GRIB", "HDF5")  # or pass the file to whatever decoder is registered
BITS_PER_SAMPLE, MAX_SAMPLE_VALUE = 258, 281  # TIFF tags
BITS = (8, 10, 12, 14, 16)  # per sample, as cameras, scanners and microscopes store in 16 or 32
Transpose = Image.Transpose
TURNS = {  # by EXIF orientation; 1 is upright
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
}  # fmt: skip
SIDEWAYS = [TURNS[orientation] for orientation in (5, 6, 7, 8)]
SCALED = ("JPEG", "MPO")  # formats that can be decoded at 1/2, 1/4 or 1/8
WHOLE = (0.0, 0.0, 1.0, 1.0)
VIEWS = {  # of the stored pixels (height, width, 3): how each turn makes them upright
    Transpose.FLIP_LEFT_RIGHT: lambda pixels: pixels[:, ::-1],
    Transpose.ROTATE_180: lambda pixels: pixels[::-1, ::-1],
    Transpose.FLIP_TOP_BOTTOM: lambda pixels: pixels[::-1],
    Transpose.TRANSPOSE: lambda pixels: pixels.swapaxes(0, 1),
    Transpose.ROTATE_270: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
    Transpose.TRANSVERSE: lambda pixels: pixels.swapaxes(0, 1)[::-1, ::-1],
    Transpose.ROTATE_90: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}
Part = tuple[int, int, int, int]  # of a photo: left, top, right, bottom in pixels, right and bottom excluded


def empty_images(count: int, size_px: int, pin_memory: bool = False) -> Tensor:
    """Return an uninitialised uint8 (count, 3, size_px, size_px), channels last in memory: as decoders write them, and
    as convolutions are fastest, on the CPU too. pin_memory: from which a GPU copies without the processor's help."""
    import torch

    return torch.empty((count, size_px, size_px, 3), dtype=torch.uint8, pin_memory=pin_memory).permute(0, 3, 1, 2)


def decode_into(
    data: Bytes,
    preprocessing: Preprocessing,
    out: Tensor,
    box: np.ndarray | None = None,
    window: Sequence[float] = WHOLE,
    shift: float = 0.5,
) -> None:
    """Decode a photo into `out`, uint8 (3, size_px, size_px), RGB.

    data: the whole file. box, window, shift: see `wanted_part`. Raises BadImage.
    """
    region = (preprocessing, box, window, shift)
    pixels = raw_part(data, *region) if data[:2] == b"P6" else jpeg_part(data, *region)
    if pixels is None:
        with open_bytes(data) as image:
            pixels = np.array(decode_part(image, *region))
    resize(pixels, preprocessing, out)


def decode_image(image: Image.Image, preprocessing: Preprocessing, box: np.ndarray | None = None) -> Tensor:
    """Return uint8 (3, size_px, size_px) of an image opened by Pillow, equal to what `decode_into` makes of its
    file."""
    [out] = empty_images(1, preprocessing.size_px)
    resize(np.array(decode_part(image, preprocessing, box)), preprocessing, out)
    return out


def resize(pixels: np.ndarray, preprocessing: Preprocessing, out: Tensor) -> None:
    """Resize uint8 (height, width, 3) into `out`, uint8 (3, size_px, size_px)."""
    import torch

    size = [preprocessing.size_px] * 2
    if kernel := resize_kernels().get(preprocessing.interpolation):
        kernel(torch.from_numpy(pixels).permute(2, 0, 1)[None], size, False, out=out[None])
    else:
        image = Image.fromarray(pixels).resize(size, INTERPOLATIONS[preprocessing.interpolation])
        out.copy_(torch.from_numpy(np.array(image)).permute(2, 0, 1))


@functools.cache
def resize_kernels() -> dict[str, Callable]:
    """Return torch's kernels by interpolation: antialiased like Pillow's, and four times as fast. It has no Lanczos."""
    import torch

    aten = torch.ops.aten
    return {"bilinear": aten._upsample_bilinear2d_aa.out, "bicubic": aten._upsample_bicubic2d_aa.out}


def raw_part(data: Bytes, preprocessing: Preprocessing, box, window, shift: float) -> np.ndarray | None:
    """Return the wanted part of an 8-bit PPM, uint8 (height, width, 3); None for other formats."""
    header = PPM.match(bytes(data[:40]))
    if header is None:
        return None
    width, height = int(header[1]), int(header[2])
    if len(data) - header.end() != 3 * width * height or not width * height:
        return None
    check_size(width, height)
    pixels = np.frombuffer(data, np.uint8, offset=header.end()).reshape(height, width, 3)
    _, (left, top, right, bottom) = wanted_part(width, height, preprocessing, box, window, shift, can_scale=False)
    return pixels[top:bottom, left:right].copy()  # torch wants memory that may be written


def jpeg_part(data: Bytes, preprocessing: Preprocessing, box, window, shift: float) -> np.ndarray | None:
    """Return the wanted part of a JPEG, upright, uint8 (height, width, 3); None if Pillow must decode it."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in GREY_OR_COLOUR:
        return None
    width, height = int(width), int(height)
    check_size(width, height)
    check_claimed_size(width, height, data, "JPEG")
    turn = upright_turn(open_bytes(data)) if has_metadata(data) else None
    size = (height, width) if turn in SIDEWAYS else (width, height)
    eighths, (left, top, right, bottom) = wanted_part(*size, preprocessing, box, window, shift, can_scale=True)
    min_width, min_height = -(-width * eighths // 8), -(-height * eighths // 8)
    try:  # the smallest scale of these sides or more is the one that is wanted
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_width=min_width, min_height=min_height)
    except ValueError:
        return None
    if turn is None:
        return pixels[top:bottom, left:right]
    return np.ascontiguousarray(VIEWS[turn](pixels)[top:bottom, left:right])


def has_metadata(data: Bytes) -> bool:
    """Check whether a JPEG has EXIF or XMP before its scan, either of which may hold its orientation. Most photos of
    data sets have neither, and asking Pillow takes a tenth of their decoding time."""
    start = 2
    while start + 4 <= len(data) and data[start] == 0xFF and (marker := data[start + 1]) != 0xDA:
        if marker == 0xE1:  # APP1
            return True
        start += 1 if marker == 0xFF else 2 + (data[start + 2] << 8) + data[start + 3]  # padding, or a segment
    return False


def decode_part(
    image: Image.Image,
    preprocessing: Preprocessing,
    box: np.ndarray | None = None,
    window: Sequence[float] = WHOLE,
    shift: float = 0.5,
) -> Image.Image:
    """Decode the part of an opened image that is then resized: upright, RGB; a JPEG at no larger scale than needed.

    box, window, shift: see `wanted_part`. Raises BadImage, also for a box that isn't inside the photo, and for a file
    whose decoding would run a program.
    """
    check_size(*image.size)
    if image.format in RUN_PROGRAMS:
        raise BadImage(f"is {image.format}, whose decoder may run external programs; convert it to JPEG or PNG")
    try:
        turn = upright_turn(image)
        size = image.size[::-1] if turn in SIDEWAYS else image.size
        can_scale = image.format in SCALED and bool(getattr(image, "tile", ()))  # not if it has been decoded already
        eighths, part = wanted_part(*size, preprocessing, box, window, shift, can_scale)
        if eighths < 8:
            image.draft("RGB", (image.width * eighths // 8, image.height * eighths // 8))
        image = to_rgb(image)
        image = image if turn is None else image.transpose(turn)
        return image.crop(part)
    except BadImage:
        raise
    except Exception as error:  # truncation shows only now, and each decoder raises its own kinds
        raise BadImage(f"can't be decoded ({reason_of(error)})") from None


def wanted_part(
    width: int,
    height: int,
    preprocessing: Preprocessing,
    box: np.ndarray | None,
    window: Sequence[float],
    shift: float,
    can_scale: bool,
) -> tuple[int, Part]:
    """Return the scale, in eighths, at which to decode a photo of width x height, and the wanted part of the scaled
    photo.

    box: left, top, right, bottom in pixels of the upright photo (None or NaN: the whole photo).
    window: fractions (left, top, right, bottom) of that region: in training, a random crop.
    shift: with resize "crop", the position of the square along the longer side (0.5: centred).
    can_scale: JPEG decoders scale by 1/2, 1/4 and 1/8 in a fraction of the time; the smallest scale is chosen that
    leaves the part no smaller than the network's input. The part is rounded to whole pixels of the scaled photo, so
    that nothing outside of it is decoded.
    """
    left, top, right, bottom = _region(width, height, preprocessing.resize, box, shift)
    wide, high = right - left, bottom - top
    left, right = left + window[0] * wide, left + window[2] * wide
    top, bottom = top + window[1] * high, top + window[3] * high
    shrink = min(right - left, bottom - top) / preprocessing.size_px
    eighths = 8 if shrink < 2 or not can_scale else 4 if shrink < 4 else 2 if shrink < 8 else 1
    left, top, right, bottom = (round(value * eighths / 8) for value in (left, top, right, bottom))
    width, height = math.ceil(width * eighths / 8), math.ceil(height * eighths / 8)
    left, top = min(left, width - 1), min(top, height - 1)
    return eighths, (left, top, min(max(right, left + 1), width), min(max(bottom, top + 1), height))


def upright_turn(image: Image.Image) -> Transpose | None:
    """Return how to turn the decoded photo upright, by its EXIF orientation; None: not at all."""
    if image.format == "TIFF":
        return None  # Pillow turns these itself, and reports the turned size from the start
    try:
        orientation = image.getexif().get(0x0112)
        return None if orientation is None else TURNS.get(orientation)
    except Exception:  # the picture may be intact although its EXIF data are damaged
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB: transparency over white; grey of more than 8 bits scaled, where Pillow would clip.

    The scale follows from the bits that the values use (see grey_bits): in a 12-bit photo 4,095 is white, whether
    stored in 16 bits or 32. Raises BadImage for floating-point values.
    """
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I"):  # I;16 and its variants, and I, in which some decoders return 16 bits
        values = np.asarray(image)
        grey = values.clip(min=0) >> (grey_bits(image, values)[0] - 8)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadImage("holds floating-point values, which have no known range")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def grey_bits(image: Image.Image, values: np.ndarray) -> tuple[int, bool]:
    """Return the bits that the values of a photo of mode I or I;16 use, and whether the file states them.

    A TIFF may state them, by BitsPerSample below 16 or MaxSampleValue; for PPM and JPEG 2000 Pillow returns all 16.
    Else they are the fewest of 8, 10, 12, 14 and 16 that hold the photo's largest value, or as many as it needs if it
    needs more. Nothing else distinguishes a 12-bit photo from a dark one. carvision.check reports photos of fewer than
    16.
    """
    largest, stated = max(0, int(values.max(initial=0))), None
    if image.format in ("PPM", "JPEG2000"):
        stated = 16
    elif image.format == "TIFF":
        tags = cast("TiffImageFile", image).tag_v2
        most, bits = (int(np.max(tags.get(tag, 0))) for tag in (MAX_SAMPLE_VALUE, BITS_PER_SAMPLE))
        stated = most.bit_length() or (bits if bits < 16 else None)
    if stated and largest < 1 << stated:
        return max(8, stated), True
    return next((bits for bits in BITS if largest < 1 << bits), largest.bit_length()), False


def _region(
    width: int, height: int, resize: str, box: np.ndarray | None, shift: float
) -> tuple[float, float, float, float]:
    """Return the part of the photo that is used, before any random crop: left, top, right, bottom in pixels."""
    left, top, right, bottom = 0.0, 0.0, float(width), float(height)
    if box is not None and not np.isnan(box).any():
        check_box(box, width, height)
        left, top = max(0.0, float(box[0])), max(0.0, float(box[1]))
        right, bottom = min(width, float(box[2])), min(height, float(box[3]))
    if resize == "crop":
        side = min(right - left, bottom - top)
        left += shift * (right - left - side)
        top += shift * (bottom - top - side)
        right, bottom = left + side, top + side
    return left, top, right, bottom
