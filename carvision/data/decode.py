"""Decode a photo's bytes into the network's input: a square uint8 image, cropped and resized.

Of a JPEG, only the wanted part is decoded, scaled down while decoding, and resized once, straight into the batch. Raw
pixels (8-bit PPM, as in packs) are not even copied. Everything else, and any unusual JPEG, goes through Pillow
(images.decode_part), which returns the same picture up to rounding.

The JPEG decoder is jpeg_part.c with the machine's libjpeg-turbo, compiled on first use (about a second) into
carvision's cache. Without a C compiler or libjpeg-turbo's header, simplejpeg is used if installed, which decodes the
whole photo, scaled; else Pillow. CARVISION_JPEG=libjpeg, simplejpeg or pillow selects one, for machines that must all
produce the same pixels.
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
    check_claimed_size,
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

SOURCE = Path(__file__).with_name("jpeg_part.c")
START, END = b"\xff\xd8", b"\xff\xd9"  # of a JPEG; a truncated file lacks the end
GREY_OR_COLOUR = ("Gray", "YCbCr", "RGB")  # simplejpeg's names; others (CMYK) are left to Pillow
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


class Decoder(Protocol):
    """A JPEG decoder. Its methods return None for photos that are left to Pillow: not a JPEG, CMYK, or damaged."""

    name: str

    def size(self, data: Bytes) -> tuple[int, int] | None:
        """Return the header's width and height."""
        ...

    def part(self, data: Bytes, eighths: int, part: Part) -> np.ndarray | None:
        """Return `part`, uint8 (height, width, 3), RGB, of the photo scaled to eighths / 8 (8, 4, 2 or 1), its sides
        rounded up."""
        ...


class Libjpeg:
    """The compiled decoder. It reads below the part only in files that look truncated, so damage there may go
    unnoticed.

    Raises OSError or subprocess.SubprocessError if it can't be compiled.
    """

    name = "libjpeg"

    def __init__(self):
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
    """The optional package simplejpeg. Raises ImportError where it isn't installed."""

    name = "simplejpeg"

    def __init__(self):
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
        assert size is not None  # the caller has checked
        width, height = size
        try:
            pixels = self.simplejpeg.decode_jpeg(
                data, "RGB", min_width=-(-width * eighths // 8), min_height=-(-height * eighths // 8)
            )
        except ValueError:
            return None
        return pixels[part.top : part.bottom, part.left : part.right]


def load_decoder() -> Decoder | None:
    """Return the fastest decoder available; None: only Pillow."""
    return choose_decoder()[0]


@functools.cache
def choose_decoder() -> tuple[Decoder | None, str]:
    """Return the decoder, or None, and why faster ones are unavailable. Raises InputError for a wrong
    CARVISION_JPEG."""
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
        raise InputError(f"CARVISION_JPEG: {wanted} is not available ({reasons[0]}); leave it unset, or choose another")
    return None, "; ".join(reasons)


def load_compiled() -> ctypes.CDLL:
    """Load jpeg_part.c from the cache, compiled for this machine. Raises OSError or subprocess.SubprocessError."""
    version = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    file = cache_folder() / f"jpeg_part-{version}-{sys.platform}-{platform.machine()}.so"
    try:
        return ctypes.CDLL(str(file))
    except OSError:  # not compiled yet, or by another machine with other libraries that shares the home folder
        compile_to(file)
        return ctypes.CDLL(str(file))


def compile_to(file: Path) -> None:
    """Compile jpeg_part.c to `file` atomically: several processes may do so at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    prefix = Path(sys.prefix)  # a conda environment has its own libjpeg-turbo
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".jpeg_part-") as folder:
        library = Path(folder) / "jpeg_part.so"
        compiler = shlex.split(os.environ.get("CC", "cc"))
        paths = [f"-I{prefix / 'include'}", f"-L{prefix / 'lib'}", f"-Wl,-rpath,{prefix / 'lib'}"]
        command = [*compiler, "-O2", "-shared", "-fPIC", *paths, str(SOURCE), "-ljpeg", "-o", str(library)]
        subprocess.run(command, check=True, capture_output=True, timeout=60, encoding="utf-8", errors="replace")
        library.replace(file)


def _address(data: Bytes) -> int:
    return np.frombuffer(data, np.uint8).ctypes.data
