"""What an evaluation is made of: the logits of every photo, and what is known of it."""

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
    """Of N photos, each once, all on the CPU.

    paths: relative to root. boxes: float32 (N, 4), left, top, right, bottom in pixels, NaN where a photo has none;
    None where the data have no boxes. logits {head: float32 (N, C)}, of a number (N, 1) in the label's unit.
    targets {head: int64 (N,), UNKNOWN where not known}, of a number {head: float32 (N,), NaN where not known}.
    valid bool (N,): False where the photo could not be read; it counts nowhere. temperature {head: float}, of heads
    with classes: what their logits are divided by for probabilities; a head that is missing has 1.
    packed: the same photos, where they are of a pack.
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
        """What opens it."""
        path = self.paths[row]
        return self.packed.photo(row, path) if self.packed else file_of(self.root, path)

    def known(self, head: str) -> Tensor:
        """bool (N,): photos that could be read and whose label is known."""
        targets = self.targets[head]
        return self.valid & (~targets.isnan() if targets.is_floating_point() else targets != UNKNOWN)

    def probs(self, head: str, calibrated: bool = True) -> Tensor:
        """float32 (N, C): softmax of the logits, divided by the head's temperature if calibrated."""
        temperature = self.temperature.get(head, 1.0) if calibrated else 1.0
        return torch.softmax(self.logits[head].float() / temperature, dim=1)
