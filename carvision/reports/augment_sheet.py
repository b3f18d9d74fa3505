"""Draw photos beside their augmented versions."""

import logging
import textwrap
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from carvision.augment.mixing import Mix
from carvision.augment.pipeline import Augment, to_float
from carvision.data.images import none_usable
from carvision.data.loading.dataset import PhotoDataset
from carvision.data.table import UNKNOWN, Table
from carvision.reports.photos import CAPTION_PT, ELLIPSIS, Row, Tile, plot_sheet, wrap_text
from carvision.reports.plots import TEXT

log = logging.getLogger(__name__)

TILE_PX, APART_PX = 160, 8  # of a photo; between the originals and their versions


def plot_augmented(
    photos: PhotoDataset,
    table: Table,
    augment: Augment,
    mix: Mix,
    title: str,
    file: Path,
    num_photos: int = 6,
    num_versions: int = 8,
    seed: int = 0,
) -> None:
    """Write a PNG with one row per random photo: its class, the photo as validation sees it, and augmented versions.

    The photos are of different classes as far as possible; the versions are those of the first epochs of a run with
    this seed. photos: of the table's rows. Mixing, if active, combines photos of the sheet; captions name the other
    one. Raises InputError if no photo can be read.
    """
    rows = choose_rows(table, num_photos, seed)
    names = class_names(table, rows)
    originals = photos[[(row, -1) for row in rows]]
    bad = [(row, reason) for row, reason in zip(rows, originals["reasons"], strict=True) if reason]
    if len(bad) == len(rows):
        row, reason = bad[0]
        raise none_usable("train", len(rows), photos.location(row), reason)
    for row, reason in bad:
        log.warning("%s: %s; its row of the sheet is grey", photos.location(row), reason)
    columns = [[Tile(_as_image(image)) for image in to_float(originals["images"])]]
    for epoch in range(num_versions):
        batch = photos[[(row, epoch) for row in rows]]
        images = augment(to_float(batch["images"]), batch["draws"])
        captions = [""] * len(rows)
        if mix.active:
            images, partner, share = mix(images, batch["valid"], (seed, epoch, 0, 0))
            others = zip(partner.tolist(), (100 * (1 - share)).tolist(), strict=True)
            captions = [f"{part:.0f} % {names[other]}" if part >= 0.5 else "" for other, part in others]
        lines = [wrap_text(text, TILE_PX, CAPTION_PT, max_lines=1) if text else [] for text in captions]
        tiles = zip(map(_as_image, images), lines, strict=True)
        columns.append([Tile(image, [(line, TEXT) for line in below]) for image, below in tiles])
    labels = [textwrap.wrap(name, 22, max_lines=4, placeholder=f" {ELLIPSIS}") for name in names]
    sheet = [
        Row(tiles, [(line, "normal") for line in label])
        for tiles, label in zip(zip(*columns, strict=True), labels, strict=True)
    ]
    headings = {0: "original", **{epoch: f"epoch {epoch}" for epoch in range(1, num_versions + 1)}}
    plot_sheet(sheet, file, title, headings=headings, tile_px=(TILE_PX, TILE_PX), apart_px={1: APART_PX})


def choose_rows(table: Table, num: int, seed: int) -> list[int]:
    """Choose random photos, one of each class before a second of any."""
    order = np.random.default_rng(seed).permutation(len(table))
    codes = table.rows[table.finest].iloc[order]
    turns = codes.groupby(codes).cumcount()  # 0 for the first of its class
    return order[np.argsort(turns.to_numpy(), kind="stable")][:num].tolist()


def class_names(table: Table, rows: list[int]) -> list[str]:
    """Return the class names of these rows, by the table's finest label."""
    label = table.class_labels[table.finest]
    codes = table.rows[table.finest].to_numpy()[rows]
    return [label.names[code] if code != UNKNOWN else f"{table.finest} not known" for code in codes]


def _as_image(image: Tensor) -> Image.Image:
    """Return an image, float (3, H, W) in 0..1, as it is drawn."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels).resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC)
