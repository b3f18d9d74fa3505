"""Bodies, and photos that are judged by their headers."""

import base64
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from carvision.data.decode import decode_image
from carvision.data.images import Preprocessing, with_heic
from carvision.serving import photos as serving_photos
from carvision.serving.limits import MAX_PIXELS, ApiError
from carvision.serving.photos import Seen, Upload, decode, judge, open_part, read_uploads
from tests.serving.abused import form
from tests.serving.conftest import encoded

HALF = (0.5, 0.5, 0.5)
SQUASHED, CROPPED = Preprocessing(32, HALF, HALF), Preprocessing(48, HALF, HALF, resize="crop")
PHOTO = 'Content-Disposition: form-data; name="photo"; filename="x"'
BOXES = 'Content-Disposition: form-data; name="boxes"'


def code_of(function, *arguments) -> str:
    with pytest.raises(ApiError) as error:
        function(*arguments)
    assert "\n" not in error.value.message and "0x" not in error.value.message
    return error.value.code


def test_a_form_json_and_a_raw_body_give_the_same_photos():
    data, box = [b"\r\n--edge\r", b"", b"--", bytes(range(256)) * 300], [1.0, 2.0, 3.5, 4.0]
    wanted = [Upload(data[0], (1.0, 2.0, 3.5, 4.0)), *(Upload(each, None) for each in data[1:])]
    boxes = json.dumps([box, None, None, None]).encode()
    parts = [(PHOTO, each) for each in data]
    for at in (0, 2, 4):  # the field may stand anywhere
        body, kind = form(*parts[:at], (BOXES, boxes), *parts[at:], edge="e-d'g_e")
        assert read_uploads(body, kind, None) == wanted
    in_json = {"photos": [{"data": base64.b64encode(each).decode()} for each in data]}
    in_json["photos"][0]["box"] = box
    assert read_uploads(json.dumps(in_json).encode(), "application/json; charset=utf-8", None) == wanted
    assert read_uploads(data[0], "IMAGE/jpeg", "1,2,3.5,4") == wanted[:1]
    assert read_uploads(data[3], "application/octet-stream", None) == wanted[3:]


def one(content) -> bytes:
    return json.dumps({"photos": [content]}).encode()


BODIES = {
    "no type": (b"x", "", None, "unsupported_type"),
    "a form of a page": (b"a=1", "application/x-www-form-urlencoded", None, "unsupported_type"),
    "no edge": (form((PHOTO, b"x"))[0], "multipart/form-data", None, "bad_request"),
    "cut": (form((PHOTO, b"x"), end=b"")[0], "multipart/form-data; boundary=edge", None, "bad_request"),
    "another field": (*form((PHOTO.replace("photo", "file"), b"x")), None, "bad_request"),
    "no photo": (*form((BOXES, b"[]")), None, "bad_request"),
    "33 photos": (*form(*[(PHOTO, b"x")] * 33), None, "too_large"),
    "two lists of boxes": (*form((PHOTO, b"x"), (BOXES, b"[null]"), (BOXES, b"[null]")), None, "invalid_value"),
    "too few boxes": (*form((PHOTO, b"x"), (BOXES, b"[]")), None, "invalid_value"),
    "a box too many": (*form((PHOTO, b"x")), "1,2,3,4", "bad_request"),
    "many items": (*form((PHOTO, b"x"), (BOXES, b"[" * 20_000)), None, "too_large"),
    "no JSON": (b"{", "application/json", None, "bad_request"),
    "no photos in JSON": (b"{}", "application/json", None, "invalid_value"),
    "an empty list": (b'{"photos": []}', "application/json", None, "bad_request"),
    "no base64": (one({"data": "a b"}), "application/json", None, "invalid_value"),
    "a URL": (one({"url": "http://localhost"}), "application/json", None, "invalid_value"),
    "a box of three": (b"x", "image/png", "1,2,3", "invalid_value"),
    "a box of words": (b"x", "image/png", "a,b,c,d", "invalid_value"),
    "a box of NaN": (b"x", "image/png", "1,2,3,nan", "invalid_value"),
    "a box of true": (one({"data": "", "box": [0, 0, True, 1]}), "application/json", None, "invalid_value"),
}


