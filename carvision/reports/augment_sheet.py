"""Draw photos beside their augmented versions."""

import logging
import textwrap
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

from carvision.augment.mixing import Mix
from carvision.augment.pipeline import Augment, to_float
from carvision.data.images import none_usable
from carvision.data.loading.dataset import PhotoDataset
from carvision.data.table import UNKNOWN, Table
from carvision.reports.photos import EDGE_PX, ELLIPSIS, create_sheet, draw_text, shorten_name
from carvision.reports.plots import save_figure

log = logging.getLogger(__name__)

TILE_PX, GAP_PX, LEFT_PX, LINE_PX, CAPTION_PX = 160, 8, 205, 19, 18


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
    columns = [("original", to_float(originals["images"]), [""] * len(rows))]
    for epoch in range(num_versions):
        batch = photos[[(row, epoch) for row in rows]]
        images = augment(to_float(batch["images"]), batch["draws"])
        captions = [""] * len(rows)
        if mix.active:
            images, partner, share = mix(images, batch["valid"], (seed, epoch, 0, 0))
            others = zip(partner.tolist(), (100 * (1 - share)).tolist(), strict=True)
            captions = [f"{part:.0f} % {names[other]}" if part >= 0.5 else "" for other, part in others]
        columns.append((f"epoch {epoch + 1}", images, captions))
    _draw(columns, names, title, file)


def choose_rows(table: Table, num: int, seed: int) -> list[int]:
    """Choose random photos, one of each class before a second of any."""
    codes = table.rows[table.finest].to_numpy()
    order = np.random.default_rng(seed).permutation(len(codes))
    seen: dict[int, int] = {}
    turns = []
    for row in order:
        turns.append(seen.get(codes[row], 0))
        seen[codes[row]] = turns[-1] + 1
    return order[np.argsort(turns, kind="stable")][:num].tolist()


def class_names(table: Table, rows: list[int]) -> list[str]:
    """Return the class names of these rows, by the table's finest label."""
    label = table.class_labels[table.finest]
    codes = table.rows[table.finest].to_numpy()[rows]
    return [label.names[code] if code != UNKNOWN else f"{table.finest} not known" for code in codes]


def _draw(columns: list[tuple[str, Tensor, list[str]]], names: list[str], title: str, file: Path) -> None:
    """Draw the columns: for each its heading, images float (photos, 3, size, size) in 0..1, and captions below them."""
    width = EDGE_PX + LEFT_PX + len(columns) * (TILE_PX + GAP_PX) + GAP_PX
    lines = textwrap.wrap(title, max(40, (width - 2 * EDGE_PX) // 9))
    head = 2 * EDGE_PX + LINE_PX * len(lines) + LINE_PX
    captioned = any(any(captions) for _, _, captions in columns)
    step = TILE_PX + (CAPTION_PX if captioned else GAP_PX)
    height = head + step * len(names) + EDGE_PX
    figure, axes = create_sheet(width, height)
    draw_text(axes, EDGE_PX, EDGE_PX, "\n".join(lines), va="top", size=11, weight="bold", linespacing=1.3)
    for row, name in enumerate(names):
        wrapped = "\n".join(textwrap.wrap(name, 22, max_lines=4, placeholder=f" {ELLIPSIS}"))
        draw_text(axes, EDGE_PX, head + row * step + TILE_PX / 2, wrapped, va="center")
    for index, (heading, images, captions) in enumerate(columns):
        apart = GAP_PX if index == 0 else 0  # the original's column
        left = EDGE_PX + LEFT_PX + index * (TILE_PX + GAP_PX) - apart
        draw_text(axes, left, head - 5, heading, va="baseline")
        for row, caption in enumerate(captions):
            top = head + row * step
            _draw_tile(axes, images[row], left, top)
            draw_text(axes, left, top + TILE_PX + 2, shorten_name(caption, 25), va="top", size=7)
    save_figure(figure, file)


def _draw_tile(axes: Axes, image: Tensor, left: float, top: float) -> None:
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    tile = Image.fromarray(pixels).resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC)
    axes.imshow(tile, extent=(left, left + TILE_PX, top + TILE_PX, top), aspect="auto", interpolation="none")
