"""Compare loading photos into batches: carvision's threads, timm's and torchvision's processes, SPDL's threads, an
earlier checkout.

    python scripts/bench_loader.py --photos FOLDER --threads 1 2                 all four cases
    python scripts/bench_loader.py --photos FOLDER --before CHECKOUT             also carvision as it was there
    python scripts/bench_loader.py --photos FOLDER --spdl                        also SPDL, which needs FFmpeg
    python scripts/bench_loader.py --photos FOLDER --cases crops decoded --rounds 9
    python scripts/bench_loader.py --photos FOLDER --python-part                 microseconds that hold Python's lock
    python scripts/bench_loader.py --photos FOLDER --waiting --threads 1         of the main thread, for that lock

Cases: crops (8 to 100 % of the photo's area, photos as they are), default (60 to 100 %, as augment=light), large
(crops, of photos enlarged to 1600 x 1200), decoded (crops; carvision from a pack of decoded photos, the others from the
files).
All resize to 224 px, mirror half of the photos or leave that to the device, and produce what their own training takes:
carvision, timm and SPDL uint8 (normalised on the device), torchvision float32. Each candidate is a process of its own
that stays, with as many threads or worker processes as --threads says; a round is one pass of each, in turns. Rates
are photos a second, and photos a CPU second of all processes together.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

from side_by_side import cpu_seconds, machine, measure, rows_as_table, summarise, table, write

from carvision.system.runtime import keep_freed_memory

CASES = {  # crop_scale, crop_ratio
    "crops": ((0.08, 1.0), (3 / 4, 4 / 3)),
    "default": ((0.6, 1.0), (0.8, 1.25)),
    "large": ((0.08, 1.0), (3 / 4, 4 / 3)),
    "decoded": ((0.08, 1.0), (3 / 4, 4 / 3)),
}
CHECKOUT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder with JPEGs, also in its folders")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--before", type=Path, help="an earlier checkout of carvision")
    parser.add_argument("--torchvision", action="store_true")
    parser.add_argument("--spdl", action="store_true", help="no dependency: pip install spdl")
    parser.add_argument("--count", type=int, default=512, help="photos; of the case large a quarter")
    parser.add_argument("--image-px", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--python-part", action="store_true")
    parser.add_argument("--waiting", action="store_true")
    parser.add_argument("--out", type=Path, help="a file for all measurements, as JSON")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        answer_with_passes(options)
        return
    files = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        sys.exit(f"--photos: {options.photos} holds no JPEGs")
    results = {}
    with tempfile.TemporaryDirectory() as top:
        for case in options.cases:
            root = Path(top) / case
            count = max(options.count // 4, options.batch_size) if case == "large" else options.count
            copy_photos(files[:count], root, case == "large")
            if options.python_part:
                print(f"{case}: {python_part(case, root, options):.1f} us a photo hold Python's lock")
                continue
            if case == "decoded":
                pack_decoded(root, root.with_name("pack"), options)
            if options.waiting:
                measure_waiting(case, root.with_name("pack") if case == "decoded" else root, options)
                continue
            for threads in options.threads:
                results[f"{case}, {threads}"] = compare(case, root, threads, options)
    write(options.out, {"machine": machine(), "results": results})


def compare(case: str, root: Path, threads: int, options: argparse.Namespace) -> dict:
    """Measure all candidates in one case, print the table, and return all measurements."""
    own_root = root.with_name("pack") if case == "decoded" else root
    create = partial(Child, case, threads, options)
    children = {"timm": create("timm", root, CHECKOUT), "carvision": create("carvision", own_root, CHECKOUT)}
    if options.before:
        children["before"] = create("carvision", own_root, options.before.resolve())
    if options.torchvision:
        children["torchvision v2"] = create("torchvision", root, CHECKOUT)
    if options.spdl:
        children["SPDL"] = create("spdl", root, CHECKOUT)
    try:
        samples = measure({name: child.ask for name, child in children.items()}, options.rounds, 1, memory=False)
    finally:
        for child in children.values():
            child.end()
    summary = summarise(samples, baseline="timm")
    print(f"\n{case}, {threads} threads or worker processes:")
    print(table(summary, ["photos_per_s", "photos_per_cpu_s"]), flush=True)
    return {"samples": samples, "summary": summary}


class Child:
    """A process with one candidate's loader, which passes over all photos when it is asked."""

    def __init__(self, case: str, threads: int, options: argparse.Namespace, kind: str, root: Path, checkout: Path):
        words = ["--child", kind, "--photos", ".", "--root", root, "--cases", case, "--threads", threads]
        words += ["--image-px", options.image_px, "--batch-size", options.batch_size]
        path = os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH"))))
        environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CARVISION_JPEG": "simplejpeg"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, *map(str, words)], env={**os.environ, **environment}, cwd=checkout,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip

    def ask(self) -> dict:
        assert self.process.stdin and self.process.stdout
        print("pass", file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def answer_with_passes(options: argparse.Namespace) -> None:
    """Pass over the photos once for each line of standard input, and print the rates as JSON."""
    import torch

    torch.set_num_threads(1)
    batches = {
        "timm": timm_batches, "torchvision": torchvision_batches, "carvision": carvision_batches, "spdl": SpdlBatches,
    }[options.child](options)  # fmt: skip
    for _ in sys.stdin:
        seen, cpu, began = 0, cpu_seconds(), time.perf_counter()
        for batch in batches:
            seen += len(batch["images"] if isinstance(batch, dict) else batch[0])
        wall, cpu = time.perf_counter() - began, cpu_seconds() - cpu
        print(json.dumps({"photos_per_s": seen / wall, "photos_per_cpu_s": seen / cpu}), flush=True)


def copy_photos(files: list[Path], folder: Path, enlarge: bool) -> None:
    """Copy into a single class folder, as timm and torchvision want it: links, or JPEGs of 1600 x 1200."""
    from PIL import Image

    (folder / "all").mkdir(parents=True)
    for number, file in enumerate(files):
        made = folder / "all" / f"{number:06}.jpg"
        if enlarge:
            Image.open(file).convert("RGB").resize((1600, 1200), Image.Resampling.BICUBIC).save(made, quality=90)
        else:
            made.symlink_to(file.resolve())


def pack_decoded(root: Path, folder: Path, options: argparse.Namespace) -> None:
    from carvision.data.packs.shard import PackOptions
    from carvision.data.packs.write import pack
    from carvision.data.readers.folder import read_folder

    pack(read_folder(root), PackOptions("decoded", options.image_px * 8 // 7, 90, False, "error"), 64, folder, 1)


# Loaders


def timm_batches(options: argparse.Namespace) -> Iterable:
    """Return a loader of uint8 batches, without the normalisation that timm's prefetcher does on the device."""
    import torch
    from timm.data import create_dataset, create_loader

    [case], [workers] = options.cases, options.threads
    scale, ratio = CASES[case]
    loader = create_loader(
        create_dataset("", root=str(options.root)),
        input_size=(3, options.image_px, options.image_px),
        batch_size=options.batch_size,
        is_training=True,
        scale=scale,
        ratio=ratio,
        color_jitter=None,
        num_workers=workers,
        persistent_workers=True,
        device=torch.device("cpu"),
    )
    return loader.loader


def torchvision_batches(options: argparse.Namespace) -> Iterable:
    """Return the loader of its reference scripts, v2 on tensors of torchvision's decoder."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    [case], [workers] = options.cases, options.threads
    scale, ratio = CASES[case]
    steps = [
        v2.RandomResizedCrop(options.image_px, scale, ratio, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.5,) * 3, (0.5,) * 3),
    ]
    read = partial(decode_image, mode=ImageReadMode.RGB)
    photos = ImageFolder(options.root, v2.Compose(steps), loader=read)
    return DataLoader(photos, options.batch_size, shuffle=True, num_workers=workers, persistent_workers=True)


class SpdlBatches:
    """Threads of SPDL's pipeline that crop, resize and mirror with FFmpeg; a pipeline is built for each pass."""

    def __init__(self, options: argparse.Namespace):
        [case], [self.threads] = options.cases, options.threads
        self.scale, self.ratio = CASES[case]
        self.image_px, self.batch_size = options.image_px, options.batch_size
        self.files = sorted(map(str, options.root.rglob("*.jpg")))

    def __iter__(self) -> Iterator[tuple]:
        import torch
        from spdl.pipeline import PipelineBuilder

        order = [self.files[i] for i in torch.randperm(len(self.files))]
        builder = PipelineBuilder().add_source(order).pipe(self.read, concurrency=self.threads)
        pipeline = builder.aggregate(self.batch_size).pipe(self.collate).add_sink(2).build(num_threads=self.threads)
        with pipeline.auto_stop():
            yield from pipeline.get_iterator()

    def read(self, file: str):
        import random

        import spdl.io

        packets = spdl.io.demux_image(file)
        area = packets.width * packets.height
        for _ in range(10):
            share, ratio = random.uniform(*self.scale), random.uniform(*self.ratio)
            width, height = round((area * share * ratio) ** 0.5), round((area * share / ratio) ** 0.5)
            if width <= packets.width and height <= packets.height:
                break
        else:
            width, height = packets.width, packets.height
        left, top = random.randint(0, packets.width - width), random.randint(0, packets.height - height)
        steps = [f"crop={width}:{height}:{left}:{top}", f"scale={self.image_px}:{self.image_px}:flags=bicubic"]
        steps += ["hflip"] * (random.random() < 0.5) + ["format=pix_fmts=rgb24"]
        return spdl.io.decode_packets(packets, filter_desc=",".join(steps))

    @staticmethod
    def collate(frames: list) -> tuple:
        import spdl.io

        return (spdl.io.to_torch(spdl.io.convert_frames(frames)),)


def carvision_batches(options: argparse.Namespace) -> Iterable:
    """Return the training loader of this checkout, or of an earlier one."""
    try:
        from carvision.data.loading.datamodule import PhotoDataModule
    except ImportError:
        from carvision.data.loading.loader import PhotoDataModule

    keep_freed_memory()  # as its commands do
    [case], [threads] = options.cases, options.threads
    table, create_dataset = carvision_photos(case, options.root, options)
    table_or_read = table if "table" in signature(PhotoDataModule).parameters else lambda: table
    datamodule = PhotoDataModule(table_or_read, create_dataset, options.batch_size, num_workers=threads)
    datamodule.setup("fit")  # which earlier ones need
    return datamodule.train_dataloader()


def carvision_photos(case: str, root: Path, options: argparse.Namespace) -> tuple:
    """Return the table of the photos below `root` and the function that makes a PhotoDataset of it."""
    from carvision.data.images import Preprocessing
    from carvision.data.loading.dataset import PhotoDataset
    from carvision.data.packs.index import read_packed
    from carvision.data.readers.folder import read_folder

    table = (read_packed if case == "decoded" and not options.python_part else read_folder)(root)
    scale, ratio = CASES[case]
    preprocessing = Preprocessing(options.image_px, (0.5,) * 3, (0.5,) * 3, "bicubic")
    create = partial(
        PhotoDataset, preprocessing=preprocessing, crop_to_box=False, crop_scale=scale, crop_ratio=ratio, num_draws=1,
        seed=0,
    )  # fmt: skip
    return replace(table, rows=table.rows.assign(split="train")), create


# Python's part


def python_part(case: str, root: Path, options: argparse.Namespace) -> float:
    """Return the microseconds of a photo without what releases Python's lock: the least of nine passes.

    Reading, decoding and resizing are replaced by functions that return at once; the calls remain.
    """
    from carvision.data import decode
    from carvision.data.loading import dataset

    table, create = carvision_photos(case, root, options)
    photos = create(table)
    data = Path(photos.location(0)).read_bytes()
    header, pixels = decode.simplejpeg.decode_jpeg_header(data), decode.simplejpeg.decode_jpeg(data, "RGB")
    at_once: Callable = lambda *_, **__: None  # noqa: E731
    stand_in = SimpleNamespace(decode_jpeg_header=lambda *_: header, decode_jpeg=lambda *_, **__: pixels)
    dataset.read_file, decode.simplejpeg, decode.resize = (lambda _: data), stand_in, at_once
    keys = [(row, 0) for row in range(len(table))]
    return min(_seconds(photos, keys, options.batch_size) for _ in range(9)) / len(table) * 1e6


def _seconds(photos, keys: list, batch_size: int) -> float:
    batches: Iterator[list] = (keys[start : start + batch_size] for start in range(0, len(keys), batch_size))
    began = time.process_time()
    for batch in batches:
        photos[batch]
    return time.process_time() - began


# The main thread, which computes while others read


def measure_waiting(case: str, root: Path, options: argparse.Namespace) -> None:
    """Print how long a step takes, and how late a thread gets Python's lock back, with and without threads that read.

    The thread sleeps for 2 ms again and again, as the main thread leaves Python for each operation of torch.
    """
    import timm
    import torch

    torch.set_num_threads(1)
    options.cases, options.child = [case], "carvision"
    options.threads = options.threads[:1]
    options.root = root
    for compiled in (False, True):
        rows = []
        model = timm.create_model("mobilenetv2_035", num_classes=10).to(memory_format=torch.channels_last)
        if compiled:
            model.compile()
        batches = list(carvision_batches(options))
        for kind, source in (("no reading", batches), ("reading", carvision_batches(options))) * options.rounds:
            late: list[float] = []
            done = threading.Event()
            probe = threading.Thread(target=_probe, args=(done, late))
            began = time.perf_counter()
            for number, batch in enumerate(source):
                if number == 1:  # the first compiles, or waits for the first photos
                    began = time.perf_counter()
                    probe.start()
                model(batch["images"].float() / 255).logsumexp(1).mean().backward()
            seconds = time.perf_counter() - began
            done.set()
            probe.join()
            late.sort()
            rows.append([
                f"compile {'on' if compiled else 'off'}, {kind}", f"{1e3 * seconds / (len(batches) - 1):.1f}",
                f"{1e6 * sum(late) / len(late):.0f}", f"{1e6 * late[int(0.99 * len(late))]:.0f}",
            ])  # fmt: skip
        print(rows_as_table(["", "a step, ms", "late, us", "late, 99 %, us"], sorted(rows)), flush=True)


def _probe(done: threading.Event, late: list[float]) -> None:
    while not done.is_set():
        began = time.perf_counter()
        time.sleep(0.002)
        late.append(time.perf_counter() - began - 0.002)


if __name__ == "__main__":
    main()
