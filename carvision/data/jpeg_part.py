"""JPEG bytes -> the part of the photo that is wanted, scaled while it is decoded.

The work is jpeg_part.c's, through the libjpeg-turbo of the machine. It is compiled on first use (in a second, and kept
in carvision's cache): it is too small to be worth a binary for each platform. Where there is no C compiler, or no
libjpeg-turbo with its header, simplejpeg serves if it is installed; it decodes the whole photo, scaled. Else photos are
left to Pillow. CARVISION_JPEG=libjpeg, simplejpeg or pillow chooses, for machines that must all see the same pixels.
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
from carvision.errors import InputError
from carvision.folders import cache_folder

SOURCE = Path(__file__).with_suffix(".c")
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
                reasons.append(f"{name}: {' '.join(text.split())[:200]}")
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
