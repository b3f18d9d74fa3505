"""Decode a photo's bytes into the network's square input: JPEG by libjpeg, scaled and cropped while it is decoded; all
else by Pillow.
"""

import ctypes
import functools
import hashlib
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Protocol

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
    check_claim,
    check_size,
    decode_part,
    jpeg_markers,
    open_bytes,
    upright_turn,
    wanted_part,
)
from carvision.data.loading.shared_batches import empty_bytes
from carvision.errors import InputError, one_line
from carvision.files.folders import cache_folder

# JPEG bytes -> the part of the photo that is wanted, scaled while it is decoded.
#
# The work is jpeg_part.c's, through the libjpeg-turbo of the machine. It is compiled on first use (in a second, and
# kept in carvision's cache): it is too small to be worth a binary for each platform. Where there is no C compiler, or
# no libjpeg-turbo with its header, simplejpeg serves if it is installed; it decodes the whole photo, scaled. Else
# photos are left to Pillow. CARVISION_JPEG=libjpeg, simplejpeg or pillow chooses, for machines that must all see the
# same pixels.

SOURCE = Path(__file__).with_name("jpeg_part.c")
START, END = b"\xff\xd8", b"\xff\xd9"  # of a JPEG; a file that is cut off lacks the end
GREY_OR_COLOUR = ("Gray", "YCbCr", "RGB")  # as simplejpeg names them; the others (CMYK) are left to Pillow


class Decoder(Protocol):
    """Two functions that return None for a photo that is left to Pillow: no JPEG, CMYK, or anything is wrong with it.

    size: width and height as the header says.
    part: uint8 (part.bottom - part.top, part.right - part.left, 3), RGB, of the photo scaled to eighths / 8 (8, 4, 2
    or 1), whose sides are rounded up.
    """

    name: str

    def size(self, data: Bytes) -> tuple[int, int] | None: ...

    def part(self, data: Bytes, eighths: int, part: Part) -> np.ndarray | None: ...


class Libjpeg:
    """What lies below the part is only read where the file seems to be cut off: damage there may not be found."""

    name = "libjpeg"

    def __init__(self):
        """Raises OSError or subprocess.CalledProcessError where it can't be compiled."""
        library = load_compiled()
        data = (ctypes.c_void_p, ctypes.c_size_t)
        library.jpeg_size.argtypes = (*data, ctypes.c_void_p)
        library.jpeg_part.argtypes = (*data, *[ctypes.c_int] * 6, ctypes.c_void_p)
        self.compiled = library

    def size(self, data: Bytes) -> tuple[int, int] | None:
        if data[:2] != START:
            return None
        size = (ctypes.c_int * 2)()
        return None if self.compiled.jpeg_size(_address(data), len(data), size) else (size[0], size[1])

    def part(self, data: Bytes, eighths: int, part: Part) -> np.ndarray | None:
        pixels = np.empty((part.bottom - part.top, part.right - part.left, 3), np.uint8)
        to_end = END not in bytes(data[-64:])
        failed = self.compiled.jpeg_part(_address(data), len(data), eighths, *part, to_end, pixels.ctypes.data)
        return None if failed else pixels


class Simplejpeg:
    name = "simplejpeg"

    def __init__(self):
        """Raises ImportError."""
        import simplejpeg

        self.simplejpeg = simplejpeg

    def size(self, data: Bytes) -> tuple[int, int] | None:
        if data[:2] != START:
            return None
        try:
            height, width, colours, _ = self.simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return None
        return (int(width), int(height)) if colours in GREY_OR_COLOUR else None

    def part(self, data: Bytes, eighths: int, part: Part) -> np.ndarray | None:
        size = self.size(data)
        assert size is not None  # or the caller would not ask
        width, height = size
        try:
            pixels = self.simplejpeg.decode_jpeg(
                data, "RGB", min_width=-(-width * eighths // 8), min_height=-(-height * eighths // 8)
            )
        except ValueError:
            return None
        return pixels[part.top : part.bottom, part.left : part.right]


def load_decoder() -> Decoder | None:
    """The fastest there is; None: Pillow alone."""
    return choose_decoder()[0]


@functools.cache
def choose_decoder() -> tuple[Decoder | None, str]:
    """As load_decoder, and why it is none that is faster."""
    wanted = os.environ.get("CARVISION_JPEG", "auto")
    kinds = {"libjpeg": Libjpeg, "simplejpeg": Simplejpeg}
    if wanted not in ("auto", "pillow", *kinds):
        raise InputError(f"CARVISION_JPEG: {wanted!r} is not one of auto, pillow, {', '.join(kinds)}")
    reasons: list[str] = []
    for name, kind in kinds.items():
        if wanted in ("auto", name):
            try:
                return kind(), "; ".join(reasons)
            except (ImportError, OSError, subprocess.SubprocessError) as error:
                text = getattr(error, "stderr", None) or str(error)
                reasons.append(f"{name}: {one_line(text, 200)}")
    if wanted in kinds:
        raise InputError(f"CARVISION_JPEG: {wanted} is not to be had ({reasons[0]}); leave it unset, or choose another")
    return None, "; ".join(reasons)


def load_compiled() -> ctypes.CDLL:
    """jpeg_part.c as a library of this machine. Raises OSError or subprocess.SubprocessError."""
    version = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    file = cache_folder() / f"jpeg_part-{version}-{sys.platform}-{platform.machine()}.so"
    try:
        return ctypes.CDLL(str(file))
    except OSError:  # not there yet, or made on another machine with other libraries, which shares the home folder
        compile_to(file)
        return ctypes.CDLL(str(file))


def compile_to(file: Path) -> None:
    """Whole or not at all, also where several processes do it at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    prefix = Path(sys.prefix)  # a conda environment has its own libjpeg-turbo
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".jpeg_part-") as folder:
        made = Path(folder) / "jpeg_part.so"
        compiler = shlex.split(os.environ.get("CC", "cc"))
        places = [f"-I{prefix / 'include'}", f"-L{prefix / 'lib'}", f"-Wl,-rpath,{prefix / 'lib'}"]
        command = [*compiler, "-O2", "-shared", "-fPIC", *places, str(SOURCE), "-ljpeg", "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, timeout=60, encoding="utf-8", errors="replace")
        made.replace(file)


def _address(data: Bytes) -> int:
    return np.frombuffer(data, np.uint8).ctypes.data


# A photo's bytes -> the network's square input, the fast way.
#
# Of a JPEG only the part that is wanted is decoded, scaled down while it is, and resized once, straight into its
# place in the batch. A picture of raw pixels (PPM, as packed data hold them) is not copied at all. Everything else,
# and whatever is odd about a JPEG, is decoded by Pillow, as images.py says.

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
