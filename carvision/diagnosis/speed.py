"""Measure how fast photos are decoded and read; judge the numbers."""

from __future__ import annotations

import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from carvision.diagnosis.findings import Finding, Part, size_text
from carvision.diagnosis.hardware import NETWORK

INPUT_PX = 224
SIZES = ((504, 336), (1600, 1200))  # CompCars as often shrunk, and a camera's small setting
NUM_PHOTOS, MAX_FILES = 64, 20_000  # tried of the data folder, and found in it
MAX_SECONDS = 10.0  # to read them
SLOW = 100  # photos of SIZES[0] a second and core; processors of the last ten years decode 200 to 600
LARGE = 1.5e6  # bytes of a photo
GPU_NEEDS = 1000  # photos a second that a GPU needs; a guess, as no GPU was measured


def measure_decoding() -> dict:
    """Return {"rates": photos a second and core for each of SIZES}."""
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        for width, height in SIZES:
            file = Path(folder) / f"{width}.jpg"
            file.write_bytes(draw_jpeg(width, height))
            rates.append(1 / statistics.median([_decode(file, time.process_time) for _ in range(25)][5:]))
    return {"rates": rates}


def draw_jpeg(width: int, height: int) -> bytes:
    """Return a JPEG as hard to decode as a photo: broad shapes with fine noise."""
    from PIL import Image

    broad = [Image.effect_noise((width // 16, height // 16), 90).resize((width, height)) for _ in range(3)]
    image = Image.blend(Image.merge("RGB", broad), Image.effect_noise((width, height), 40).convert("RGB"), 0.3)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def _decode(file: Path, clock: Callable[[], float]) -> float:
    """Return the seconds of reading and decoding a photo as training does."""
    from carvision.data.decode import decode_into, empty_images
    from carvision.data.images import Preprocessing, read_file

    preprocessing = Preprocessing(INPUT_PX, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    out = empty_images(1, INPUT_PX)[0]
    started = clock()
    decode_into(read_file(file), preprocessing, out)
    return max(clock() - started, 1e-6)


def measure_data(folder: str) -> dict:
    """Measure photos of the folder.

    Returns "found", their number, if that is "all" of them; "bad" of "tried"; "reads" and "decodes", photos that one
    thread reads from the disk, rather than from memory, and decodes in a second; "bytes" of a photo. Or "error", why
    the folder can't be read.
    """
    from carvision.data.images import BadImage
    from carvision.errors import InputError

    try:
        files = find_photos(Path(folder).expanduser())
    except OSError as error:
        return {"error": error.strerror or str(error)}
    except InputError as error:  # an unreadable subfolder
        return {"error": str(error)}
    measured, tried, end = [], 0, time.perf_counter() + MAX_SECONDS
    for file in files[:: max(1, len(files) // NUM_PHOTOS)]:
        tried += 1
        with suppress(OSError, BadImage):
            # Both by the clock, as other work on the machine makes both take longer
            measured.append((*_read_cold(file), _decode(file, time.perf_counter)))
        if time.perf_counter() > end:
            break
    found = {"found": len(files), "all": len(files) < MAX_FILES, "bad": tried - len(measured), "tried": tried}
    if measured:
        seconds, sizes, decoding = (statistics.mean(values) for values in zip(*measured, strict=True))
        found |= {"reads": 1 / seconds, "bytes": sizes, "decodes": 1 / decoding}
    return found


def find_photos(folder: Path) -> list[Path]:
    """Return the first MAX_FILES photos. Raise OSError if the folder can't be read, and InputError for a subfolder."""
    from carvision.data.readers.walk import LeftOut, walk

    os.scandir(folder).close()
    return [Path(photo) for photo in islice(walk(os.fspath(folder), LeftOut()), MAX_FILES)]


def _read_cold(file: Path) -> tuple[float, int]:
    """Return seconds and bytes of reading the file, dropped from the page cache first if possible."""
    with file.open("rb", buffering=0) as stream:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        size = len(stream.read())
    return max(time.perf_counter() - started, 1e-6), size


def examine_decoding(answer: dict, num_cores: int, num_gpus: int) -> Part:
    """Examine the speed of decoding. answer: of probe's step "decoding", {} without torch."""
    if "rates" not in answer:
        yield Finding("note", "decoding", f"could not be measured: {answer.get('error', 'torch is missing')}")
        return
    rate = answer["rates"][0]
    parts = [f"{rate:,.0f} of {w} x {h}" for (w, h), rate in zip(SIZES, answer["rates"], strict=True)]
    yield "decoding", f"JPEG photos a second and core to {INPUT_PX} px: {', '.join(parts)}"
    if rate < SLOW:
        what = f"{rate:,.0f} photos a second and core is slow"
        yield Finding("slow", "decoding", what, "a faster processor, or photos shrunk beforehand")
    if num_gpus and rate * num_cores < GPU_NEEDS * num_gpus:
        what = f"{num_cores} cores decode about {rate * num_cores:,.0f} photos a second"
        fix = "more processor cores, photos shrunk beforehand, or a larger network, which needs fewer photos a second"
        yield Finding("slow", "decoding", f"{what}; a GPU that could train on more waits", fix)


def examine_data(folder: str, answer: dict, kind: str) -> Part:
    """Examine the folder's photos. answer: of probe's step "data:<folder>". kind: of the file system."""
    if "error" in answer:
        yield Finding("breaks", "data", f"{folder} can't be read: {answer['error']}", "give the folder of the photos")
        return
    if not answer["found"]:
        fix = "give the folder that holds them, or one above it"
        yield Finding("breaks", "data", f"{folder} holds no photos", fix)
    if answer["bad"]:
        what = f"{answer['bad']} of {answer['tried']} photos that were tried can't be used"
        fix = "carvision check data=... names them; data.on_bad_image=skip trains without them"
        yield Finding("breaks", "data", what, fix)
    if "reads" not in answer:
        return
    reads, decodes, size = answer["reads"], answer["decodes"], size_text(answer["bytes"])
    found = f"{answer['found']:,}{'' if answer['all'] else ' or more'} photos of about {size}"
    on = f" on {kind}" if kind else ""
    yield "data", f"{found}{on}; a second, one thread reads {reads:,.0f} or decodes {decodes:,.0f}"
    if 2 * reads < decodes:
        what = f"reading a photo takes far longer ({1e3 / reads:.0f} ms) than decoding it ({1e3 / decodes:.0f} ms)"
        where = "its network file system" if kind.startswith(NETWORK) else "its disk"
        fix = "copy the photos to a local disk, or use more data.num_workers, which wait in parallel"
        yield Finding("slow", "data", f"{what}: {folder} waits for {where}", fix)
    if answer["bytes"] > LARGE:
        what = f"the photos are large ({size} each), and training takes them at {INPUT_PX} px or so"
        yield Finding("slow", "data", what, "shrink them once, to a longer side of some 600 px")
