"""Datasets of photos and of cached features, for Loader: whole batches, filled in parts."""

import os
from typing import NotRequired, TypedDict, cast

import numpy as np
import torch
from torch import Tensor

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
    reasons: why each photo is unreadable, else None, until the data module has reported them.
    """

    images: NotRequired[Tensor]
    features: NotRequired[Tensor]
    targets: dict[str, Tensor]
    index: Tensor
    draws: Tensor
    valid: Tensor
    reasons: NotRequired[list[str | None]]


class PhotoDataset:
    """Batches of photos: dataset[list of Keys] -> Batch with images. begin, read: see loader.Photos.

    A photo's randomness depends only on (seed, epoch, row), so a run is the same with any number of threads.
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
        self.paths = table.rows["path"].tolist()
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

    def location(self, row: int) -> str:
        """Return where the photo lies, for messages."""
        path = self.paths[row]
        return str(self.packed.photo(row, path)) if self.packed else os.path.join(self.root, path)  # noqa: PTH118

    def __getitem__(self, keys: list[Key]) -> Batch:
        batch = self.begin(keys)
        self.read(batch, keys, 0)
        return batch

    def begin(self, keys: list[Key], pin_memory: bool = False) -> Batch:
        rows = torch.tensor([row for row, _ in keys])
        batch: Batch = {
            "targets": {name: values[rows] for name, values in self.targets.items()},
            "index": rows,
            "draws": torch.zeros(len(keys), self.num_draws),
            "valid": rows >= 0,
        }
        batch = pinned(batch) if pin_memory else batch
        images = empty_images(len(keys), self.preprocessing.size_px, pin_memory)
        return {**batch, "images": images, "reasons": [None] * len(keys)}

    def read(self, batch: Batch, keys: list[Key], start: int) -> None:
        images = batch["images"]
        crops = self._draw_crops(keys, batch["draws"][start:].numpy())
        for i, ((row, epoch), (*window, shift)) in enumerate(zip(keys, crops, strict=True), start):
            if row < 0:
                images[i] = BLANK
                continue
            try:
                data = self.packed.read(row, epoch) if self.packed else read_file(file_of(self.root, self.paths[row]))
                box = None if self.boxes is None else self.boxes[row]
                decode_into(data, self.preprocessing, images[i], box, window, shift)
            except BadImage as reason:
                images[i], batch["valid"][i] = BLANK, False
                batch["reasons"][i] = str(reason)

    def _draw_crops(self, keys: list[Key], draws: np.ndarray) -> list[list[float]]:
        """Return each photo's window and shift (left, top, right, bottom, shift), see `wanted_part`, and fill its row
        of `draws`."""
        values = np.empty((len(keys), 5))
        training = [i for i, (row, epoch) in enumerate(keys) if row >= 0 and epoch >= 0]
        for i in training:
            row, epoch = keys[i]
            random = np.random.default_rng((self.seed, epoch, row))
            random.random(out=values[i])
            random.random(dtype=np.float32, out=draws[i])
        crops = np.tile([*WHOLE, 0.5], (len(keys), 1))
        crops[training, :4] = random_windows(values[training, :4], self.crop_scale, self.crop_ratio)
        crops[training, 4] = values[training, 4]
        return crops.tolist()


def pinned(batch: Batch) -> Batch:
    """Copy a batch's tensors to memory from which a GPU can copy them."""
    found = {name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in batch.items()}
    return cast(Batch, {**found, "targets": {name: value.pin_memory() for name, value in batch["targets"].items()}})


def random_windows(uniform: np.ndarray, scale: tuple, ratio: tuple) -> np.ndarray:
    """Return random crops as fractions (left, top, right, bottom) of the photo or box, (N, 4): area uniform in `scale`,
    aspect ratio log-uniform in `ratio`, position uniform. uniform: random numbers in [0, 1), (N, 4)."""
    area, log_ratio, x, y = uniform.T
    area = scale[0] + area * (scale[1] - scale[0])
    aspect = np.exp(np.log(ratio[0]) + log_ratio * (np.log(ratio[1]) - np.log(ratio[0])))
    wide, high = np.sqrt(area * aspect).clip(max=1.0), np.sqrt(area / aspect).clip(max=1.0)
    left, top = x * (1 - wide), y * (1 - high)
    return np.stack([left, top, left + wide, top + high], axis=1)


class CachedFeatures:
    """Batches like those of PhotoDataset, with features instead of images.

    features: (N, ...), the outputs of Classifier.below for all cached photos. rows: int64, for each photo of the split
    its row of `features`. bad: {row of the split: why the photo can't be read}. targets: those of the split.
    """

    def __init__(self, features: Tensor, rows: np.ndarray, bad: dict[int, str], targets: dict[str, Tensor]):
        self.features, self.rows, self.bad, self.targets = features, torch.from_numpy(rows), bad, targets

    def begin(self, keys: list[Key], pin_memory: bool) -> Batch:
        return pinned(self[keys]) if pin_memory else self[keys]

    def read(self, batch: Batch, keys: list[Key], start: int) -> None:
        """Do nothing: `begin` has filled the batch."""

    def __getitem__(self, keys: list[Key]) -> Batch:
        index = torch.tensor([row for row, _ in keys])
        features = self.features[self.rows[index]]  # for PADDING the last photo's, as for targets; they don't count
        if features.ndim == 4:  # the backbone's own memory format
            features = features.contiguous(memory_format=torch.channels_last)
        reasons = [self.bad.get(row) for row, _ in keys]
        return {
            "features": features,
            "targets": {name: values[index] for name, values in self.targets.items()},
            "index": index,
            "draws": torch.zeros(len(keys), 0),
            "valid": (index >= 0) & torch.tensor([reason is None for reason in reasons]),
            "reasons": reasons,
        }
