"""Decode a photo's bytes into the network's input: a square uint8 image, cropped and resized.

Of a JPEG, only the wanted part is decoded, scaled down while decoding, and resized once, straight into the batch. Raw
pixels (8-bit PPM, as in packs) are not even copied. Everything else, and any unusual JPEG, goes through Pillow
(images.decode_part), which returns the same picture up to rounding.
"""

import math
import re
import warnings

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from carvision.data.images import (
    INTERPOLATIONS,
    WHOLE,
    Bytes,
    Part,
    Preprocessing,
    check_claimed_size,
    check_size,
    decode_part,
    jpeg_markers,
    open_bytes,
    upright_turn,
    wanted_part,
)
from carvision.data.jpeg import load_decoder
from carvision.data.loading.shared_batches import empty_bytes

# Antialiased like Pillow's, and four times as fast; torch has no Lanczos
RESIZE = {"bilinear": torch.ops.aten._upsample_bilinear2d_aa.out, "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out}
PPM = re.compile(rb"P6\s(\d+)\s(\d+)\s255\s")
TRANSPOSE, FLIP_X, FLIP_Y = 1, 2, 4
# Each EXIF turn as a transposition followed by mirroring
STEPS = {
    None: 0,
    Image.Transpose.FLIP_LEFT_RIGHT: FLIP_X,
    Image.Transpose.ROTATE_180: FLIP_X | FLIP_Y,
    Image.Transpose.FLIP_TOP_BOTTOM: FLIP_Y,
    Image.Transpose.TRANSPOSE: TRANSPOSE,
    Image.Transpose.ROTATE_270: TRANSPOSE | FLIP_X,
    Image.Transpose.TRANSVERSE: TRANSPOSE | FLIP_X | FLIP_Y,
    Image.Transpose.ROTATE_90: TRANSPOSE | FLIP_Y,
}


def empty_images(count: int, size_px: int) -> Tensor:
    """Return an uninitialised uint8 (count, 3, size_px, size_px), channels last in memory: as decoders write them, and
    as convolutions are fastest, on the CPU too."""
    shape = (count, size_px, size_px, 3)
    return empty_bytes(math.prod(shape)).view(shape).permute(0, 3, 1, 2)


def decode_into(
    data: Bytes,
    preprocessing: Preprocessing,
    out: Tensor,
    box: np.ndarray | None = None,
    window: tuple[float, float, float, float] = WHOLE,
    shift: float = 0.5,
) -> None:
    """Decode a photo into `out`, uint8 (3, size_px, size_px), RGB.

    data: the whole file. box, window, shift: see images.wanted_part. Raises BadImage.
    """
    region = (preprocessing, box, window, shift)
    pixels = raw_part(data, *region)
    if pixels is None:
        pixels = jpeg_part(data, *region)
    if pixels is None:
        with open_bytes(data) as image:
            pixels = torch.from_numpy(np.array(decode_part(image, *region)))
    resize(pixels, preprocessing, out)


def decode_image(image: Image.Image, preprocessing: Preprocessing, box: np.ndarray | None = None) -> Tensor:
    """Return uint8 (3, size_px, size_px) of an image opened by Pillow, equal to what `decode_into` makes of its
    file."""
    [out] = empty_images(1, preprocessing.size_px)
    resize(torch.from_numpy(np.array(decode_part(image, preprocessing, box))), preprocessing, out)
    return out


def resize(pixels: Tensor, preprocessing: Preprocessing, out: Tensor) -> None:
    """Resize uint8 (height, width, 3) into `out`, uint8 (3, size_px, size_px)."""
    size = [preprocessing.size_px] * 2
    if preprocessing.interpolation in RESIZE:
        RESIZE[preprocessing.interpolation](pixels.permute(2, 0, 1)[None], size, False, out=out[None])
    else:
        image = Image.fromarray(pixels.numpy()).resize(size, INTERPOLATIONS[preprocessing.interpolation])
        out.copy_(torch.from_numpy(np.array(image)).permute(2, 0, 1))


def raw_part(data: Bytes, preprocessing: Preprocessing, box, window, shift: float) -> Tensor | None:
    """Return the wanted part of an 8-bit PPM as a view of `data`, uint8 (height, width, 3); None for other formats."""
    if data[:2] != b"P6" or not (header := PPM.match(bytes(data[:40]))):
        return None
    width, height = int(header[1]), int(header[2])
    if len(data) - header.end() != 3 * width * height or not width * height:
        return None
    check_size(width, height)
    pixels = np.frombuffer(data, np.uint8, offset=header.end()).reshape(height, width, 3)
    _, part = wanted_part(width, height, preprocessing, box, window, shift, can_scale=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bytes are read-only, and these are only read
        return torch.from_numpy(pixels)[part.top : part.bottom, part.left : part.right]


def jpeg_part(data: Bytes, preprocessing: Preprocessing, box, window, shift: float) -> Tensor | None:
    """Return the wanted part of a JPEG, upright, uint8 (height, width, 3); None if Pillow must decode it."""
    decoder = load_decoder()
    if decoder is None or not (size := decoder.size(data)):
        return None
    check_size(*size)
    check_claimed_size(*size, data, "JPEG")
    steps = STEPS[upright_turn(open_bytes(data))] if has_metadata(data) else 0
    upright_size = size[::-1] if steps & TRANSPOSE else size
    eighths, part = wanted_part(*upright_size, preprocessing, box, window, shift, can_scale=True)
    pixels = decoder.part(data, eighths, as_stored(part, eighths, upright_size, steps))
    return None if pixels is None else upright(torch.from_numpy(pixels), steps)


def has_metadata(data: Bytes) -> bool:
    """Check whether a JPEG has EXIF or XMP, either of which may hold its orientation. Most photos of data sets have
    neither, and asking Pillow takes a tenth of their decoding time."""
    return 0xE1 in jpeg_markers(data)  # APP1


def as_stored(part: Part, eighths: int, size: tuple[int, int], steps: int) -> Part:
    """Map a part of the scaled, upright photo to the stored orientation. size: width and height of the upright photo
    before scaling."""
    left, top, right, bottom = part
    width, height = (math.ceil(side * eighths / 8) for side in size)
    if steps & FLIP_X:
        left, right = width - right, width - left
    if steps & FLIP_Y:
        top, bottom = height - bottom, height - top
    return Part(top, left, bottom, right) if steps & TRANSPOSE else Part(left, top, right, bottom)


def upright(pixels: Tensor, steps: int) -> Tensor:
    """Turn the pixels (height, width, 3) of the stored photo upright."""
    pixels = pixels.transpose(0, 1) if steps & TRANSPOSE else pixels
    sides = [side for side, flip in ((1, FLIP_X), (0, FLIP_Y)) if steps & flip]
    return pixels.flip(sides) if sides else pixels
