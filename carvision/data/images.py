"""Open photos safely: their bytes, the checks of their headers, and Preprocessing. `decode` does the rest."""

import functools
import io
import math
import os
import stat
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import NotRequired, TypedDict, cast

import numpy as np
from PIL import Image

from carvision.errors import InputError, one_line

Bytes = bytes | bytearray | memoryview
MAX_PIXELS = 178_956_970  # Pillow's own limit: 0.5 GB decoded. More is considered a decompression bomb
MAX_BYTES = 12 * MAX_PIXELS  # of a file: MAX_PIXELS in any uncompressed format take less
# Pillow recognises formats by content, whatever the file's name, including some whose decoding runs a program (EPS:
# Ghostscript) or opens another file. Only these are decoded. A camera's MPO is opened as JPEG; AVIF needs Pillow 11.3.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
FORMATS += ("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
HEIC_INSTALL = "pip install 'carvision[heic]'"
OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # else opening a pipe would block
# Upper bounds on pixels per byte of a file. A header that claims more is false, and not decoded: 700 bytes could demand
# half a gigabyte. Even photos of a single colour stay below; in brackets: measured with Pillow at 13,000 x 13,000.
# JPEG: one bit for the DC value of each 8 x 8 block if progressive without the rest, halved for sampling factors by
# which no component has all blocks (170, grey 256). PNG: deflate expands a byte to 1,032, of 8 pixels each (872). GIF:
# a 12-bit code is a string of at most 4,096 pixels (1,355). WebP, lossy: two bits or more for the modes of each 16 x 16
# block (562). BMP: runs of 255 pixels in two bytes. PPM: 8 pixels a byte. The others have no such bound: a grey JPEG
# 2000 of 12 million pixels takes 226 bytes; AVIF and lossless WebP may, too.
MAX_PIXELS_PER_BYTE = {"JPEG": 1024, "MPO": 1024, "PNG": 8 * 1032, "GIF": 2731, "WEBP": 1024, "BMP": 128, "PPM": 8}
# TIFF by compression: LZW as in GIF, deflate as in PNG, of bytes that hold at most 8 pixels
MAX_PIXELS_PER_BYTE |= {"raw": 8, "packbits": 8 * 64, "tiff_lzw": 8 * 2731, "jpeg": 1024}
MAX_PIXELS_PER_BYTE |= dict.fromkeys(("tiff_deflate", "tiff_adobe_deflate"), 8 * 1032)
BLANK = 128  # grey level of the image that replaces an unreadable photo
INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class BadImage(Exception):
    """An unusable photo. The message is the reason, without the path."""


class UnsupportedFormat(BadImage):
    """A photo, or another file, of a format that is not decoded."""


class TooManyPixels(BadImage):
    """A photo of more than MAX_PIXELS."""


def unusable(photo: object, reason: str) -> InputError:
    """Return the error that ends a command at an unusable photo if data.on_bad_image is "error". photo: its name, or an
    object that prints as one."""
    return InputError(
        f"{photo}: {reason}. Fix the photo, or continue without it with data.on_bad_image=skip "
        "(carvision check finds all such photos)"
    )


def none_usable(split: str, num_photos: int, path: str, reason: str) -> InputError:
    """Return the error that ends a command if no photo of a split can be used. path, reason: of the first photo."""
    return InputError(
        f"data.on_bad_image: not one of the {num_photos:,} photos of the split {split!r} can be read (first: {path}: "
        f"{reason}); correct data.root, or the files (carvision check lists the reason of each)"
    )


class PreprocessingDescription(TypedDict):
    """A Preprocessing as plain values, as in model.json."""

    size_px: int
    mean: list[float]
    std: list[float]
    interpolation: NotRequired[str]
    resize: NotRequired[str]


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes a network's input. It belongs to the weights and is stored with them.

    size_px: height and width of the input. resize: "squash" scales the whole photo (or its box) to a square, "crop"
    takes the largest centred square. mean, std: of RGB in 0..1. interpolation: a key of INTERPOLATIONS.
    """

    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize: str = "squash"

    def __post_init__(self):
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(f"interpolation: {self.interpolation!r} is not one of {', '.join(INTERPOLATIONS)}")
        if self.resize not in ("squash", "crop"):
            raise InputError(f"data.resize: {self.resize!r} is not one of squash, crop")

    def as_dict(self) -> PreprocessingDescription:
        """Return plain values, from which Preprocessing(**values) is rebuilt."""
        return cast(PreprocessingDescription, {**asdict(self), "mean": list(self.mean), "std": list(self.std)})


def read_file(photo) -> bytes:
    """Read a photo's encoded bytes. photo: its path, or an object with read(), as PackedPhoto. Raises BadImage."""
    if hasattr(photo, "read"):
        return photo.read()
    try:
        number = os.open(photo, OPEN_FLAGS)
        try:
            found = os.fstat(number)
            if not stat.S_ISREG(found.st_mode):
                raise BadImage("can't be opened (is no regular file)")
            if found.st_size > MAX_BYTES:
                size = f"{found.st_size / 1e9:.1f} GB"
                raise BadImage(f"the file of {size} exceeds the limit of {MAX_BYTES / 1e9:.1f} GB")
            data = os.read(number, found.st_size)
            while len(data) < found.st_size and (more := os.read(number, found.st_size - len(data))):
                data += more
            return data
        finally:
            os.close(number)
    except FileNotFoundError:
        raise BadImage("the file is missing") from None
    except OSError as error:
        raise BadImage(f"can't be opened ({reason_of(error)})") from None


def open_image(photo) -> Image.Image:
    """Open a photo of a file or a pack, see `read_file` and `open_bytes`. Raises BadImage."""
    return open_bytes(read_file(photo))


def open_bytes(data: Bytes) -> Image.Image:
    """Open a photo without decoding it: size, mode and format are known.

    The content, whatever the file's name, must be one of FORMATS or HEIC. Raises BadImage.
    """
    is_heic = data[4:8] == b"ftyp" and bytes(data[8:12]) in HEIC_BRANDS
    try:
        image = Image.open(io.BytesIO(data), formats=(*FORMATS, *(with_heic() if is_heic else ())))
    except Image.UnidentifiedImageError:
        if is_heic and not with_heic():
            raise UnsupportedFormat(f"is a HEIC photo; {HEIC_INSTALL}") from None
        if not len(data):
            raise BadImage("the file is empty") from None
        raise UnsupportedFormat("not a supported image format") from None
    except Image.DecompressionBombError:
        raise TooManyPixels(f"more than {MAX_PIXELS:,} pixels: probably a decompression bomb") from None
    except Exception as error:  # each decoder raises its own kinds
        raise BadImage(f"can't be opened ({reason_of(error)})") from None
    check_size(*image.size)
    check_claimed_size(*image.size, data, image.info.get("compression") if image.format == "TIFF" else image.format)
    return image


@functools.cache
def with_heic() -> tuple[str, ...]:
    """Return ("HEIF",) if the extra heic is installed, else ().

    The decoder is loaded when a process opens its first HEIC photo; it turns photos upright itself.
    """
    try:
        import pillow_heif
    except ImportError:
        return ()
    pillow_heif.register_heif_opener()
    return ("HEIF",)


def check_size(width: int, height: int) -> None:
    """Raise TooManyPixels for a photo of more than MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        size = f"{width} x {height} pixels"
        raise TooManyPixels(f"{size} exceed the limit of {MAX_PIXELS:,}: probably a decompression bomb")


def check_claimed_size(width: int, height: int, data: Bytes, form: str | None) -> None:
    """Raise BadImage for a file too small for the size that its header claims. form: a key of MAX_PIXELS_PER_BYTE; any
    other has no bound."""
    lossless = form == "WEBP" and data[12:16] != b"VP8 "
    bound = math.inf if lossless else MAX_PIXELS_PER_BYTE.get(form or "", math.inf)
    if width * height > bound * len(data):
        size = f"{width} x {height} pixels that its header claims"
        raise BadImage(f"too few bytes ({len(data):,}) for the {size}: damaged")


def check_box(box: np.ndarray, width: int, height: int) -> None:
    """Raise BadImage for a box without area, or one that exceeds the photo by more than 2 % (and 2 pixels) of rounding.

    box: left, top, right, bottom in pixels.
    """
    left, top, right, bottom = (float(value) for value in box)
    text = f"box {left:g} {top:g} {right:g} {bottom:g}"
    if left >= right or top >= bottom:
        raise BadImage(f"{text} has no area")
    slack_x, slack_y = max(2.0, 0.02 * width), max(2.0, 0.02 * height)
    if left < -slack_x or top < -slack_y or right > width + slack_x or bottom > height + slack_y:
        raise BadImage(f"{text} reaches outside the photo of {width} x {height} pixels")
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        raise BadImage(f"{text} lies outside the photo of {width} x {height} pixels")


def reason_of(error: Exception) -> str:
    """Return an error's message as one line, of an OSError without its path."""
    return one_line(getattr(error, "strerror", None) or error)
