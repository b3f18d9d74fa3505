"""Make photos and a manifest for benchmarks: any number of rows and classes, and two labels, a class and its parent."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

PHOTOS_IN_FOLDER = 1000
MODELS_OF_MAKE = 10


def write_photos(root: Path, num_photos: int, num_classes: int, image_px: int = 64) -> list[str]:
    """Write root/table.csv with path, model and make, and its photos; return the overrides that read it.

    256 photos are drawn; each file has its number appended to the JPEG, so that no two files are equal.
    """
    drawn = [_draw(seed, image_px) for seed in range(min(256, num_photos))]
    paths = [f"{i // PHOTOS_IN_FOLDER}/{i}.jpg" for i in range(num_photos)]
    for i, path in enumerate(paths):
        if i % PHOTOS_IN_FOLDER == 0:
            (root / path).parent.mkdir(parents=True)
        (root / path).write_bytes(drawn[i % len(drawn)] + i.to_bytes(4, "little"))
    write_table(root / "table.csv", paths, num_classes)
    return overrides(root)


def write_table(file: Path, paths: list[str], num_classes: int) -> None:
    model = np.arange(len(paths)) % num_classes
    pd.DataFrame({"path": paths, "model": model, "make": model // MODELS_OF_MAKE}).to_csv(file, index=False)


def overrides(root: Path) -> list[str]:
    labels = ["data.labels=[make,model]", "data.parents={model:make}"]
    heads = [f"+model/head@model.heads.{name}=linear" for name in ("make", "model")]
    return ["data=manifest", f"data.root={root}", "data.file=table.csv", "data.split.kind=stratified", *labels, *heads]


def _draw(seed: int, size_px: int) -> bytes:
    random = np.random.default_rng(seed)
    blocks = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
    pixels = np.asarray(blocks.resize((size_px, size_px), Image.Resampling.BILINEAR), np.float32)
    grain = np.repeat(random.normal(0, 12, (-(-size_px // 2), size_px)), 2, axis=0)[:size_px, :, None]
    file = io.BytesIO()
    Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()
