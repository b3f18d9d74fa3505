"""Measure how fast photos are read and decoded."""

from __future__ import annotations

import io
import os
import statistics
import tempfile
import time
from pathlib import Path

from carvision.diagnosis.finding import Finding, size_text
from carvision.diagnosis.hardware import is_network

INPUT_PX = 224
SIZES = ((504, 336), (1600, 1200))  # CompCars as often shrunk, and a camera's small setting
NUM_PHOTOS = 64  # sample of the data folder
MAX_FILES, MAX_SECONDS = 20_000, 10.0  # to find photos, and to read them
SLOW = 100  # photos of SIZES[0] a second and core; processors of the last ten years decode 200 to 600
# Photos a second that a GPU needs; a guess, as no GPU was measured
GPU_NEEDS = 1000


def measure_decoding() -> dict:
    """Return {"rates": photos a second and core for each of SIZES, "shared": wall-clock time / processor time}."""
    rates, shared = [], []
    with tempfile.TemporaryDirectory() as folder:
        for width, height in SIZES:
            file = Path(folder) / f"{width}.jpg"
            file.write_bytes(draw_jpeg(width, height))
            times = [_decode(file) for _ in range(25)][5:]
            rates.append(1 / statistics.median(own for own, _ in times))
            shared.append(sum(wall for _, wall in times) / sum(own for own, _ in times))
    return {"rates": rates, "shared": max(shared)}


