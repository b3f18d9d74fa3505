"""Photos and cached features as datasets whose item is a whole batch."""

import os
from typing import NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from carvision.data.decode import empty_squares, load_decoder, read_square
from carvision.data.images import BLANK, WHOLE, BadImage, Preprocessing, read_file
from carvision.data.paths import file_of
from carvision.data.table import BOX, Classes, Table

# Photos: the dataset whose item is a whole batch.

Key = tuple[int, int]  # row of the table, epoch (-1: not training)
PADDING: Key = (-1, -1)  # a place of a batch without a photo, so that all batches have the same size


class Batch(TypedDict):
    """A batch of photos, or of features kept of them.

    images: uint8 (B, 3, H, W); kept: in their place what Classifier.below gives of them.
    targets: {label: int64 (B,), UNKNOWN where not known; or float32 (B,) with NaN for a Number}.
    index: int64 (B,), rows of the table, -1 for PADDING.
    draws: float32 (B, num_draws) in [0, 1): the chance of the augmentation on the device.
    valid: bool (B,), false for photos that can't be read, and for PADDING.
    bad: (row, reason) of the photos that can't be read; only until the data module has reported them.
    """

    images: NotRequired[Tensor]
    kept: NotRequired[Tensor]
    targets: dict[str, Tensor]
    index: Tensor
    draws: Tensor
    valid: Tensor
    bad: NotRequired[list[tuple[int, str]]]


class Photos(Dataset):
    """Batches of photos. Item: a list of Keys -> a Batch with images.

    A photo's randomness depends on (seed, epoch, row) alone, so a run is the same at any number of workers.
    crop_scale: range of the area of the random crop in training, as a fraction; crop_ratio: of its aspect.
    """

    def __init__(
        self,
        table: Table,
        preprocessing: Preprocessing,
        crop_to_box: bool,
        crop_scale: tuple[float, float],
        crop_ratio: tuple[float, float],
        num_draws: int,
        seed: int,
    ):
        # Arrays rather than lists of objects: a forked worker that counts references to a million strings
        # would copy all the memory that holds them.
        self.paths = np.char.encode(table.rows["path"].to_numpy(dtype=str), "utf-8", "surrogateescape")
        self.root, self.packed = table.root, table.packed
        if self.packed:
            self.packed.seed = seed
        self.boxes = table.rows[BOX].to_numpy(np.float32) if crop_to_box else None
        self.targets = {
            name: torch.from_numpy(
                table.rows[name].to_numpy(np.int64 if isinstance(label, Classes) else np.float32, copy=True)
            )
            for name, label in table.labels.items()
        }
        self.preprocessing = preprocessing
        self.crop_scale, self.crop_ratio = crop_scale, crop_ratio
        self.num_draws = num_draws
        self.seed = seed
        load_decoder()  # once, before the processes that read photos are started

    def path(self, row: int) -> str:
        """Of the photo of a row, as the table has it."""
        return self.paths[row].decode("utf-8", "surrogateescape")

    def place(self, row: int) -> str:
        """Where the photo lies, for messages."""
        path = self.path(row)
        return str(self.packed.photo(row, path)) if self.packed else os.path.join(self.root, path)  # noqa: PTH118

    def num_bytes(self, batch_size: int) -> int:
        """Of a batch's images."""
        return batch_size * 3 * self.preprocessing.size_px**2

    def __getitem__(self, keys: list[Key]) -> Batch:
        images = empty_squares(len(keys), self.preprocessing.size_px)
        draws = np.zeros((len(keys), self.num_draws), np.float32)
        valid = np.ones(len(keys), bool)
        bad: list[tuple[int, str]] = []
        for place, (row, epoch) in enumerate(keys):
            if row < 0:
                images[place], valid[place] = BLANK, False
                continue
            window, shift = WHOLE, 0.5
            if epoch >= 0:
                random = np.random.default_rng((self.seed, epoch, row))
                window, shift = random_window(random, self.crop_scale, self.crop_ratio), random.random()
                draws[place] = random.random(self.num_draws, np.float32)
            try:
                data = self.packed.read(row, epoch) if self.packed else read_file(file_of(self.root, self.path(row)))
                box = None if self.boxes is None else self.boxes[row]
                read_square(data, self.preprocessing, images[place], box, window, shift)
            except BadImage as reason:
                images[place], valid[place] = BLANK, False
                bad.append((row, str(reason)))
        rows = torch.tensor([row for row, _ in keys])
        return {
            "images": images,
            "targets": {name: values[rows] for name, values in self.targets.items()},
            "index": rows,
            "draws": torch.from_numpy(draws),
            "valid": torch.from_numpy(valid),
            "bad": bad,
        }


def random_window(random: np.random.Generator, scale: tuple, ratio: tuple) -> tuple[float, float, float, float]:
    """A part of the photo as fractions (left, top, right, bottom): area uniform in `scale`, aspect
    log-uniform in `ratio`, both relative to the region it is cut from, place uniform."""
    area, log_ratio, x, y = random.random(4)
    area = scale[0] + area * (scale[1] - scale[0])
    aspect = np.exp(np.log(ratio[0]) + log_ratio * (np.log(ratio[1]) - np.log(ratio[0])))
    wide, high = min(1.0, np.sqrt(area * aspect)), min(1.0, np.sqrt(area / aspect))
    left, top = x * (1 - wide), y * (1 - high)
    return left, top, left + wide, top + high


# Batches of features in place of pixels.


class KeptPhotos(Dataset):
    """As Photos, whose batches these are, with "kept" in place of "images".

    rows: (N, ...), of each photo that is kept what Classifier.below gives; a batch takes B of them as "kept".
    places: int64, of each photo of the split its row of them. bad: {row of the split: why the photo can't be read}.
    targets: those of the split.
    """

    def __init__(self, rows: Tensor, places: np.ndarray, bad: dict[int, str], targets: dict[str, Tensor]):
        self.rows, self.places, self.bad, self.targets = rows, torch.from_numpy(places), bad, targets

    def __getitem__(self, keys: list[Key]) -> Batch:
        index = torch.tensor([row for row, _ in keys])
        kept = self.rows[self.places[index]]  # of PADDING, as of targets, the last photo's, which does not count
        if kept.ndim == 4:  # as the backbone has given it
            kept = kept.contiguous(memory_format=torch.channels_last)
        bad = [(row, self.bad[row]) for row in index.tolist() if row in self.bad]
        valid = index >= 0
        if bad:
            valid &= torch.tensor([row not in self.bad for row in index.tolist()])
        return {
            "kept": kept,
            "targets": {name: values[index] for name, values in self.targets.items()},
            "index": index,
            "draws": torch.zeros(len(keys), 0),
            "valid": valid,
            "bad": bad,
        }
