"""From a request's body to decoded photos: each is judged by its header, then decoded as carvision.predict does.

Nothing in a body is taken for a path or a URL, and the names of uploaded files are not read.
"""

import base64
import binascii
import json
import logging
import math
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from torch import Tensor

from carvision.data.decode import SIDEWAYS, WHOLE, Part, decode_into, empty_images, upright_turn, wanted_part
from carvision.data.images import (
    FORMATS,
    BadImage,
    Preprocessing,
    TooManyPixels,
    UnsupportedFormat,
    open_bytes,
    reason_of,
    with_heic,
)
from carvision.serving.limits import MAX_JSON_ITEMS, MAX_PHOTOS, MAX_PIXELS, ApiError, too_many_photos

log = logging.getLogger(__name__)

FIELDS = ("photo", "boxes")  # of a form
BOX_TEXT = "[left, top, right, bottom] in pixels of the upright photo, or null"
LARGEST_NUMBER = 1e9  # of a box
ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>|0x[0-9a-fA-F]{6,}")

Box = tuple[float, float, float, float]


class Upload(NamedTuple):
    """A photo as it was sent: its encoded bytes, and its box in pixels of the upright photo or None."""

    data: bytes
    box: Box | None


class Seen(NamedTuple):
    """What is known of a photo without the network. width, height: of the upright photo; part: of it, that the network
    sees. error: why the photo can't be used; the others are then None."""

    width: int | None = None
    height: int | None = None
    box: Box | None = None
    part: Part | None = None
    error: ApiError | None = None


