"""One shard of a pack, written: a tar file as WebDataset reads it. No torch, no pandas: worker processes import this.

Of each photo two members stand one after the other, <key>.<jpg, png, ppm, ...> with the photo and <key>.json with its
path, split, labels and box. The key is the photo's number in the data set.
"""

import hashlib
import io
import json
import math
import os
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from carvision.data.images import (
    BLANK,
    SIDEWAYS,
    BadImage,
    Preprocessing,
    check_box,
    open_bytes,
    read_file,
    to_rgb,
    to_square,
    upright_turn,
)
from carvision.data.packs.read import PackedPhoto
from carvision.errors import InputError, one_line
from carvision.files.atomic import write_json, written_whole

BLOCK = 512  # of a tar file: a member's header is one, and what follows it is filled up to whole ones
SMALLEST = Preprocessing(size_px=1, mean=(0, 0, 0), std=(1, 1, 1))  # decodes all data, scaled down where that is quick
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}  # else the format's name in small letters
BLANK_PX = 64  # side of the grey picture that stands in for a photo that can't be read
NO_BOX = (math.nan,) * 4
Box = tuple[float, float, float, float]


class Form(NamedTuple):
    """How photos are packed. photos: original (the file's bytes), shrunk (JPEG), decoded (uint8, as PPM); the latter
    two upright, with this short side at most. of_box: the short side is that of the photo's box, which must lie in the
    photo. on_bad_image: as data.on_bad_image."""

    photos: str
    short_side_px: int
    jpeg_quality: int
    of_box: bool
    on_bad_image: str


class Original(NamedTuple):
    """A photo to be packed. row: of the table. box: NaN where there is none. about: what its JSON file says, but the
    box."""

    row: int
    photo: str | PackedPhoto
    box: Box
    about: dict


class Packed(NamedTuple):
    """source: 64 bits of the SHA-256 of the file. box: in pixels of the packed photo."""

    row: int
    offset: int
    length: int
    crc32: int
    source: int
    box: Box


class Part(NamedTuple):
    """What is known of a shard: size and SHA-256 of its file, its photos, and {row: reason} of those that can't be
    read, which were treated as on_bad_image says. source: 64 bits of a digest of the sizes of the original files."""

    bytes: int
    sha256: str
    photos: list[Packed]
    bad: dict[int, str]
    on_bad_image: str
    source: int


def write_shard(file: Path, part_file: Path, originals: list[Original], form: Form, source: int) -> Part:
    """Write the shard, whole or not at all, and then what is returned as JSON.

    Raises InputError for the first photo that can't be read where form.on_bad_image says error.
    """
    photos, bad = [], {}
    with written_whole(file) as partial:
        with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
            for original in originals:
                packed, reason = _add_photo(tar, original, form)
                photos += [packed] if packed else []
                bad |= {original.row: reason} if reason else {}
        with partial.open("rb") as written:
            size, sha256 = os.fstat(written.fileno()).st_size, hashlib.file_digest(written, "sha256").hexdigest()
    part = Part(size, sha256, photos, bad, form.on_bad_image, source)
    write_json(part_file, part._asdict())
    return part


def read_part(part_file: Path) -> Part | None:
    """What write_shard has written; None where there is none, or it is damaged."""
    try:
        part = Part(**json.loads(part_file.read_text(encoding="utf-8")))
        photos = [Packed(*values) for values in part.photos]
        return part._replace(photos=photos, bad={int(row): reason for row, reason in part.bad.items()})
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def _add_photo(tar: tarfile.TarFile, original: Original, form: Form) -> tuple[Packed | None, str]:
    """The photo and its JSON file, appended; and why the photo can't be read, or ""."""
    problem = ""
    source = short_digest(
        str(original.photo).encode("utf-8", "surrogateescape")
    )  # of a file that can't be read: no other has it
    try:
        data = read_file(original.photo)
        source = short_digest(data)
        data, extension, box = encode(data, original.box, form)
    except BadImage as reason:
        problem = str(reason)
        if form.on_bad_image == "error":
            raise InputError(
                f"{original.photo}: {problem}. Fix the photo, or pack without it with "
                "data.on_bad_image=skip (python -m carvision.check finds all such photos)"
            ) from None
        if form.on_bad_image == "skip":
            return None, problem
        data, extension, box = _blank(), "png", NO_BOX
    place = tar.offset + BLOCK
    _add(tar, f"{original.row:08d}.{extension}", data)
    about = original.about if math.isnan(box[0]) else {**original.about, "box": [round(x, 2) for x in box]}
    _add(tar, f"{original.row:08d}.json", json.dumps(about, ensure_ascii=False).encode())
    return Packed(original.row, place, len(data), zlib.crc32(data), source, box), problem


def short_digest(data: bytes) -> int:
    """64 bits of the SHA-256."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little", signed=True)


def encode(data: bytes, box: Box, form: Form) -> tuple[bytes, str, Box]:
    """A photo's bytes as they are to be packed, their file extension, and the box that belongs to them. Raises
    BadImage, also where they can't be decoded: nothing is packed unseen."""
    with open_bytes(data) as image:
        form_of_file = image.format or ""
        extension = EXTENSIONS.get(form_of_file, form_of_file.lower())
        turn = upright_turn(image)
        width, height = image.size[::-1] if turn in SIDEWAYS else image.size
        of_box = form.of_box and not math.isnan(box[0])
        if of_box:
            check_box(np.array(box), width, height)
        scale = 1.0
        if form.photos != "original":
            measured = (box[2] - box[0], box[3] - box[1]) if of_box else (width, height)
            scale = min(1.0, form.short_side_px / min(measured))
        if form.photos == "original" or (form.photos == "shrunk" and scale == 1.0):
            to_square(image, SMALLEST)
            return data, extension, box
        size = max(1, round(width * scale)), max(1, round(height * scale))
        pixels = _shrink(image, turn, size)
    x, y = size[0] / width, size[1] / height
    box = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
    out = io.BytesIO()
    if form.photos == "decoded":
        pixels.save(out, "PPM")
        return out.getvalue(), "ppm", box
    pixels.save(out, "JPEG", quality=form.jpeg_quality)
    return out.getvalue(), "jpg", box


def _shrink(image: Image.Image, turn: Image.Transpose | None, size: tuple[int, int]) -> Image.Image:
    """Upright RGB of that size."""
    try:
        wanted = size[::-1] if turn in SIDEWAYS else size
        if wanted != image.size:
            image.draft("RGB", (2 * wanted[0], 2 * wanted[1]))  # to twice the size: the rest by a better filter
        image = to_rgb(image)
        image = image if wanted == image.size else image.resize(wanted, Image.Resampling.LANCZOS)
        return image if turn is None else image.transpose(turn)
    except BadImage:
        raise
    except Exception as error:  # truncated data shows only now, and each decoder has its own exceptions for it
        raise BadImage(f"can't be decoded ({one_line(error)})") from None


def _blank() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (BLANK_PX, BLANK_PX), (BLANK, BLANK, BLANK)).save(out, "PNG")
    return out.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """With no time and no owner: the same photos make the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
