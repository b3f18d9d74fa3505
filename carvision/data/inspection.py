"""Inspect photos: what each file is, what is wrong with it, and what is unusual. Imports neither torch nor pandas."""

import contextlib
import hashlib
import math
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from carvision.data.decode import SIDEWAYS, decode_part, grey_bits, upright_turn
from carvision.data.images import BadImage, Preprocessing, check_box, open_bytes, read_file
from carvision.data.packs.read import PackedPhoto

# Decode as training does, at a small size: libjpeg then scales by up to 1/8, which takes a fraction of the time and
# still reads all the data, so that truncation shows as in a full decode.
SMALL = Preprocessing(size_px=64, mean=(0, 0, 0), std=(1, 1, 1))
DARK = 16  # of 255; a photo is nearly black if 99 % of its values are below
NEARLY_BLACK, FEWER_BITS = "nearly black", "values of {} bits"  # notes

# Kinds of problems: the first whose pattern fits the beginning of the reason, else "unreadable"
KINDS = {
    "truncated": "(?i).*truncated", "decompression bomb": ".*bomb", "box without area": "box .*has no area",
    "box outside the photo": "box", "missing": "the file is missing", "empty": "the file is empty",
    "not a photo": "not a supported image", "too few bytes": "too few bytes",
}  # fmt: skip


class Caught(threading.local):
    """The number of warnings in this thread, see `catch_warnings`."""

    warnings = 0


caught = Caught()


@contextlib.contextmanager
def catch_warnings() -> Iterator[None]:
    """Count each thread's warnings rather than print them: Pillow's about odd metadata, which `inspect_photo` notes.
    For the whole process, so the main thread enters it."""

    def count(*_, **__) -> None:
        caught.warnings += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = count
        yield


class PhotoFacts(NamedTuple):
    """The facts about one photo. What can't be read is 0, "" or NaN.

    bytes: size of the file. width, height: pixels of the upright photo. problem: "" or its kind; detail: the full
    reason. note: unusual properties that training handles, joined by "; ". digest: SHA-256 of the bytes as hex. red to
    blue_std: mean and standard deviation of each channel in 0..1, of the photo scaled down to a short side of 64 pixels
    or more.
    """

    bytes: int
    width: int
    height: int
    mode: str
    format: str
    problem: str
    detail: str
    note: str
    digest: str
    red: float = math.nan
    green: float = math.nan
    blue: float = math.nan
    red_std: float = math.nan
    green_std: float = math.nan
    blue_std: float = math.nan


def inspect_photo(photo: str | Path | PackedPhoto, box: np.ndarray | None) -> PhotoFacts:
    """Read and decode a photo and collect its facts. box: float (4,) pixels of the upright photo, NaN if it has none;
    None: don't check it. Warnings are only noted within `catch_warnings`."""
    num_bytes, width, height, mode, form, digest, reason, notes, colours = 0, 0, 0, "", "", "", "", [], []
    caught.warnings = 0
    try:
        data = read_file(photo)
        num_bytes, digest = len(data), hashlib.sha256(data).hexdigest()
        with open_bytes(data) as image:
            width, height = image.size[::-1] if upright_turn(image) in SIDEWAYS else image.size
            mode, form = image.mode, image.format or ""
            notes = _notes(image, photo)
            pixels = decode_part(image, SMALL)
            colours = _colours(pixels)
            notes += _notes_on_values(image, pixels)
            if box is not None and np.isnan(box).any():
                notes.append("no box")
            elif box is not None:
                check_box(box, width, height)
    except BadImage as error:
        reason = str(error)
    if caught.warnings:
        notes.append("odd metadata")
    problem = next((kind for kind, start in KINDS.items() if re.match(start, reason)), "unreadable" if reason else "")
    return PhotoFacts(num_bytes, width, height, mode, form, problem, reason, "; ".join(notes), digest, *colours)


def _notes(image: Image.Image, photo: str | Path | PackedPhoto) -> list[str]:
    """Return notes on the opened image's format and metadata."""
    mode = image.mode
    suffix = "" if isinstance(photo, PackedPhoto) else Path(photo).suffix  # a packed photo may be in another format
    expected = Image.registered_extensions().get(suffix.lower())
    facts = {
        "greyscale": mode in ("1", "L", "LA") or mode.startswith("I"),
        "16-bit": mode.startswith("I"),
        "CMYK": mode == "CMYK",
        "palette": mode in ("P", "PA"),
        "transparency": image.has_transparency_data,
        "turned by EXIF": upright_turn(image) is not None,
        "animated": image.format != "MPO" and _is_animated(image),  # MPO: a camera's JPEG with its preview
        f"{image.format} named {suffix}": expected not in (None, image.format) and image.format != "MPO",
    }
    return [note for note, holds in facts.items() if holds]


def _colours(pixels: Image.Image) -> list[float]:
    """Return the means of red, green and blue, then their standard deviations, in 0..1."""
    counts = np.array(pixels.histogram(), np.float64).reshape(3, 256)
    values, shares = np.arange(256) / 255, counts / counts.sum(axis=1, keepdims=True)
    means = shares @ values
    stds = np.sqrt((shares @ values**2 - means**2).clip(min=0))
    return [round(float(value), 5) for value in (*means, *stds)]


def _notes_on_values(image: Image.Image, pixels: Image.Image) -> list[str]:
    """Return notes on the values of the image. pixels: the image as training sees it."""
    notes = []
    if image.mode.startswith("I"):
        bits, stated = grey_bits(image, np.asarray(image))
        notes += [] if stated or bits == 16 else [FEWER_BITS.format(bits)]
    counts = np.array(pixels.histogram()).reshape(3, 256)
    return notes + ([NEARLY_BLACK] if counts[:, :DARK].sum() >= 0.99 * counts.sum() else [])


def _is_animated(image: Image.Image) -> bool:
    try:
        return getattr(image, "is_animated", False)
    except Exception:  # damaged after the first frame, which alone is used
        return False
