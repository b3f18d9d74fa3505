"""A photo's bytes -> the network's square input, the fast way.

Of a JPEG only the part that is wanted is decoded, scaled down while it is, and resized once, straight into its place
in the batch. A picture of raw pixels (PPM, as packed data hold them) is not copied at all. Everything else, and
whatever is odd about a JPEG, is decoded by Pillow, as images.py says.
"""

import math
import re
import warnings

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from carvision.data.handover import empty_bytes
from carvision.data.images import (
    INTERPOLATIONS,
    WHOLE,
    Part,
    Preprocessing,
    check_claim,
    check_size,
    decode_part,
    jpeg_markers,
    open_bytes,
    upright_turn,
    wanted_part,
)
from carvision.data.jpeg_part import Bytes, load_decoder

# As Pillow does it, smoothed where it shrinks, and four times as fast. Lanczos torch does not have.
RESIZE = {"bilinear": torch.ops.aten._upsample_bilinear2d_aa.out, "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out}
PPM = re.compile(rb"P6\s(\d+)\s(\d+)\s255\s")
TRANSPOSE, FLIP_X, FLIP_Y = 1, 2, 4
# What stands a photo upright: rows and columns exchanged, then mirrored
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


def empty_squares(count: int, size_px: int) -> Tensor:
    """uint8 (count, 3, size_px, size_px), not filled. Channels last in memory, as decoders give them and as
    convolutions are fastest, on the CPU too."""
    shape = (count, size_px, size_px, 3)
    return empty_bytes(math.prod(shape)).view(shape).permute(0, 3, 1, 2)


def read_square(
    data: Bytes,
    preprocessing: Preprocessing,
    out: Tensor,
    box: np.ndarray | None = None,
    window: tuple[float, float, float, float] = WHOLE,
    shift: float = 0.5,
) -> None:
    """Into out, uint8 (3, size_px, size_px), RGB. The other arguments as of images.wanted_part; data: the whole file.

    Raises BadImage.
    """
    asked = (preprocessing, box, window, shift)
    pixels = raw_part(data, *asked)
    if pixels is None:
        pixels = jpeg_part(data, *asked)
    if pixels is None:
        with open_bytes(data) as image:
            pixels = torch.from_numpy(np.array(decode_part(image, *asked)))
    resize(pixels, preprocessing, out)


def square_of(image: Image.Image, preprocessing: Preprocessing, box: np.ndarray | None = None) -> Tensor:
    """uint8 (3, size_px, size_px) of an image that Pillow has opened, as read_square gives it of its bytes."""
    [square] = empty_squares(1, preprocessing.size_px)
    resize(torch.from_numpy(np.array(decode_part(image, preprocessing, box))), preprocessing, square)
    return square


def resize(pixels: Tensor, preprocessing: Preprocessing, out: Tensor) -> None:
    """uint8 (height, width, 3) -> out, uint8 (3, size_px, size_px)."""
    size = [preprocessing.size_px] * 2
    if preprocessing.interpolation in RESIZE:
        RESIZE[preprocessing.interpolation](pixels.permute(2, 0, 1)[None], size, False, out=out[None])
    else:
        image = Image.fromarray(pixels.numpy()).resize(size, INTERPOLATIONS[preprocessing.interpolation])
        out.copy_(torch.from_numpy(np.array(image)).permute(2, 0, 1))


def raw_part(data: Bytes, preprocessing: Preprocessing, box, window, shift: float) -> Tensor | None:
    """uint8 (height, width, 3), a view of the data; None if they are no PPM of 8 bits."""
    if data[:2] != b"P6" or not (header := PPM.match(bytes(data[:40]))):
        return None
    width, height = int(header[1]), int(header[2])
    if len(data) - header.end() != 3 * width * height or not width * height:
        return None
    check_size(width, height)
    pixels = np.frombuffer(data, np.uint8, offset=header.end()).reshape(height, width, 3)
    _, part = wanted_part(width, height, preprocessing, box, window, shift, can_scale=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that bytes can't be written to: they are only read
        return torch.from_numpy(pixels)[part.top : part.bottom, part.left : part.right]


def jpeg_part(data: Bytes, preprocessing: Preprocessing, box, window, shift: float) -> Tensor | None:
    """uint8 (height, width, 3), upright: the part that is wanted. None if it must go the plain way."""
    decoder = load_decoder()
    size = decoder and decoder.size(data)
    if not size:
        return None
    check_size(*size)
    check_claim(*size, data, "JPEG")
    steps = STEPS[upright_turn(open_bytes(data))] if has_metadata(data) else 0
    upright_size = size[::-1] if steps & TRANSPOSE else size
    eighths, part = wanted_part(*upright_size, preprocessing, box, window, shift, can_scale=True)
    pixels = decoder.part(data, eighths, as_stored(part, eighths, upright_size, steps))
    return None if pixels is None else upright(torch.from_numpy(pixels), steps)


def has_metadata(data: Bytes) -> bool:
    """Whether a JPEG has EXIF or XMP, either of which may say how to stand it upright. Most photos of data sets have
    neither, and to ask Pillow takes as long as a tenth of their decoding."""
    return 0xE1 in jpeg_markers(data)  # APP1


def as_stored(part: Part, eighths: int, size: tuple[int, int], steps: int) -> Part:
    """Where a part of the upright photo lies in the photo as it is stored. size: width and height of the upright one,
    before it is scaled."""
    left, top, right, bottom = part
    width, height = (math.ceil(side * eighths / 8) for side in size)
    if steps & FLIP_X:
        left, right = width - right, width - left
    if steps & FLIP_Y:
        top, bottom = height - bottom, height - top
    return Part(top, left, bottom, right) if steps & TRANSPOSE else Part(left, top, right, bottom)


def upright(pixels: Tensor, steps: int) -> Tensor:
    pixels = pixels.transpose(0, 1) if steps & TRANSPOSE else pixels
    sides = [side for side, flip in ((1, FLIP_X), (0, FLIP_Y)) if steps & flip]
    return pixels.flip(sides) if sides else pixels