def read_uploads(body: bytes, content_type: str, box: str | None) -> list[Upload]:
    """Return the photos of a body: a form, JSON, or one photo as it is. box: "left,top,right,bottom" of the query, for
    the latter. Raises ApiError."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        uploads = _read_form(body, content_type)
    elif kind == "application/json":
        uploads = _read_json(body)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        return [Upload(body, None if box is None else _box_of_query(box))]
    else:
        raise ApiError(
            "unsupported_type",
            f"the Content-Type {kind[:100]!r} is none of multipart/form-data, application/json and image/*",
        )
    if box is not None:
        raise ApiError(
            "bad_request", "box in the query is for a photo that is the whole body; send boxes beside photos"
        )
    if not uploads:
        raise ApiError("bad_request", "the body has no photo; send 1 to 32 of them as photo")
    return uploads


def _read_form(body: bytes, content_type: str) -> list[Upload]:
    """Return the photos of multipart/form-data: the field photo, once or more, and boxes, JSON, at most once."""
    parts: list[tuple[str, bytes]] = []
    fields: dict[str, bytearray] = {"name": bytearray(), "value": bytearray(), "disposition": bytearray()}
    chunks: list[memoryview] = []
    view, ended = memoryview(body), threading.Event()

    def begin() -> None:
        chunks.clear()
        fields["disposition"].clear()

    def end_header() -> None:
        if bytes(fields["name"]).lower() == b"content-disposition":
            fields["disposition"][:] = fields["value"]
        fields["name"].clear()
        fields["value"].clear()

    def end() -> None:
        _, options = parse_options_header(bytes(fields["disposition"]))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in FIELDS:
            raise ApiError("bad_request", f"the field {name[:100]!r} of the form is none of {' and '.join(FIELDS)}")
        parts.append((name, b"".join(chunks)))
        if len(parts) > MAX_PHOTOS + 1:
            raise too_many_photos(len(parts) - 1)

    _, options = parse_options_header(content_type)
    try:
        parser = MultipartParser(
            options.get(b"boundary", b""),
            {
                "on_part_begin": begin,
                "on_header_field": lambda data, start, stop: fields["name"].extend(data[start:stop]),
                "on_header_value": lambda data, start, stop: fields["value"].extend(data[start:stop]),
                "on_header_end": end_header,
                "on_part_data": lambda data, start, stop: chunks.append(view[start:stop]),
                "on_part_end": end,
                "on_end": ended.set,
            },
        )
        parser.write(body)
    except FormParserError as error:
        raise ApiError("bad_request", f"the form can't be read: {_reason(error)}") from None
    if not ended.is_set():
        raise ApiError("bad_request", "the form is cut off: its last boundary is missing")
    photos = [data for name, data in parts if name == "photo"]
    boxes = [data for name, data in parts if name == "boxes"]
    if len(photos) > MAX_PHOTOS:
        raise too_many_photos(len(photos))
    if not boxes:
        return [Upload(data, None) for data in photos]
    values = _parse_json(boxes[0], "boxes") if len(boxes) == 1 else None
    if not isinstance(values, list) or len(values) != len(photos):
        raise ApiError("invalid_value", f"boxes is not one list with a box for each of the {len(photos)} photos")
    return [Upload(data, box_of(value)) for data, value in zip(photos, values, strict=True)]


def _read_json(body: bytes) -> list[Upload]:
    """Return the photos of {"photos": [{"data": "<base64>", "box": [...] or null}]}."""
    content = _parse_json(body, "the body")
    if not isinstance(content, dict) or set(content) != {"photos"} or not isinstance(content["photos"], list):
        raise ApiError("invalid_value", 'the body is not {"photos": [{"data": "<base64>", "box": null}]}')
    photos = content["photos"]
    if len(photos) > MAX_PHOTOS:
        raise too_many_photos(len(photos))
    uploads = []
    for number, photo in enumerate(photos, 1):
        if not isinstance(photo, dict) or not {"data"} <= set(photo) <= {"data", "box"}:
            raise ApiError("invalid_value", f'photo {number} is not {{"data": "<base64>", "box": null}}')
        try:
            data = base64.b64decode(photo["data"], validate=True)
        except (TypeError, ValueError, binascii.Error):
            raise ApiError("invalid_value", f"the data of photo {number} are not base64") from None
        uploads.append(Upload(data, box_of(photo.get("box"))))
    return uploads


def _parse_json(data: bytes, what: str) -> Any:
    if sum(data.count(mark) for mark in (b"[", b"{", b",")) > MAX_JSON_ITEMS:
        raise ApiError("too_large", f"{what} has more than {MAX_JSON_ITEMS:,} items", MAX_JSON_ITEMS)
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ApiError("bad_request", f"{what} is not JSON in UTF-8") from None


def box_of(value: Any) -> Box | None:
    """Return a box of JSON, checked. Raises ApiError."""
    if value is None:
        return None
    numbers = value if isinstance(value, list) and len(value) == 4 else [math.nan]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < LARGEST_NUMBER for n in numbers):
        raise ApiError("invalid_value", f"the box {str(value)[:100]} is not {BOX_TEXT}")
    left, top, right, bottom = map(float, numbers)
    return left, top, right, bottom


def _box_of_query(text: str) -> Box | None:
    try:
        return box_of([float(part) for part in text.split(",")])
    except ValueError:
        return box_of(text)


def judge(upload: Upload, preprocessing: Preprocessing) -> Seen:
    """Judge a photo by its header, before anything of it is decoded. Raises ApiError."""
    try:
        with open_bytes(upload.data) as image:
            turn = upright_turn(image)
            width, height = image.size[::-1] if turn in SIDEWAYS else image.size
    except UnsupportedFormat:
        known = ", ".join((*FORMATS, *("HEIC" for _ in with_heic())))
        raise ApiError("unsupported_type", f"the photo has none of the formats {known}") from None
    except TooManyPixels:
        raise _too_many_pixels() from None
    except BadImage as error:
        raise ApiError("unusable_photo", f"the photo can't be used: {_reason(error)}") from None
    if width * height > MAX_PIXELS:
        raise _too_many_pixels()
    box = None if upload.box is None else np.asarray(upload.box, np.float32)
    try:
        _, part = wanted_part(width, height, preprocessing, box, WHOLE, 0.5, can_scale=False)
    except BadImage as error:
        raise ApiError("invalid_value", f"the photo can't be used: {_reason(error)}") from None
    return Seen(width, height, upload.box, part)


def decode(uploads: Sequence[Upload], geometries: Sequence[Preprocessing]) -> tuple[list[Seen], list[Tensor]]:
    """Judge and decode photos, in this thread. Returns what is known of each, and of those without an error the images
    uint8 (N, 3, size_px, size_px), for each geometry."""
    images = [empty_images(len(uploads), preprocessing.size_px) for preprocessing in geometries]
    found, num = [], 0
    for upload in uploads:
        try:
            seen = judge(upload, geometries[0])
            region = None if upload.box is None else np.asarray(upload.box, np.float32)
            for preprocessing, out in zip(geometries, images, strict=True):
                decode_into(upload.data, preprocessing, out[num], region)
            num += 1
        except ApiError as error:
            seen = Seen(error=error)
        except BadImage as error:
            seen = Seen(error=ApiError("unusable_photo", f"the photo can't be used: {_reason(error)}"))
        found.append(seen)
    return found, [values[:num] for values in images]


def open_part(upload: Upload, preprocessing: Preprocessing) -> Image.Image:
    """Return the part of a photo that the network sees, upright, RGB, no smaller than preprocessing.size_px if the
    photo isn't. Raises ApiError."""
    from carvision.data.decode import decode_part

    judge(upload, preprocessing)
    try:
        with open_bytes(upload.data) as image:
            return decode_part(image, preprocessing, None if upload.box is None else np.asarray(upload.box, np.float32))
    except BadImage as error:
        raise ApiError("unusable_photo", f"the photo can't be used: {_reason(error)}") from None


def start_threads(num: int) -> ThreadPoolExecutor:
    """Return running threads that decode, in each of which torch computes alone, as in those of the loader."""
    started = threading.Barrier(num + 1)
    num_threads = torch.get_num_threads()

    def prepare() -> None:
        torch.get_num_threads()  # initialises the number, which would overwrite it later
        torch.set_num_threads(1)

    threads = ThreadPoolExecutor(num, "decode", prepare)
    for _ in range(num):
        threads.submit(started.wait)
    started.wait()
    torch.set_num_threads(num_threads)  # of this thread and of those that start later
    return threads


def _too_many_pixels() -> ApiError:
    return ApiError("too_large", f"the photo has more than {MAX_PIXELS:,} pixels", MAX_PIXELS)


def _reason(error: Exception) -> str:
    """Return an error's message, without addresses of objects, which libraries print."""
    return ADDRESS.sub("...", reason_of(error))[:300]
