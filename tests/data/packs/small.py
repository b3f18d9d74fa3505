"""Packs in miniature."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from carvision.data.images import Preprocessing
from carvision.data.loading.dataset import PhotoDataset
from carvision.data.packs.shard import PackOptions
from carvision.data.packs.write import pack
from carvision.data.table import BOX, Classes, Number, Table

NUM = 40
SMALL_MB = 0.02  # some seven photos of `write_photos` a shard


def write_photos(folder: Path, num: int = NUM) -> Table:
    """Write noisy photos of several sizes and formats, of 3 models of 2 makes, with boxes, groups and a number.

    1 and 2 have the same bytes; a photo in four has no split, and some values are unknown.
    """
    random = np.random.default_rng(0)
    paths = []
    for i in range(num):
        image = Image.fromarray(random.integers(0, 256, (30, 40 + i, 3), np.uint8))
        paths.append(f"of model {i % 3}/é{i}.{'JPEG' if i % 5 else 'png'}")
        (folder / paths[-1]).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / paths[-1], quality=95)
    (folder / paths[2]).write_bytes((folder / paths[1]).read_bytes())
    model = np.arange(num, dtype=np.int32) % 3
    model[3::10] = -1
    rows = pd.DataFrame({
        "path": paths, "model": model,
        "make": np.where(model == 2, 1, np.where(model < 0, -1, 0)).astype(np.int32),
        "speed": np.where(np.arange(num) % 4, np.arange(num), np.nan).astype(np.float32),
        "split": ["", "train", "train", "test"] * (num // 4), "group": [f"car {i // 2}" for i in range(num)],
        **dict(zip(BOX, np.float32([4, 6, 30, 24]), strict=True)),
    })  # fmt: skip
    rows.loc[5, BOX] = np.nan
    labels = {"model": Classes(("7", "8", "9"), ("a", "b", "a"), "make", (0, 0, 1)), "speed": Number("km/h")}
    labels["make"] = Classes(("Ä", "B"), ("Ä", "B"))
    return Table("some", folder, rows, labels, "model", heads=("model", "make"))


def form(photos="original", short_side_px: int = 16, of_box: bool = False, on_bad_image="error") -> PackOptions:
    return PackOptions(photos, short_side_px, 90, of_box, on_bad_image)


def pack_small(table: Table, folder: Path, how: PackOptions | None = None, num_workers: int = 0) -> Table:
    return pack(table, how or form(), SMALL_MB, folder, num_workers)


def photos_of(table: Table, crop_to_box: bool = False) -> PhotoDataset:
    return PhotoDataset(table, Preprocessing(8, (0.5,) * 3, (0.5,) * 3), crop_to_box, (0.3, 1.0), (0.5, 2.0), 4, seed=3)


def damage(file: Path, at: int) -> None:
    """Flip a bit of the byte at this offset."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def change_index(folder: Path, **changes) -> None:
    """Change values of pack.json, and state the size and the SHA-256 of table.parquet as it is."""
    content = (folder / "table.parquet").read_bytes()
    index = json.loads((folder / "pack.json").read_text())
    index["table"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "pack.json").write_text(json.dumps(index | changes))
