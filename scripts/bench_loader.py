"""Compare loading photos into batches: carvision, timm, torchvision and others, on the same photos.

    python scripts/bench_loader.py --photos FOLDER                     photos as they are
    python scripts/bench_loader.py --photos FOLDER --resize 1600 1200  of a camera's size
    python scripts/bench_loader.py --photos FOLDER --packed            and packed: as they are, shrunk, decoded
    python scripts/bench_loader.py --photos FOLDER --decoders          decoders alone, in one process, without batches

Every candidate takes random crops of 8 to 100 % of the photo to 224 px, and mirrors half of them; each produces
what its own training takes: carvision and timm uint8 (normalised on the device), torchvision float32. A round is one
pass; rates are photos a second, and photos a CPU second of all processes together ("per core").
"""

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from side_by_side import cpu_seconds, machine, measure, summarise, table, write
from torch.utils.data import DataLoader

from carvision.data import decode as decoding
from carvision.data.images import Preprocessing, decode_part, open_bytes, wanted_part

from carvision.data.loading.dataset import PhotoDataset, random_window
from carvision.data.loading.loader import PhotoDataModule
from carvision.data.packs.shard import PackOptions
from carvision.data.packs.write import pack
from carvision.data.readers.folder import read_folder
from carvision.data.table import Table
from carvision.system.machine import num_cores

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder with JPEGs, also in its folders")
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--resize", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="scale them to this first")
    parser.add_argument("--decoders", action="store_true", help="compare decoders rather than loaders")
    parser.add_argument("--packed", action="store_true", help="add data=packed in its three forms")
    parser.add_argument("--image-px", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a file for all measurements, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    files = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    files = files[: options.count]
    if not files:
        sys.exit(f"--photos: {options.photos} holds no JPEGs")
    with tempfile.TemporaryDirectory() as folder:
        files = copy_photos(files, Path(folder) / "photos", options.resize)
        candidates = decoders(files, options) if options.decoders else loaders(files, Path(folder), options)
        sizes = np.array([Image.open(file).size for file in files[:50]])
        samples = measure(candidates, options.rounds, warm_up=1, memory=False)
    summary = summarise(samples, baseline="timm")
    print(f"{len(files)} photos, median {np.median(sizes[:, 0]):.0f} x {np.median(sizes[:, 1]):.0f} px")
    print(table(summary, ["photos_per_s", "photos_per_cpu_s"]))
    write(options.out, {"machine": machine(), "samples": samples, "summary": summary})


def copy_photos(files: list[Path], folder: Path, size: list[int] | None) -> list[Path]:
    """Copy into a single class folder, as timm and torchvision want it: links, or JPEGs of that size at quality 90."""
    (folder / "all").mkdir(parents=True)
    made = []
    for number, file in enumerate(files):
        made.append(folder / "all" / f"{number:06}.jpg")
        if size is None:
            made[-1].symlink_to(file.resolve())
        else:
            Image.open(file).convert("RGB").resize(tuple(size), Image.Resampling.BICUBIC).save(made[-1], quality=90)
    return made


# Loaders


def loaders(files: list[Path], folder: Path, options: argparse.Namespace) -> dict[str, Callable[[], dict]]:
    root = files[0].parent.parent
    made = {
        "timm": timm_batches(root, options),
        "torchvision v1": torchvision_batches(root, options, v2=False),
        "torchvision v2": torchvision_batches(root, options, v2=True),
        "carvision": carvision_batches(read_folder(root), options),
    }
    if options.packed:
        for photos in ("original", "shrunk", "decoded"):
            pack_options = PackOptions(photos, options.image_px * 8 // 7, 90, False, "error")
            table = pack(read_folder(root), pack_options, 64, folder / photos, num_cores())
            made[f"carvision, packed {photos}"] = carvision_batches(table, options)
    return {name: passes_of(loader, len(files)) for name, loader in made.items()}


def passes_of(loader, count: int) -> Callable[[], dict]:
    """Return a function that times a pass over all photos. The workers are started by a first, uncounted round."""

    def one() -> dict:
        batches = iter(loader)
        seen, cpu, began = 0, cpu_seconds(), time.perf_counter()
        for batch in batches:
            seen += len(batch["images"] if isinstance(batch, dict) else batch[0])
        wall, cpu = time.perf_counter() - began, cpu_seconds() - cpu
        assert seen >= count * 0.9, f"{seen} photos of {count}"
        return {"photos_per_s": seen / wall, "photos_per_cpu_s": seen / cpu}

    return one


def timm_batches(root: Path, options: argparse.Namespace) -> DataLoader:
    """Return a loader of uint8 batches, without the normalisation that timm's prefetcher does on the device."""
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", root=str(root)),
        input_size=(3, options.image_px, options.image_px),
        batch_size=options.batch_size,
        is_training=True,
        color_jitter=None,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
        device=torch.device("cpu"),
    )
    return loader.loader


def torchvision_batches(root: Path, options: argparse.Namespace, v2: bool) -> DataLoader:
    """Return the loader of its reference scripts: v1 on Pillow's images, v2 on tensors of torchvision's decoder."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2 as transforms_v2

    kinds = transforms_v2 if v2 else transforms
    of_pillow = [kinds.PILToTensor(), kinds.ConvertImageDtype(torch.float32)]
    steps = [
        kinds.RandomResizedCrop(options.image_px, SCALE, RATIO, antialias=True),
        kinds.RandomHorizontalFlip(),
        *([kinds.ToDtype(torch.float32, scale=True)] if v2 else of_pillow),
        kinds.Normalize((0.5,) * 3, (0.5,) * 3),
    ]
    read = (lambda path: decode_image(path, mode=ImageReadMode.RGB)) if v2 else None
    photos = ImageFolder(root, kinds.Compose(steps), **({"loader": read} if read else {}))
    return DataLoader(
        photos,
        options.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )


def carvision_batches(table: Table, options: argparse.Namespace) -> DataLoader:
    preprocessing = Preprocessing(options.image_px, (0.5,) * 3, (0.5,) * 3, "bicubic")
    create_dataset = partial(
        PhotoDataset,
        preprocessing=preprocessing,
        crop_to_box=False,
        crop_scale=SCALE,
        crop_ratio=RATIO,
        num_draws=1,
        seed=0,
    )
    rows = table.rows.assign(split="train")
    datamodule = PhotoDataModule(
        lambda: replace(table, rows=rows), create_dataset, options.batch_size, num_workers=options.workers
    )
    datamodule.setup()
    return datamodule.train_dataloader()


# Decoders


def decoders(files: list[Path], options: argparse.Namespace) -> dict[str, Callable[[], dict]]:
    """Return functions that time each decoder, in this process, from bytes in memory to the network's input, in uint8.

    All but timm's and torchvision's transforms, which draw their own, get the same crops.
    """
    photos = [file.read_bytes() for file in files]
    random = np.random.default_rng(0)
    windows = [random_window(random, SCALE, RATIO) for _ in photos]
    found = {}
    for name, create in DECODERS.items():
        try:
            found[name] = create(options.image_px)
        except (ImportError, OSError, RuntimeError) as error:
            print(f"left out: {name} ({error})")

    def one(decode: Callable) -> dict:
        began, cpu = time.perf_counter(), time.process_time()
        for data, window in zip(photos, windows, strict=True):
            decode(data, window)
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        return {"photos_per_s": len(photos) / wall, "photos_per_cpu_s": len(photos) / cpu}

    return {name: partial(one, decode) for name, decode in found.items()}


def with_timm(size_px: int) -> Callable:
    from timm.data import create_transform

    transform = create_transform(size_px, is_training=True, color_jitter=None, use_prefetcher=True)
    return lambda data, window: transform(Image.open(io.BytesIO(data)).convert("RGB"))


def with_torchvision(size_px: int) -> Callable:
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import v2

    crop = v2.Compose([v2.RandomResizedCrop(size_px, SCALE, RATIO, antialias=True), v2.RandomHorizontalFlip()])

    def decode(data: bytes, window: tuple):
        return crop(decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB))

    return decode


def with_pillow_draft(size_px: int) -> Callable:
    way = Preprocessing(size_px, (0.5,) * 3, (0.5,) * 3, "bicubic")

    def decode(data: bytes, window: tuple):
        return decode_part(open_bytes(data), way, None, window).resize((size_px, size_px), Image.Resampling.BICUBIC)

    return decode


def with_carvision(size_px: int, kind: type) -> Callable:
    way, decoder = Preprocessing(size_px, (0.5,) * 3, (0.5,) * 3, "bicubic"), kind()
    [out] = decoding.empty_images(1, size_px)

    def decode(data: bytes, window: tuple):
        decoding.load_decoder = lambda: decoder
        decoding.decode_into(data, way, out, None, window)

    return decode


def with_opencv(size_px: int) -> Callable:
    import cv2

    cv2.setNumThreads(1)
    reduced = {8: cv2.IMREAD_COLOR, 4: cv2.IMREAD_REDUCED_COLOR_2, 2: cv2.IMREAD_REDUCED_COLOR_4}
    reduced[1] = cv2.IMREAD_REDUCED_COLOR_8
    way = Preprocessing(size_px, (0.5,) * 3, (0.5,) * 3, "bicubic")

    def decode(data: bytes, window: tuple):
        size = Image.open(io.BytesIO(data)).size  # OpenCV does not tell before it has decoded
        eighths, part = wanted_part(*size, way, None, window, 0.5, can_scale=True)
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), reduced[eighths])
        part = np.ascontiguousarray(pixels[part.top : part.bottom, part.left : part.right])
        return cv2.cvtColor(cv2.resize(part, (size_px, size_px), interpolation=cv2.INTER_LINEAR), cv2.COLOR_BGR2RGB)

    return decode


DECODERS = {
    "timm": with_timm,
    "torchvision v2": with_torchvision,
    "Pillow draft": with_pillow_draft,
    "OpenCV reduced": with_opencv,
    "simplejpeg": partial(with_carvision, kind=Simplejpeg),
    "carvision (libjpeg part)": partial(with_carvision, kind=Libjpeg),
}


if __name__ == "__main__":
    main()
