"""Photo file -> uint8 array, by Pillow: decode, turn upright, crop to the box, resize. No torch here.

This is the plain way, which takes every format. What training and prediction read goes the fast way of squares.py,
which gives the same picture but for rounding, and comes back here for whatever is odd.
"""

import functools
import io
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple, NotRequired, TypedDict, cast

import numpy as np
from PIL import Image

from carvision.errors import InputError, one_line

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import TiffImageFile

Bytes = bytes | bytearray | memoryview
MAX_PIXELS = 178_956_970  # where Pillow itself refuses: 0.5 GB decoded. More is taken for a decompression bomb
MAX_BYTES = 12 * MAX_PIXELS  # of a file: more than so many pixels take in any format without compression
# Pillow looks at the content, not at the name, and knows formats whose decoding runs a program (EPS: Ghostscript) or
# opens another file within. Only these are decoded. A camera's MPO is opened as JPEG; AVIF came with Pillow 11.3.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
FORMATS += ("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
HEIC_HINT = "which need the extra heic (pip install pillow-heif)"
RUN_PROGRAMS = ("EPS", "WMF", "IPTC", "BUFR", "GRIB", "HDF5")  # or hand the file to whatever decoder is registered
NOT_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # to open a pipe would wait for ever
# The most pixels that a byte of a file can stand for; a header that claims more lies, and is not decoded: 700 bytes
# would ask for half a gigabyte. Not below what a photo of one colour takes (in brackets: Pillow's, 13,000 x 13,000).
# JPEG: a Huffman code of one bit for the DC value of each 8 x 8 block, where a progressive one leaves out the rest;
# half of that for sampling factors by which no component has all blocks (170, grey 256). PNG: deflate makes 1,032
# bytes of one, of 8 pixels each (872). GIF: a code of 12 bits is a string of at most 4,096 pixels (1,355). WebP, lossy:
# two bits and more for the modes of each 16 x 16 block (562). BMP: 255 pixels in a run of two bytes. PPM: 8 in one.
# The others have no such bound: a grey JPEG 2000 of 12 million pixels takes 226 bytes, as AVIF and lossless WebP may.
MOST_PIXELS_A_BYTE = {"JPEG": 1024, "MPO": 1024, "PNG": 8 * 1032, "GIF": 2731, "WEBP": 1024, "BMP": 128, "PPM": 8}
# TIFF, by its compression: LZW as GIF and deflate as PNG, of bytes that hold 8 pixels at most
MOST_PIXELS_A_BYTE |= {"raw": 8, "packbits": 8 * 64, "tiff_lzw": 8 * 2731, "jpeg": 1024}
MOST_PIXELS_A_BYTE |= dict.fromkeys(("tiff_deflate", "tiff_adobe_deflate"), 8 * 1032)
BITS_PER_SAMPLE, MAX_SAMPLE_VALUE = 258, 281  # tags of TIFF
BITS = (8, 10, 12, 14, 16)  # of the samples that cameras, scanners and microscopes store in 16 or 32
BLANK = 128  # grey of the picture that stands in for a photo that can't be read
INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
TURNS = {  # by EXIF orientation; 1 stands upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = [TURNS[orientation] for orientation in (5, 6, 7, 8)]
SCALED = ("JPEG", "MPO")  # can be decoded to 1/2, 1/4 or 1/8
WHOLE = (0.0, 0.0, 1.0, 1.0)


class Part(NamedTuple):
    """Pixels of a photo, from left and top up to, without, right and bottom."""

    left: int
    top: int
    right: int
    bottom: int


class BadImage(Exception):
    """A photo that can't be used. The message is the reason, without the path."""


def unusable(photo: object, reason: str) -> InputError:
    """What ends a command at such a photo, where data.on_bad_image is "error"; photo: what names it."""
    return InputError(
        f"{photo}: {reason}. Fix the photo, or continue without it with data.on_bad_image=skip "
        "(python -m carvision.check finds all such photos)"
    )


def none_usable(split: str, num_photos: int, path: str, reason: str) -> InputError:
    """The error that ends a command where no photo of a split it needs can be used. path, reason: of the first one."""
    return InputError(
        f"data.on_bad_image: not one of the {num_photos:,} photos of the split {split!r} can be read (first: {path}: "
        f"{reason}); correct data.root, or the files (python -m carvision.check lists the reason of each)"
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

    size_px: height and width of the input. resize: "squash" scales the whole photo (or its box) to the square,
    "crop" takes the largest centred square. mean, std: of RGB in 0..1.
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
        values = {**asdict(self), "mean": list(self.mean), "std": list(self.std)}
        return cast(PreprocessingDescription, values)


def read_file(photo) -> bytes:
    """All of a photo's file, undecoded. photo: its path, or what gives its bytes on read(), as a PackedPhoto does.
    Raises BadImage."""
    if hasattr(photo, "read"):
        return photo.read()
    try:
        number = os.open(photo, os.O_RDONLY | NOT_WAITING)
        try:
            found = os.fstat(number)
            if not stat.S_ISREG(found.st_mode):
                raise BadImage("can't be opened (is no regular file)")
            if found.st_size > MAX_BYTES:
                size = f"{found.st_size / 1e9:.1f} GB are more than {MAX_BYTES / 1e9:.1f} GB"
                raise BadImage(f"{size}: taken for no photo")
            data = os.read(number, found.st_size)
            while len(data) < found.st_size and (more := os.read(number, found.st_size - len(data))):
                data += more
            return data
        finally:
            os.close(number)
    except FileNotFoundError:
        raise BadImage("the file is missing") from None
    except OSError as error:
        raise BadImage(f"can't be opened ({_one_line(error)})") from None


def open_image(photo) -> Image.Image:
    """The photo of a file, or of a pack, as `open_bytes` gives it. Raises BadImage."""
    return open_bytes(read_file(photo))


def open_bytes(data: Bytes) -> Image.Image:
    """The photo, opened but not decoded: size, mode and format are known. Raises BadImage.

    The content must be of one of FORMATS or HEIC, whatever the file's name says.
    """
    is_heic = data[4:8] == b"ftyp" and bytes(data[8:12]) in HEIC_BRANDS
    try:
        image = Image.open(io.BytesIO(data), formats=(*FORMATS, *(with_heic() if is_heic else ())))
    except Image.UnidentifiedImageError:
        if is_heic and not with_heic():
            raise BadImage(f"is one of the HEIC photos, {HEIC_HINT}") from None
        raise BadImage("not a photo in any format known" if len(data) else "the file is empty") from None
    except Image.DecompressionBombError:
        raise BadImage(f"more than {MAX_PIXELS:,} pixels: taken for a decompression bomb") from None
    except Exception as error:  # whatever a decoder stumbles over, it is this photo that can't be read
        raise BadImage(f"can't be opened ({_one_line(error)})") from None
    check_size(*image.size)
    check_claim(*image.size, data, image.info.get("compression") if image.format == "TIFF" else image.format)
    return image


@functools.cache
def with_heic() -> tuple[str, ...]:
    """Return the format of HEIC photos, where the extra heic is installed. Its decoder is loaded when the first such
    photo is opened, in whatever process or thread that is; it turns photos upright itself."""
    try:
        import pillow_heif
    except ImportError:
        return ()
    pillow_heif.register_heif_opener()
    return ("HEIF",)


def check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width} x {height} pixels are more than {MAX_PIXELS:,}: taken for a decompression bomb")


def check_claim(width: int, height: int, data: Bytes, form: str | None) -> None:
    """Raises BadImage where the file is too small for the size in its header. form: a key of MOST_PIXELS_A_BYTE; any
    other has no bound."""
    bound = None if form is None else MOST_PIXELS_A_BYTE.get(form)
    if bound is None or width * height <= bound * len(data):
        return
    if form == "WEBP" and data[12:16] != b"VP8 ":
        return
    raise BadImage(f"too few bytes ({len(data):,}) for the {width} x {height} pixels that its header claims: damaged")


def jpeg_markers(data: Bytes) -> Iterator[int]:
    """The second byte of each marker, up to the start of the scan."""
    start = 2
    while start + 4 <= len(data) and data[start] == 0xFF and data[start + 1] != 0xDA:
        if data[start + 1] == 0xFF:  # filling
            start += 1
            continue
        yield data[start + 1]
        start += 2 + (data[start + 2] << 8) + data[start + 3]


def to_square(image: Image.Image, preprocessing: Preprocessing, box: np.ndarray | None = None) -> np.ndarray:
    """uint8 (3, size_px, size_px), RGB. Decodes the image; a JPEG no larger than needed.

    box: left, top, right, bottom in pixels of the upright photo (None or NaN: the whole photo).
    Raises BadImage, also for a box that isn't inside the photo, and for a file whose decoding would run a program.
    """
    size = (preprocessing.size_px, preprocessing.size_px)
    square = decode_part(image, preprocessing, box).resize(size, INTERPOLATIONS[preprocessing.interpolation])
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def decode_part(
    image: Image.Image,
    preprocessing: Preprocessing,
    box: np.ndarray | None = None,
    window: tuple[float, float, float, float] = WHOLE,
    shift: float = 0.5,
) -> Image.Image:
    """What is to be resized to the square: upright, RGB. Arguments as of `wanted_part`, errors as of `to_square`."""
    check_size(*image.size)
    if image.format in RUN_PROGRAMS:
        raise BadImage(f"is {image.format}, and to decode that may run a program; convert it to JPEG or PNG")
    try:
        turn = upright_turn(image)
        size = image.size[::-1] if turn in SIDEWAYS else image.size
        eighths, part = wanted_part(*size, preprocessing, box, window, shift, can_scale=image.format in SCALED)
        if eighths < 8:
            image.draft("RGB", (image.width * eighths // 8, image.height * eighths // 8))
        image = to_rgb(image)
        image = image if turn is None else image.transpose(turn)
        return image.crop(part)
    except BadImage:
        raise
    except Exception as error:  # truncated data shows only now, and each decoder has its own exceptions for it
        raise BadImage(f"can't be decoded ({_one_line(error)})") from None


def wanted_part(
    width: int,
    height: int,
    preprocessing: Preprocessing,
    box: np.ndarray | None,
    window: tuple[float, float, float, float],
    shift: float,
    can_scale: bool,
) -> tuple[int, Part]:
    """How a photo of width x height is decoded: scaled to how many eighths, and which part of that is wanted.

    box: left, top, right, bottom in pixels of the upright photo (None or NaN: the whole photo).
    window: the part of that region that is wanted, as fractions of it: a random crop, in training.
    shift: with resize "crop", where along the longer side the square lies (0.5: centred).
    can_scale: JPEG decoders scale by 1/2, 1/4 and 1/8, which takes a fraction of the time: by the largest that leaves
    the part no smaller than the square. The part begins and ends at the nearest whole pixels of the scaled photo, so
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
    return eighths, Part(left, top, min(max(right, left + 1), width), min(max(bottom, top + 1), height))


def upright_turn(image: Image.Image) -> Image.Transpose | None:
    """What must be done to the decoded photo to stand it upright, by the orientation in its EXIF data."""
    if image.format == "TIFF":
        return None  # Pillow turns these itself, and gives the size of the turned photo from the start
    try:
        orientation = image.getexif().get(0x0112)
        return None if orientation is None else TURNS.get(orientation)
    except Exception:  # damaged EXIF data say nothing about the picture, which may be whole
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB from any mode: transparency is laid on white; grey of more than 8 bits is scaled, which Pillow would clip.

    The scale is that of the bits which the values fill (see grey_bits), from 0 on: 4,095 is white in a photo of 12
    bits, whether they are stored in 16 or 32.
    """
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I"):  # I;16 and its relatives, and I, as which some decoders give 16 bits
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
    """(how many bits the values of a photo of mode I or I;16 fill, whether the file says so).

    A TIFF may say so, by BitsPerSample below 16 or MaxSampleValue; of PPM and JPEG 2000 Pillow gives all 16. Else they
    are the fewest of 8, 10, 12, 14 and 16 that hold the photo's own largest value, or as many as it needs: nothing
    else tells the 12 bits of a camera from a photo that is dark. carvision.check reports photos of fewer than 16.
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


def check_box(box: np.ndarray, width: int, height: int) -> None:
    """Raises BadImage for a box that has no area or reaches outside the photo by more than a 2 % rounding slip."""
    left, top, right, bottom = (float(value) for value in box)
    text = f"box {left:g} {top:g} {right:g} {bottom:g}"
    if left >= right or top >= bottom:
        raise BadImage(f"{text} has no area")
    slack_x, slack_y = max(2.0, 0.02 * width), max(2.0, 0.02 * height)
    if left < -slack_x or top < -slack_y or right > width + slack_x or bottom > height + slack_y:
        raise BadImage(f"{text} reaches outside the photo of {width} x {height} pixels")
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        raise BadImage(f"{text} lies outside the photo of {width} x {height} pixels")


def _region(width: int, height: int, resize: str, box, shift: float) -> tuple[float, float, float, float]:
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


def _one_line(error: Exception) -> str:
    return one_line(getattr(error, "strerror", None) or error)  # an OSError's own text would repeat the path
