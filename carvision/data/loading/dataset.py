"""Datasets of photos and of cached features, whose items are whole batches."""

import os
from typing import NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from carvision.data.decode import WHOLE, decode_into, empty_images
from carvision.data.images import BLANK, BadImage, Preprocessing, read_file
from carvision.data.paths import file_of
from carvision.data.table import BOX, Classes, Table

Key = tuple[int, int]  # row of the table, epoch (-1: not training)
PADDING: Key = (-1, -1)  # fills up a batch, so that all batches have the same size


class Batch(TypedDict):
    """A batch of photos, or of their cached features.

    images: uint8 (B, 3, H, W); or instead features: float (B, ...), the outputs of Classifier.below.
    targets: {label: int64 (B,), UNKNOWN if not known; or float32 (B,) with NaN for a Number}.
    index: int64 (B,), rows of the table, -1 for PADDING.
    draws: float32 (B, num_draws) in [0, 1): the random numbers for the augmentation on the device.
    valid: bool (B,), false for PADDING and, unless on_bad_image=blank, for unreadable photos.
    bad: (row, reason) of the unreadable photos, until the data module has reported them.
    """

    images: NotRequired[Tensor]
    features: NotRequired[Tensor]
    targets: dict[str, Tensor]
    index: Tensor
    draws: Tensor
    valid: Tensor
    bad: NotRequired[list[tuple[int, str]]]


class PhotoDataset(Dataset):
    """Batches of photos: dataset[list of Keys] -> Batch with images.

    A photo's randomness depends only on (seed, epoch, row), so a run is the same with any number of workers.
    crop_scale, crop_ratio: ranges of the random training crop's area, as a fraction, and aspect ratio. num_draws:
    random numbers per photo for the augmentation.
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
        # Arrays rather than lists of objects: a forked worker's reference counts on a million strings would copy all
        # their memory
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

    def path(self, row: int) -> str:
        """Return the photo's path in the table."""
        return self.paths[row].decode("utf-8", "surrogateescape")

    def location(self, row: int) -> str:
        """Return where the photo lies, for messages."""
        path = self.path(row)
        return str(self.packed.photo(row, path)) if self.packed else os.path.join(self.root, path)  # noqa: PTH118

    def num_bytes(self, batch_size: int) -> int:
        """Return the size of a batch's images."""
        return batch_size * 3 * self.preprocessing.size_px**2

    def __getitem__(self, keys: list[Key]) -> Batch:
        images = empty_images(len(keys), self.preprocessing.size_px)
        draws = np.zeros((len(keys), self.num_draws), np.float32)
        valid = np.ones(len(keys), bool)
        bad: list[tuple[int, str]] = []
        for i, (row, epoch) in enumerate(keys):
            if row < 0:
                images[i], valid[i] = BLANK, False
                continue
            window, shift = WHOLE, 0.5
            if epoch >= 0:
                random = np.random.default_rng((self.seed, epoch, row))
                window, shift = random_window(random, self.crop_scale, self.crop_ratio), random.random()
                draws[i] = random.random(self.num_draws, np.float32)
            try:
                data = self.packed.read(row, epoch) if self.packed else read_file(file_of(self.root, self.path(row)))
                box = None if self.boxes is None else self.boxes[row]
                decode_into(data, self.preprocessing, images[i], box, window, shift)
            except BadImage as reason:
                images[i], valid[i] = BLANK, False
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
    """Draw a random crop as fractions (left, top, right, bottom) of the photo or box: area uniform in `scale`, aspect
    ratio log-uniform in `ratio`, position uniform."""
    area, log_ratio, x, y = random.random(4)
    area = scale[0] + area * (scale[1] - scale[0])
    aspect = np.exp(np.log(ratio[0]) + log_ratio * (np.log(ratio[1]) - np.log(ratio[0])))
    wide, high = min(1.0, np.sqrt(area * aspect)), min(1.0, np.sqrt(area / aspect))
    left, top = x * (1 - wide), y * (1 - high)
    return left, top, left + wide, top + high


class CachedFeatures(Dataset):
    """Batches like those of PhotoDataset, with features instead of images.

    features: (N, ...), the outputs of Classifier.below for all cached photos. rows: int64, for each photo of the split
    its row of `features`. bad: {row of the split: why the photo can't be read}. targets: those of the split.
    """

    def __init__(self, features: Tensor, rows: np.ndarray, bad: dict[int, str], targets: dict[str, Tensor]):
        self.features, self.rows, self.bad, self.targets = features, torch.from_numpy(rows), bad, targets

    def __getitem__(self, keys: list[Key]) -> Batch:
        index = torch.tensor([row for row, _ in keys])
        features = self.features[self.rows[index]]  # for PADDING the last photo's, as for targets; they don't count
        if features.ndim == 4:  # the backbone's own memory format
            features = features.contiguous(memory_format=torch.channels_last)
        bad = [(row, self.bad[row]) for row in index.tolist() if row in self.bad]
        valid = index >= 0
        if bad:
            valid &= torch.tensor([row not in self.bad for row in index.tolist()])
        return {
            "features": features,
            "targets": {name: values[index] for name, values in self.targets.items()},
            "index": index,
            "draws": torch.zeros(len(keys), 0),
            "valid": valid,
            "bad": bad,
        }
