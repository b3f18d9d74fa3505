"""Batches of features in place of pixels."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from carvision.data.photos import Batch, Key


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
