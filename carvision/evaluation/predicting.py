"""Compute the logits of a table's photos, in one process or in several that share the photos."""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from carvision.data.images import none_usable, unusable
from carvision.data.table import BOX, Table
from carvision.evaluation.predictions import Predictions
from carvision.inference.predictor import Predictor
from carvision.inference.progress import show_progress
from carvision.inference.reading import predict_items

log = logging.getLogger(__name__)


def rank_and_world_size() -> tuple[int, int]:
    """Return this process' rank and the number of processes that torchrun started; (0, 1) for a single process."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def predict_table(
    predictor: Predictor, table: Table, targets: dict, data: dict, device: str, what: str
) -> tuple[Predictions | None, dict[str, str]]:
    """Predict all photos of the table, each once; also return {path: reason} of the unusable ones.

    With several processes each takes its share; the first returns the result, the others None. data: its keys
    batch_size, num_workers, crop_to_box and on_bad_image apply. what: text of the progress bar. Raises InputError for
    an unusable photo if on_bad_image is "error", else if no photo is usable.
    """
    rank, world_size = rank_and_world_size()
    rows = (table.packed.shard_by_shard() if table.packed else np.arange(len(table)))[rank::world_size]
    boxes = table.rows[BOX].to_numpy(np.float32, copy=True) if data["crop_to_box"] and table.has_boxes else None
    paths = table.rows["path"].tolist()
    items = ((table.photo(row), None if boxes is None else boxes[row]) for row in rows)
    if device == "auto" and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    parts, reasons = [], []
    with _progress(rank, len(rows), what) as advance:
        for batch in predict_items(predictor, items, device, data["batch_size"], data["num_workers"]):
            bad = next((i for i, reason in enumerate(batch.reasons) if reason), None)
            if bad is not None and data["on_bad_image"] == "error":
                raise unusable(batch.items[bad][0], batch.reasons[bad])
            parts.append(batch.logits)
            reasons += batch.reasons
            advance(len(batch.items))
    logits = {name: torch.cat([part[name] for part in parts]) for name in predictor.labels} if parts else {}
    gathered = _gather((rows, logits, reasons), rank, world_size)
    if gathered is None:
        return None, {}
    order = np.argsort(np.concatenate([part[0] for part in gathered]))
    whole = [part[1] for part in gathered if part[1]]
    logits = {name: torch.cat([part[name] for part in whole])[order] for name in predictor.labels}
    reasons = np.array([reason for part in gathered for reason in part[2]], object)[order]
    if reasons.all():
        raise none_usable(what, len(table), paths[0], reasons[0])
    bad = {paths[i]: reasons[i] for i in np.flatnonzero(reasons)}
    counts = np.ones(len(table), bool) if data["on_bad_image"] == "blank" else ~reasons.astype(bool)
    temperature = dict(predictor.temperature)
    predictions = Predictions(
        paths, table.root, boxes, logits, targets, torch.from_numpy(counts), temperature, table.packed
    )
    return predictions, bad


def _gather(part: tuple, rank: int, world_size: int) -> list[tuple] | None:
    """Return the parts of all processes on the first one, None on the others."""
    if world_size == 1:
        return [part]
    parts = [None] * world_size if rank == 0 else None
    torch.distributed.gather_object(part, parts)
    return parts


def _progress(rank: int, total: int, what: str) -> AbstractContextManager[Callable[[int], None]]:
    """Show progress in the first process only."""
    return show_progress(total, 0, sys.stderr.isatty(), what) if rank == 0 else nullcontext(lambda num: None)