def draw_jpeg(width: int, height: int) -> bytes:
    """Return a JPEG as hard to decode as a photo: broad shapes with fine noise."""
    from PIL import Image

    broad = [Image.effect_noise((width // 16, height // 16), 90).resize((width, height)) for _ in range(3)]
    image = Image.blend(Image.merge("RGB", broad), Image.effect_noise((width, height), 40).convert("RGB"), 0.3)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def _decode(file: Path) -> tuple[float, float]:
    """Return the processor and wall-clock seconds for decoding a photo as training does. Pillow resizes, which takes
    somewhat longer, as torch may be missing."""
    from PIL import Image

    from carvision.data.decode import WHOLE, decode_part, jpeg_part
    from carvision.data.images import Preprocessing, open_bytes, read_file

    preprocessing = Preprocessing(INPUT_PX, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    own, wall = time.process_time(), time.perf_counter()
    data = read_file(file)
    pixels = jpeg_part(data, preprocessing, None, WHOLE, 0.5)
    image = decode_part(open_bytes(data), preprocessing) if pixels is None else Image.fromarray(pixels)
    image.resize((INPUT_PX, INPUT_PX), Image.Resampling.BICUBIC)
    return max(time.process_time() - own, 1e-6), max(time.perf_counter() - wall, 1e-6)


def measure_data(folder: str) -> dict:
    """Measure photos of the folder: "reads", photos read a second by one process, from the disk rather than memory;
    "bytes" of a photo; "decodes", photos decoded a second and core; "by_clock", the same in wall-clock time, as
    "reads"; "bad" of "tried"."""
    from carvision.data.images import BadImage
    from carvision.errors import InputError

    try:
        files = find_sample_photos(Path(folder).expanduser())
    except OSError as error:
        return {"error": error.strerror or str(error)}
    except InputError as error:  # an unreadable subfolder
        return {"error": str(error)}
    step = max(1, len(files) // NUM_PHOTOS)
    reads, sizes, decodes, bad, tried = [], [], [], 0, 0
    end = time.perf_counter() + MAX_SECONDS
    for file in files[::step]:
        tried += 1
        try:
            seconds, size = _read_cold(file)
            reads.append(seconds)
            sizes.append(size)
            decodes.append(_decode(file))
        except (OSError, BadImage):
            bad += 1
        if time.perf_counter() > end:
            break
    found = {"found": len(files), "all": len(files) < MAX_FILES, "bad": bad, "tried": tried}
    if decodes:
        own, by_clock = (1 / statistics.mean(times) for times in zip(*decodes, strict=True))
        found |= {"reads": 1 / statistics.mean(reads), "bytes": statistics.mean(sizes)}
        found |= {"decodes": own, "by_clock": by_clock}
    return found


def find_sample_photos(folder: Path) -> list[Path]:
    """Return the first MAX_FILES photos found within MAX_SECONDS. Raise OSError if the folder can't be read, and
    InputError for a subfolder."""
    from carvision.data.readers.walk import LeftOut, walk

    os.scandir(folder).close()
    photos: list[Path] = []
    end = time.perf_counter() + MAX_SECONDS
    for photo in walk(os.fspath(folder), LeftOut()):
        photos.append(Path(photo))
        if len(photos) == MAX_FILES or time.perf_counter() > end:
            break
    return photos


def _read_cold(file: Path) -> tuple[float, int]:
    """Return seconds and bytes of reading the file, dropped from the page cache first if possible."""
    started = time.perf_counter()
    with file.open("rb", buffering=0) as stream:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            started = time.perf_counter()
        size = len(stream.read())
    return max(time.perf_counter() - started, 1e-6), size


def describe_decoding(answer: dict) -> str:
    """Return the speed of decoding as text. answer: of probe's step "decoding"."""
    if "rates" not in answer:
        return "not measured"
    parts = [f"{rate:,.0f} of {w} x {h}" for (w, h), rate in zip(SIZES, answer["rates"], strict=True)]
    return f"JPEG photos a second and core to {INPUT_PX} px: {', '.join(parts)}"


def judge_decoding(answer: dict, num_workers: int, num_gpus: int) -> list[Finding]:
    """Return findings about slow decoding. answer: of probe's step "decoding"."""
    if "rates" not in answer:
        return []
    findings = []
    rate = answer["rates"][0]
    if rate < SLOW:
        what = f"{rate:,.0f} photos a second and core is slow"
        findings.append(Finding("slow", "decoding", what, "a faster processor, or photos shrunk beforehand"))
    total = rate * num_workers
    if num_gpus and total < GPU_NEEDS * num_gpus:
        what = f"{num_workers} threads decode about {total:,.0f} photos a second; a GPU that could train on more waits"
        fix = "more processor cores, photos shrunk beforehand, or a larger network, which needs fewer photos a second"
        findings.append(Finding("slow", "decoding", what, fix))
    return findings


def describe_data(answer: dict, kind: str) -> str:
    """Return the speed of reading the folder's photos as text. answer: of probe's step "data:<folder>"."""
    if "reads" not in answer:
        return "nothing could be measured"
    found = (
        f"{answer['found']:,}{'' if answer['all'] else ' or more'} photos of about {size_text_small(answer['bytes'])}"
    )
    on = f" on {kind}" if kind else ""
    speed = f"{answer['reads']:,.0f} read by one process, {answer['decodes']:,.0f} decoded by one core"
    return f"{found}{on}; a second: {speed}"


def size_text_small(num_bytes: float) -> str:
    """Format bytes as size_text, with kB below 1 MB."""
    return f"{num_bytes / 1e3:,.0f} kB" if num_bytes < 1e6 else size_text(num_bytes)


def judge_data(folder: str, answer: dict, kind: str) -> list[Finding]:
    """Return findings about the folder's photos. answer: of probe's step "data:<folder>". kind: of the file system."""
    if "error" in answer:
        return [
            Finding("breaks", "data", f"{folder} can't be read: {answer['error']}", "give the folder of the photos")
        ]
    if not answer["found"]:
        return [
            Finding("breaks", "data", f"{folder} holds no photos", "give the folder that holds them, or one above it")
        ]
    findings = []
    if answer["bad"]:
        what = f"{answer['bad']} of {answer['tried']} photos that were tried can't be used"
        fix = "python -m carvision.check data=... names them; data.on_bad_image=skip trains without them"
        findings.append(Finding("breaks", "data", what, fix))
    if "reads" in answer and 2 * answer["reads"] < answer["by_clock"]:  # busy cores make both take longer
        reading, decoding = (f"{1e3 / answer[name]:.0f} ms" for name in ("reads", "by_clock"))
        what = f"reading a photo takes far longer ({reading}) than decoding it ({decoding})"
        where = "its network file system" if is_network(kind) else "its disk"
        fix = "copy the photos to a local disk, or use more data.num_workers, which wait in parallel"
        findings.append(Finding("slow", "data", f"{what}: {folder} waits for {where}", fix))
    if "bytes" in answer and answer["bytes"] > 1.5e6:
        what = (
            f"the photos are large ({size_text(answer['bytes'])} each), and training takes them at {INPUT_PX} px or so"
        )
        findings.append(Finding("slow", "data", what, "shrink them once, to a longer side of some 600 px"))
    return findings