@pytest.mark.parametrize("name", BODIES)
def test_other_bodies_are_refused(name):
    *body, code = BODIES[name]
    assert code_of(read_uploads, *body) == code


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_size_and_format_are_judged_before_anything_is_decoded(monkeypatch):
    monkeypatch.setattr(serving_photos, "decode_into", None)  # calling it would be a TypeError
    filler = bytes(100_000)
    small, grey = Image.new("RGB", (8, 8)), Image.new("L", (8, 8))
    for data, code in {
        png_of(10_000, 5_001, filler): "too_large",
        png_of(60_000, 60_000, filler): "too_large",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n": "unsupported_type",
        b"<svg/>": "unsupported_type",
        b"": "unusable_photo",
        png_of(9_000, 5_000, b"few bytes"): "unusable_photo",
        encoded(small, "ICO"): "unsupported_type",
        encoded(grey, "PCX"): "unsupported_type",
    }.items():
        [seen], [images] = decode([Upload(data, None)], [SQUASHED])
        assert (seen, len(images)) == (Seen(error=seen.error), 0) and seen.error.code == code, data[:20]
    assert judge(Upload(png_of(10_000, 5_000, filler), None), SQUASHED).width == 10_000 and MAX_PIXELS == 50_000_000


@pytest.mark.parametrize("turn", range(1, 9))
def test_sizes_and_parts_are_of_the_upright_photo(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(Image.new("RGB", (90, 60)), exif=exif)
    upright = (90, 60) if turn < 5 else (60, 90)
    seen = judge(Upload(data, None), CROPPED)
    left, top = (upright[0] - 60) // 2, (upright[1] - 60) // 2
    assert seen == Seen(*upright, None, (left, top, left + 60, top + 60))
    assert judge(Upload(data, (10, 20, 40, 50.4)), SQUASHED).part == (10, 20, 40, 50)
    assert code_of(judge, Upload(data, (0, 0, 500, 500)), SQUASHED) == "invalid_value"
    assert code_of(judge, Upload(data, (9, 9, 9, 12)), SQUASHED) == "invalid_value"


def test_photos_are_decoded_as_elsewhere_and_bad_ones_leave_no_gap(photos):
    box = (3.0, 4.0, 40.0, 30.0)
    uploads = [Upload(photos[0], None), Upload(photos[5][:300], None), Upload(photos[2], box), Upload(b"no", None)]
    found, images = decode(uploads, [SQUASHED, CROPPED])
    assert [seen.error and seen.error.code for seen in found] == [None, "unusable_photo", None, "unsupported_type"]
    assert found[2].box == box and found[2].part == (3, 4, 40, 30)
    for preprocessing, of_geometry in zip((SQUASHED, CROPPED), images, strict=True):
        for upload, image in zip(uploads[::2], of_geometry, strict=True):
            opened = serving_photos.open_bytes(upload.data)
            region = None if upload.box is None else np.array(upload.box, np.float32)
            assert torch.equal(decode_image(opened, preprocessing, region), image)


def test_the_part_that_is_shown_is_the_one_that_the_network_sees():
    image = Image.new("RGB", (4000, 3000), "red")
    image.paste("blue", (1000, 500, 2000, 1500))
    data = encoded(image)
    part = open_part(Upload(data, (1000, 500, 2000, 1500)), Preprocessing(200, HALF, HALF))
    assert part.size == (250, 250)  # decoded at a quarter
    assert np.abs(np.array(part)[5:-5, 5:-5].astype(int) - (0, 0, 255)).max() < 8


@pytest.mark.skipif(not with_heic(), reason="pillow-heif is not installed (pip install '.[heic]')")
def test_a_photo_of_a_telephone_is_taken():
    data = encoded(Image.new("RGB", (64, 48), "green"), "HEIF")
    [seen], [images] = decode([Upload(data, None)], [SQUASHED])
    assert (seen.width, seen.height, seen.error, len(images)) == (64, 48, None, 1)
