"""The predictions an evaluation is computed from: the logits of every photo and its known labels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from carvision.data.photo_paths import file_of
from carvision.data.shards import PackedPhoto, PackedPhotos
from carvision.data.table import UNKNOWN


@dataclass(frozen=True)
class Predictions:
    """Logits and targets of N photos, each once, all on the CPU.

    paths: relative to root. boxes: float32 (N, 4), left, top, right, bottom in pixels, NaN for a photo without one;
    None if the data have no boxes. logits {head: float32 (N, C)}, for a number (N, 1) in the label's unit. targets
    {head: int64 (N,), UNKNOWN if not known}, for a number {head: float32 (N,), NaN if not known}. valid bool (N,):
    False for an unreadable photo, which counts nowhere. temperature {head: float} of heads with classes: divides their
    logits before the softmax; 1 for a missing head. packed: the same photos, if they are in a pack.
    """

    paths: list[str]
    root: Path | str
    boxes: np.ndarray | None
    logits: dict[str, Tensor]
    targets: dict[str, Tensor]
    valid: Tensor
    temperature: dict[str, float]
    packed: PackedPhotos | None = None

    def photo(self, row: int) -> str | PackedPhoto:
        """Return what opens the photo of that row: a path, or a photo of a pack."""
        path = self.paths[row]
        return self.packed.photo(row, path) if self.packed else file_of(self.root, path)

    def known(self, head: str) -> Tensor:
        """Return bool (N,): photos that could be read and whose label is known."""
        targets = self.targets[head]
        return self.valid & (~targets.isnan() if targets.is_floating_point() else targets != UNKNOWN)

    def probs(self, head: str, calibrated: bool = True) -> Tensor:
        """Return probabilities, float32 (N, C): the softmax of the logits, divided by the temperature if calibrated."""
        temperature = self.temperature.get(head, 1.0) if calibrated else 1.0
        return torch.softmax(self.logits[head].float() / temperature, dim=1)
