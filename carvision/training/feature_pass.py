"""Run photos once through the backbone, shared by all processes of a run, and store the features in a file or in
memory."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from carvision.data.datamodule import PhotoDataModule
from carvision.data.photos import PADDING, Key
from carvision.data.table import Table
from carvision.data.transforms import to_float
from carvision.training.feature_files import FeatureFileWriter, Features, make_room, open_features
from carvision.training.lit_classifier import LitClassifier
from carvision.training.many_processes import gather_objects, gather_rows
from carvision.training.stopping import Stopping

log = logging.getLogger(__name__)

# On the CPU, small batches keep activations in the processor's cache: MobileNetV2 0.35 at 224 px took 9 ms a photo,
# against 13 to 16 ms in batches of 64, with the same bits.
CPU_SUBBATCH_SIZE = 16
MAX_MEMORY_BYTES = 2e9  # of features kept in memory if they can't be stored on the disk


def compute_features(
    lit: LitClassifier, data: PhotoDataModule, table: Table, file: Path, max_bytes: float
) -> Features | None:
    """Compute the features of all photos of the table, each process its share; the first process of each machine writes
    `file`.

    max_bytes: limit of the file's folder. Features that can't be stored on the disk are kept in memory; returns None if
    they are too large for that, too. Raises InputError for an unreadable photo with data.on_bad_image=error.
    """
    began, num = time.perf_counter(), len(table)
    log.info("computing the features of %s photos, once", f"{num:,}")
    new, rows, own_bad, problem = None, None, {}, ""
    try:
        for start, values in backbone_outputs(lit, data, table, own_bad):
            if start == 0:
                shape, dtype = (num, *values.shape[1:]), str(values.dtype).removeprefix("torch.")
                if data.trainer.local_rank == 0:
                    new, problem = _open_writer(file, shape, dtype, max_bytes)
                problem = _first_problem(problem)
                if problem and (size := num * values[0].nbytes) > MAX_MEMORY_BYTES:
                    log.warning("features of %.1f GB can't be cached: %s; continuing without", size / 1e9, problem)
                    return None
                rows = new.rows if new else np.empty(shape, dtype) if problem else None
            if rows is not None:
                rows[start : start + len(values)] = values.numpy()
        bad = {row: reason for part in gather_objects(own_bad) for row, reason in part.items()}
        if new:
            try:
                new.finish(bad)
            except OSError as error:
                problem = _write_error(file, error)
    finally:
        if new:
            new.abandon()
    seconds, late = time.perf_counter() - began, _first_problem(problem)
    if late:
        log.warning("features of %s photos in %.1f s, for this run alone: %s", f"{num:,}", seconds, late)
        return None if rows is None else Features(torch.from_numpy(np.array(rows)), bad)
    log.info("features of %s photos in %.1f s, %.1f MB: %s", f"{num:,}", seconds, file.stat().st_size / 1e6, file)
    return open_features(file)


def _open_writer(
    file: Path, shape: tuple[int, ...], dtype: str, max_bytes: float
) -> tuple[FeatureFileWriter | None, str]:
    """Return a writer for the file, or None and the reason why it can't be written."""
    needed = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if needed > max_bytes:
        limit = f"features.max_gb={max_bytes / 1e9:g} is less than {needed / 1e9:.3g}"
        return None, limit if max_bytes else "nothing is cached on the disk"
    try:
        make_room(file.parent, max_bytes, needed)
        return FeatureFileWriter(file, shape, dtype), ""
    except OSError as error:
        return None, _write_error(file, error)


def _write_error(file: Path, error: OSError) -> str:
    return f"{file.parent} can't store them ({error.strerror or error}); features.dir= names another folder"


def _first_problem(problem: str) -> str:
    """Return the first problem that any process has; "" without one."""
    return next(filter(None, gather_objects(problem)), "")


@torch.no_grad()
def backbone_outputs(
    lit: LitClassifier, data: PhotoDataModule, table: Table, bad: dict[int, str]
) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, features on the CPU) batch by batch for all photos of the table in order, the same in every
    process.

    Adds {row: reason} to `bad` for photos that this process could not read. Raises Stopped when the run is to stop.
    """
    trainer, model = data.trainer, lit.model
    photos = data.create_photos(table)
    batches = padded_batches(len(table), data.batch_size, trainer.global_rank, trainer.world_size)
    stopping = next((hook for hook in trainer.callbacks if isinstance(hook, Stopping)), None)
    start, was_training = 0, model.training
    model.eval()
    try:
        for batch in data.create_loader(photos, batches):
            for row, reason in batch.pop("bad"):
                data.meet_bad_image(photos, row, reason)
                bad[row] = reason
            batch = data.transfer_batch_to_device(batch, trainer.strategy.root_device, 0)
            images = batch["images"]
            parts = images.split(CPU_SUBBATCH_SIZE) if images.device.type == "cpu" else [images]
            with trainer.precision_plugin.forward_context():
                values = torch.cat([model.below(lit.normalise(to_float(part))) for part in parts])
            values = gather_rows(values if values.dtype == torch.float64 else values.float())
            yield start, values[: len(table) - start].cpu()
            start += len(values)
            if stopping:
                stopping.stop_between_epochs()
    finally:
        model.train(was_training)


def padded_batches(num: int, batch_size: int, rank: int, world_size: int) -> list[list[Key]]:
    """Return one process's batches: rows 0 to num - 1 are dealt to all processes in turn, in padded batches of one
    size."""
    width = batch_size * world_size
    batches = []
    for start in range(0, num, width):
        rows = range(start, min(start + width, num))[rank::world_size]
        batches.append([(row, -1) for row in rows] + [PADDING] * (batch_size - len(rows)))
    return batches
