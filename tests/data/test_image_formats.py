"""Files of any kind that are called photos: those of photos are opened, and no other."""

import contextlib
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from carvision.data import images
from carvision.data.decode import decode_into, empty_images
from carvision.data.images import FORMATS, BadImage, Preprocessing, decode_array, open_bytes, open_image, with_heic
from carvision.data.inspection import inspect_photo
from tests.data.test_images import difference, encoded, plain_square, preprocessing, smooth, square_of


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A `gs` that leaves a trace where it is run; returns the trace."""
    trace, program = tmp_path / "executed", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho ran >> {trace}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow looks for it once
    return trace


def test_a_file_that_is_a_program_is_not_run(tmp_path, ghostscript):
    """Encapsulated PostScript, whatever it is called, is decoded by Ghostscript, which runs it."""
    path = tmp_path / "evil.jpg"
    path.write_bytes(encoded(smooth(), "EPS"))
    with pytest.raises(BadImage, match="not a photo in any format known"):
        square_of(path)
    with Image.open(path) as image, pytest.raises(BadImage, match=r"is EPS, .* run a program"):
        decode_array(image, preprocessing())
    assert not ghostscript.exists()
    with contextlib.suppress(OSError), Image.open(path) as image:
        image.load()
    assert ghostscript.exists()  # the file is a real one


@pytest.mark.parametrize("form", [*FORMATS, *with_heic()])
def test_each_format_is_known_by_its_content(tmp_path, form):
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(smooth(), form))
    with open_image(path) as image:
        assert image.format == form
    assert difference(square_of(path), plain_square(smooth())) < 8  # GIF has 256 colours


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_stands_upright_once(tmp_path, orientation):
    """Its decoder turns it, by the boxes irot and imir, and then the EXIF orientation must not turn it again."""
    if not with_heic():
        pytest.skip("the extra heic is not installed")
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = smooth()
    turned.save(tmp_path / "photo.heic", "HEIF", quality=95, exif=exif.tobytes())
    turned.save(tmp_path / "photo.png", exif=exif.tobytes())
    assert difference(square_of(tmp_path / "photo.heic"), square_of(tmp_path / "photo.png")) < 3
    box = [10, 5, 40, 30]
    assert difference(square_of(tmp_path / "photo.heic", box=box), square_of(tmp_path / "photo.png", box=box)) < 3


def test_heic_without_its_decoder_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "with_heic", lambda: ())
    (tmp_path / "photo.jpg").write_bytes(b"\0\0\0\x1cftypheic" + bytes(100))
    with pytest.raises(BadImage, match=r"HEIC photos, which need the extra heic \(pip install pillow-heif\)"):
        square_of(tmp_path / "photo.jpg")


def test_a_camera_s_pair_of_pictures_in_one_file_is_a_photo(tmp_path):
    smooth().save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=[smooth()], quality=95)
    with open_image(tmp_path / "photo.jpg") as image:
        assert image.format == "MPO"
    assert difference(square_of(tmp_path / "photo.jpg"), plain_square(smooth())) < 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jpg")
    monkeypatch.setattr(Image, "open", lambda *args, **options: pytest.fail("it would be waited for"))
    for path in (tmp_path / "pipe.jpg", os.devnull, tmp_path):
        with pytest.raises(BadImage, match="is no regular file"):
            open_image(path)


# A header that claims more pixels than the bytes can hold

CLAIMED = 13_000  # pixels a side


def claiming(form: str, **options) -> bytes:
    """A photo of 16 x 16 pixels, in some hundred bytes, whose header claims 13,000 x 13,000."""
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **options)
    data = bytearray(out.getvalue())
    if form == "JPEG":
        frame = data.find(b"\xff\xc2" if options.get("progressive") else b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", CLAIMED, CLAIMED)
    elif form == "PNG":
        data[16:24] = struct.pack(">II", CLAIMED, CLAIMED)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif form == "GIF":
        data[6:10] = struct.pack("<HH", CLAIMED, CLAIMED)
    elif form == "BMP":
        data[18:26] = struct.pack("<ii", CLAIMED, CLAIMED)
    elif form == "PPM":
        data = data.replace(b"16 16", b"13000 13000")
    elif form == "WEBP":
        data[26:30] = struct.pack("<HH", CLAIMED, CLAIMED)
    elif form == "TIFF":
        for tag in (256, 257):
            entry = max(data.find(struct.pack("<HH", tag, kind)) for kind in (3, 4))
            data[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, CLAIMED)
    return bytes(data)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {}), ("BMP", {}), ("PPM", {}),
        ("WEBP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}), ("TIFF", {"compression": "packbits"}),
    ],
)  # fmt: skip
def test_a_small_file_that_claims_many_pixels_is_damaged(tmp_path, form, options):
    data = claiming(form, **options)
    assert len(data) < 2000
    (path := tmp_path / "small").write_bytes(data)
    with pytest.raises(BadImage, match=r"too few bytes \(\S+\) for the 13000 x 13000 pixels"):
        open_bytes(data)
    out = empty_images(1, 8)[0]
    with pytest.raises(BadImage, match="too few bytes"):
        decode_into(data, Preprocessing(8, (0.5,) * 3, (0.5,) * 3), out)
    assert inspect_photo(path, None).problem == "too few bytes"


@pytest.mark.parametrize(
    ("form", "options", "modes"),
    [
        ("JPEG", {}, ["L", "RGB"]), ("JPEG", {"progressive": True, "optimize": True}, ["L", "RGB"]),
        ("JPEG", {"quality": 1, "optimize": True}, ["L", "RGB"]), ("JPEG2000", {}, ["L"]),
        ("PNG", {}, ["1", "L", "RGB"]), ("GIF", {}, ["1", "L"]), ("BMP", {}, ["1", "L"]), ("PPM", {}, ["1", "L"]),
        ("WEBP", {"method": 0}, ["L"]), ("WEBP", {"lossless": True, "method": 0}, ["L"]),
        ("TIFF", {"compression": "tiff_lzw"}, ["1", "L"]), ("TIFF", {"compression": "packbits"}, ["1", "L"]),
        ("TIFF", {"compression": "tiff_adobe_deflate"}, ["1", "L"]), ("TIFF", {"compression": "group4"}, ["1"]),
    ],
)  # fmt: skip
def test_a_large_photo_of_one_colour_is_no_lie(form, options, modes):
    """Of 2,000 x 2,000 pixels; those of 13,000 x 13,000 take the same bytes a pixel, within some percent."""
    for mode in modes:
        out = io.BytesIO()
        Image.new(mode, (2000, 2000), 1 if mode == "1" else 128).save(out, form, **options)
        with open_bytes(out.getvalue()) as image:
            assert image.size == (2000, 2000)
