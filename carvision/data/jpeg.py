"""Decode the wanted part of a JPEG, scaled down while decoding. Imports no torch.

The decoder is jpeg_part.c with the machine's libjpeg-turbo, compiled on first use (about a second) into carvision's
cache. Without a C compiler or libjpeg-turbo's header, simplejpeg is used if installed, which decodes the whole photo,
scaled; else Pillow. CARVISION_JPEG=libjpeg, simplejpeg or pillow selects one, for machines that must all produce the
same pixels.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Protocol

import numpy as np

from carvision.data.images import Bytes, Part
from carvision.errors import InputError, one_line
from carvision.files.folders import cache_folder

SOURCE = Path(__file__).with_name("jpeg_part.c")
START, END = b"\xff\xd8", b"\xff\xd9"  # of a JPEG; a truncated file lacks the end
GREY_OR_COLOUR = ("Gray", "YCbCr", "RGB")  # simplejpeg's names; others (CMYK) are left to Pillow


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
    """The compiled decoder. Rows below the part are not decoded unless the end marker is missing; damage there may go
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
