"""The outputs of a network for a table's photos, and the predictions of an evaluation, by one process or by several."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from carvision.data.images import none_usable, unusable
from carvision.data.packs.read import PackedPhoto, PackedPhotos
from carvision.data.paths import file_of
from carvision.data.table import BOX, UNKNOWN, Table
from carvision.files.progress import show_progress
from carvision.inference.predictor import Batch, PixelNetwork, Predictor, predict_items


class ReadingConfig(TypedDict):
    """The keys of the group data that say how photos are read."""

    batch_size: int
    num_workers: int
    crop_to_box: bool
    on_bad_image: str


@dataclass(frozen=True)
class Predictions:
    """Logits and targets of N photos, each once, all on the CPU.

    paths: relative to root. boxes: float32 (N, 4), what the network saw, as Table has them, NaN for the whole photo;
    None if it saw no boxes. logits {head: float32 (N, C)}, for a number (N, 1) in the label's unit. targets
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
        """Return the photo of that row, to be opened: a path, or a photo of a pack."""
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


def rank_and_world_size() -> tuple[int, int]:
    """Return this process' rank and the number of processes that torchrun started; (0, 1) for a single process."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def boxes_of(table: Table, data: ReadingConfig) -> np.ndarray | None:
    """Return the boxes to read, float32 (N, 4), NaN for a whole photo; None for whole photos alone."""
    return table.rows[BOX].to_numpy(np.float32, copy=True) if data["crop_to_box"] and table.has_boxes else None


def predict_rows(
    network: PixelNetwork, table: Table, rows: Sequence[int] | np.ndarray, data: ReadingConfig, device: str, what: str
) -> Iterator[Batch]:
    """Yield the network's outputs for these rows of the table, batch by batch.

    what: text of the progress bar, which the first of several processes shows. Raises InputError for an unusable photo
    if on_bad_image is "error".
    """
    boxes = boxes_of(table, data)
    items = ((table.photo(row), None if boxes is None else boxes[row]) for row in rows)
    is_first = rank_and_world_size()[0] == 0
    progress = show_progress(len(rows), 0, sys.stderr.isatty(), what) if is_first else nullcontext(lambda num: None)
    with progress as advance:
        for batch in predict_items(network, items, device, data["batch_size"], data["num_workers"]):
            for (photo, _), reason in zip(batch.items, batch.reasons, strict=True):
                if reason and data["on_bad_image"] == "error":
                    raise unusable(photo, reason)
            advance(len(batch.items))
            yield batch


def predict_table(
    predictor: Predictor,
    table: Table,
    targets: dict[str, Tensor],
    data: ReadingConfig,
    device: str,
    what: str,
    process: tuple[int, int] = (0, 1),
) -> tuple[Predictions | None, dict[str, str]]:
    """Predict all photos of the table, each once; also return {path: reason} of the unusable ones.

    process: this one's rank and the number of those that call this together. Each takes its share; the first returns
    the result, the others None. targets: as in Predictions, in the table's order. what: text of the progress bar.
    Raises InputError for an unusable photo if on_bad_image is "error", else if no photo is usable.
    """
    rank, world_size = process
    rows = (table.packed.shard_by_shard() if table.packed else np.arange(len(table)))[rank::world_size]
    if device == "auto" and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    parts, reasons = [], []
    for batch in predict_rows(predictor, table, rows, data, device, what):
        parts.append(batch.logits)
        reasons += batch.reasons
    logits = {name: torch.cat([part[name] for part in parts]) for name in predictor.labels} if parts else {}
    gathered: list | None = [(rows, logits, reasons)]
    if world_size > 1:
        gathered = [None] * world_size if rank == 0 else None
        torch.distributed.gather_object((rows, logits, reasons), gathered)
    if gathered is None:
        return None, {}
    order = np.argsort(np.concatenate([part[0] for part in gathered]))
    whole = [part[1] for part in gathered if part[1]]
    logits = {name: torch.cat([part[name] for part in whole])[order] for name in predictor.labels}
    reasons = np.array([reason for part in gathered for reason in part[2]], object)[order]
    paths = table.rows["path"].tolist()
    if reasons.all():
        raise none_usable(what, len(table), paths[0], reasons[0])
    bad = {paths[i]: reasons[i] for i in np.flatnonzero(reasons)}
    valid = torch.from_numpy(np.ones(len(table), bool) if data["on_bad_image"] == "blank" else ~reasons.astype(bool))
    boxes, temperature = boxes_of(table, data), dict(predictor.temperature)
    return Predictions(paths, table.root, boxes, logits, targets, valid, temperature, table.packed), bad
