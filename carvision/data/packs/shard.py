"""Write one shard of a pack: a tar file as WebDataset reads it.

Each photo has two members, one after the other: <key>.<jpg, png, ppm, ...> with the photo and <key>.json with its path,
split, labels and box. The key is the photo's number in the data set.
"""

import hashlib
import io
import json
import math
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from carvision.data.decode import SIDEWAYS, decode_part, to_rgb, upright_turn
from carvision.data.images import BLANK, BadImage, Preprocessing, check_box, open_bytes, read_file, unusable
from carvision.data.packs.read import PackedPhoto
from carvision.errors import one_line
from carvision.files.atomic import atomic_file, write_json

BLOCK = 512  # bytes, of a tar file: a member's header is one, and its content is padded to whole ones
SMALLEST = Preprocessing(size_px=1, mean=(0, 0, 0), std=(1, 1, 1))  # decodes all data, at the smallest scale
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}  # else the format's name in lower case
BLANK_IMAGE = Image.new("RGB", (64, 64), (BLANK, BLANK, BLANK))  # replaces an unreadable photo
NO_BOX = (math.nan,) * 4
Box = tuple[float, float, float, float]


class PackOptions(NamedTuple):
    """How photos are packed.

    photos: original (the file's bytes), shrunk (JPEG), decoded (uint8, as PPM); the latter two upright, with a short
    side of at most short_side_px. of_box: the short side is that of the photo's box, which must lie in the photo.
    on_bad_image: error, skip or blank, see data.on_bad_image.
    """

    photos: str
    short_side_px: int
    jpeg_quality: int
    of_box: bool
    on_bad_image: str


class Encoded(NamedTuple):
    """A photo as it is packed.

    row: in the table. about: what its JSON file holds, without the box. data: None if it is left out. source: 64 bits
    of the SHA-256 of the original file. box: in pixels of the packed photo; NaN if it has none. problem: why the
    original can't be read, or "".
    """

    row: int
    about: dict
    data: bytes | None
    extension: str
    box: Box
    source: int
    problem: str


class Packed(NamedTuple):
    """A packed photo. source: 64 bits of the SHA-256 of the original file. box: in pixels of the packed photo."""

    row: int
    offset: int
    length: int
    crc32: int
    source: int
    box: Box


class ShardRecord(NamedTuple):
    """A complete shard: size and SHA-256 of its file, its photos, and {row: reason} of unreadable ones, which were
    treated as on_bad_image says. source: 64 bits of a digest of the sizes of the original files."""

    bytes: int
    sha256: str
    photos: list[Packed]
    bad: dict[int, str]
    on_bad_image: str
    source: int


def write_shard(
    file: Path, record_file: Path, encoded: Iterable[Encoded], options: PackOptions, source: int
) -> ShardRecord:
    """Write the shard, atomically, and then its record, as JSON; return the record."""
    photos, bad = [], {}
    with atomic_file(file) as partial:
        with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
            for photo in encoded:
                photos += [_add_photo(tar, photo, photo.data)] if photo.data is not None else []
                bad |= {photo.row: photo.problem} if photo.problem else {}
        with partial.open("rb") as written:
            size, sha256 = partial.stat().st_size, hashlib.file_digest(written, "sha256").hexdigest()
    record = ShardRecord(size, sha256, photos, bad, options.on_bad_image, source)
    write_json(record_file, record._asdict())
    return record


def read_record(record_file: Path) -> ShardRecord | None:
    """Read the record of a shard; None if there is none, or it is damaged."""
    try:
        record = ShardRecord(**json.loads(record_file.read_text(encoding="utf-8")))
        photos = [Packed(*values) for values in record.photos]
        return record._replace(photos=photos, bad={int(row): reason for row, reason in record.bad.items()})
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def _add_photo(tar: tarfile.TarFile, photo: Encoded, data: bytes) -> Packed:
    """Append the photo and its JSON file, without time or owner, so that the same photos make the same bytes."""
    offset = tar.offset + BLOCK
    box = {} if math.isnan(photo.box[0]) else {"box": [round(x, 2) for x in photo.box]}
    about = json.dumps(photo.about | box, ensure_ascii=False).encode()
    for extension, content in ((photo.extension, data), ("json", about)):
        member = tarfile.TarInfo(f"{photo.row:08d}.{extension}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return Packed(photo.row, offset, len(data), zlib.crc32(data), photo.source, photo.box)


def encode(row: int, photo: str | PackedPhoto, box: Box, about: dict, options: PackOptions) -> Encoded:
    """Read a photo and return it as it is to be packed. row, about: see Encoded. box: NaN if it has none.

    Raises InputError if it is unreadable and options.on_bad_image is error.
    """
    source = short_digest(str(photo).encode("utf-8", "surrogateescape"))  # unique, for an unreadable file
    try:
        data = read_file(photo)
        source = short_digest(data)
        return Encoded(row, about, *encode_photo(data, box, options), source, "")
    except BadImage as reason:
        if options.on_bad_image == "error":
            raise unusable(photo, str(reason)) from None
        blank = None if options.on_bad_image == "skip" else _saved(BLANK_IMAGE, "PNG")
        return Encoded(row, about, blank, "png", NO_BOX, source, str(reason))


def short_digest(data: bytes) -> int:
    """Return 64 bits of the SHA-256."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little", signed=True)


def encode_photo(data: bytes, box: Box, options: PackOptions) -> tuple[bytes, str, Box]:
    """Return a photo's bytes as they are to be packed, their file extension, and the box in their pixels.

    Every photo is decoded. Raises BadImage if that fails.
    """
    with open_bytes(data) as image:
        turn = upright_turn(image)
        width, height = image.size[::-1] if turn in SIDEWAYS else image.size
        of_box = options.of_box and not math.isnan(box[0])
        if of_box:
            check_box(np.array(box), width, height)
        scale = 1.0
        if options.photos != "original":
            measured = (box[2] - box[0], box[3] - box[1]) if of_box else (width, height)
            scale = min(1.0, options.short_side_px / min(measured))
        if options.photos == "original" or (options.photos == "shrunk" and scale == 1.0):
            decode_part(image, SMALLEST)
            file_format = image.format or ""
            return data, EXTENSIONS.get(file_format, file_format.lower()), box
        size = max(1, round(width * scale)), max(1, round(height * scale))
        pixels = _shrink(image, turn, size)
    x, y = size[0] / width, size[1] / height
    box = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
    if options.photos == "decoded":
        return _saved(pixels, "PPM"), "ppm", box
    return _saved(pixels, "JPEG", quality=options.jpeg_quality), "jpg", box


def _shrink(image: Image.Image, turn: Image.Transpose | None, size: tuple[int, int]) -> Image.Image:
    """Return the photo, upright, as RGB of that size (width, height)."""
    try:
        wanted = size[::-1] if turn in SIDEWAYS else size
        if wanted != image.size:
            image.draft("RGB", (2 * wanted[0], 2 * wanted[1]))  # to twice the size; a better filter does the rest
        image = to_rgb(image)
        image = image if wanted == image.size else image.resize(wanted, Image.Resampling.LANCZOS)
        return image if turn is None else image.transpose(turn)
    except BadImage:
        raise
    except Exception as error:  # truncation shows only now, and each decoder raises its own kinds
        raise BadImage(f"can't be decoded ({one_line(error)})") from None


def _saved(image: Image.Image, file_format: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()
