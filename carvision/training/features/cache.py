"""Cache the features of frozen backbones: computed once, reused by every epoch and by later runs.

If a phase trains no layer of the backbone and every epoch sees the same photos, the backbone's output is a function of
the photo. One pass before the phase, shared by all processes, computes it and stores it in a file that later runs find
(see store). Metrics and weights equal those of training through the backbone: to the bit if the same photos form
batches of the same size; else up to the rounding of convolutions, which depends on the batch size.
"""

import contextlib
import hashlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL
import simplejpeg
import timm
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

import carvision
from carvision.augment.pipeline import to_float
from carvision.config.schema import random_transforms, reason_not_cacheable
from carvision.data.loading.datamodule import PhotoDataModule
from carvision.data.loading.dataset import PADDING, CachedFeatures, Key
from carvision.data.paths import file_of, text_of_path
from carvision.data.table import BOX, LOCATION, SOURCE, Table
from carvision.errors import InputError
from carvision.files.arrays import ArrayWriter
from carvision.files.progress import show_progress
from carvision.training.callbacks import Clock
from carvision.training.distributed.collectives import any_process, gather_objects, gather_rows
from carvision.training.features.store import Features, digest_of_tensors, feature_file, make_room, open_features
from carvision.training.module import LitClassifier, callbacks_of
from carvision.training.optim import Phase
from carvision.training.run.stopping import Stopping

log = logging.getLogger(__name__)

FORMAT = 4  # raise it with every change of how features are computed, or of what the note of their file has

# On the CPU, small batches keep activations in the processor's cache: MobileNetV2 0.35 at 224 px took 9 ms a photo,
# against 13 to 16 ms in batches of 64, with the same bits.
CPU_SUBBATCH_SIZE = 16
MAX_MEMORY_BYTES = 2e9  # of features kept in memory if they can't be stored on the disk


def splits_to_cache(cfg: dict, phases: list[Phase]) -> list[str]:
    """Return the splits whose photos cached features replace. Raise InputError if features.keep=true and there are
    none."""
    wanted, changing, forbidden = cfg["features"]["keep"], random_transforms(cfg), reason_not_cacheable(cfg)
    frozen = [phase["train_layers"] == "none" for phase in phases]
    if wanted is True and (forbidden or changing):
        raise InputError(f"features.keep: true is not possible with {forbidden or changing}; use features.keep=auto")
    if wanted is True and not any(frozen):
        raise InputError("features.keep: true needs a phase with a frozen backbone; add model.train_layers=none")
    if wanted is False or forbidden:
        return []
    if changing and all(frozen):
        log.info(
            "the backbone is frozen, but training photos change (%s), so each epoch runs it again; "
            "augment=none caches their features and makes epochs 15 times as fast or more",
            changing,
        )
    test = ["test"] if all(frozen) and cfg["run"]["test"] else []  # the backbone stays the same until the test
    return ["val", *test] if changing else ["train", "val", *test]


class FeatureCache:
    """Call cache(split) for the split's CachedFeatures, or None if the photos themselves must be used. Set as
    PhotoDataModule.cached_features.

    linear_start: compute the features of "train" and "val" in any case. If those of no split replace its photos,
    nothing is stored on the disk. Raises InputError as splits_to_cache does.
    """

    def __init__(self, cfg: dict, lit: LitClassifier, data: PhotoDataModule, clock: Clock, linear_start: bool):
        assert data.table is not None  # the datamodule is set up
        self.lit, self.data, self.table, self.clock = lit, data, data.table, clock
        self.cached = splits_to_cache(cfg, lit.phases)
        computed = {*self.cached, *(["train", "val"] if linear_start else [])}
        self.splits = [split for split in data.datasets if split in computed]  # all in one file
        self.wanted_folder, self.max_bytes = cfg["features"]["dir"], 1e9 * cfg["features"]["max_gb"] * bool(self.cached)
        self.crop_to_box, self.epoch_fraction = cfg["data"]["crop_to_box"], cfg["data"]["epoch_fraction"]
        self.opened: dict[str, Features | None] = {}  # the last ones, by their digest
        self.seconds_per_photo: float | None = None  # of the pass that computed the features last obtained

    def __call__(self, split: str) -> CachedFeatures | None:
        fitting = self.lit.trainer.state.fn == TrainerFn.FITTING
        if split not in (self.replaced(self.lit.phase) if fitting else self._stored()):
            return None
        # After training a missing file is not computed: the evaluation itself is one pass
        features = self.obtain(compute=fitting)
        return self.photos_of(features, split) if features else None

    def replaced(self, phase: Phase) -> set[str]:
        """Return the splits whose photos cached features replace in the phase."""
        is_frozen = phase["train_layers"] == "none" and phase["epochs"] * self.epoch_fraction >= 1
        return self._stored() if is_frozen else set()

    def _stored(self) -> set[str]:
        return {*self.cached} & {*self.splits}

    def photos_of(self, features: Features, split: str) -> CachedFeatures:
        """Return the split's photos as rows of `features`."""
        every, wanted = (rows["path"].to_numpy(str) for rows in (self._rows(), self.table.of_split(split).rows))
        indices = np.searchsorted(every, wanted).astype(np.int64)  # as the rows are sorted by path
        row_of = {int(index): row for row, index in enumerate(indices)}
        bad = {row_of[index]: reason for index, reason in features.bad.items() if index in row_of}
        return CachedFeatures(features.rows, indices, bad, self.data.datasets[split].targets)

    def _rows(self) -> pd.DataFrame:
        """Return the photos of all splits, sorted by path: the file does not depend on how they are split, as into
        folds."""
        rows = self.table.rows
        return rows[rows["split"].isin(self.splits)].sort_values("path").reset_index(drop=True)

    def obtain(self, compute: bool = True) -> Features | None:
        """Return the features of all photos of the splits, sorted by path, with the backbone's current weights; from
        the file, or computed. None if they are missing and `compute` is false, or too large."""
        key = self._digest()
        if any_process(key not in self.opened):
            began = time.perf_counter()
            file = feature_file(self.wanted_folder, key)
            found = open_features(file) if self.cached else None
            if any_process(found is None):
                if not compute:
                    return None
                table = replace(self.table, rows=self._rows())
                found = compute_features(self.lit, self.data, table, file, self.max_bytes)
            elif found is not None:
                log.info("features of %s photos from %s", f"{len(found.rows):,}", file)
            self.opened, self.seconds_per_photo = {key: found}, found.seconds_per_photo if found else None
            self.clock.add("features", time.perf_counter() - began)
        return self.opened[key]

    def _digest(self) -> str:
        """Return a digest of all that the features depend on."""
        trainer, table, rows = self.lit.trainer, self.table, self._rows()
        device = trainer.strategy.root_device
        on_cuda = device.type == "cuda"
        network = self.lit.model.description
        fingerprint = [
            FORMAT, carvision.__version__, torch.__version__, timm.__version__, PIL.__version__, simplejpeg.__version__,
            trainer.precision, device.type,
            torch.cuda.get_device_name(device) if on_cuda else torch.backends.cpu.get_cpu_capability(),
            network["backbone"], network["backbone_kwargs"], network["pool"], self.lit.model.learns_from_map,
            self.lit.preprocessing.as_dict(), digest_of_tensors(self.lit.model.backbone.state_dict()),
        ]  # fmt: skip
        digest = hashlib.sha256(repr(fingerprint).encode())
        if table.shards is None:
            root = os.fspath(Path(table.root).resolve())
            for path in rows["path"]:
                digest.update(f"{text_of_path(root)} {path} {_size_and_time(root, path)}\n".encode())
        else:  # independent of the pack's location
            for photo in zip(*(rows[name] for name in ("path", SOURCE, *LOCATION[2:])), strict=True):
                digest.update(f"{photo}\n".encode())
        if self.crop_to_box:
            digest.update(rows[BOX].to_numpy(np.float32).tobytes())
        return digest.hexdigest()[:32]


def _size_and_time(root: str, path: str) -> tuple[int, int]:
    try:
        stat = os.stat(file_of(root, path))  # noqa: PTH116 - creating a million Paths takes longer than the disk
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


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
    new, rows, size, own_bad, problem = None, None, 0, {}, ""
    with contextlib.ExitStack() as stack:
        advance = stack.enter_context(show_progress(num, 0, lit.trainer.is_global_zero and sys.stderr.isatty()))
        for start, values in backbone_outputs(lit, data, table, own_bad):
            advance(len(values))
            if start == 0:
                size = num * values[0].nbytes
                if lit.trainer.local_rank == 0:
                    new = ArrayWriter(file, values.numpy().dtype.name, size)
                    problem = (
                        _above_limit(size, max_bytes)
                        or _attempt(file, make_room, file.parent, max_bytes, size)
                        or _attempt(file, stack.enter_context, new)
                    )
                problem = _first_problem(problem)
                if problem and size > MAX_MEMORY_BYTES:
                    break
                if problem:
                    rows = values.new_empty(num, *values.shape[1:])
            if rows is not None:
                rows[start : start + len(values)] = values
            elif new and not problem:
                problem = _attempt(file, new.append, values.numpy())
        bad = {row: reason for part in gather_objects(own_bad) for row, reason in part.items()}
        if new and not problem:
            note = {"bad": bad, "seconds_per_photo": (time.perf_counter() - began) / num}
            problem = _attempt(file, new.finish, note)
    seconds = time.perf_counter() - began
    if rows is not None:
        log.warning("features of %s photos in %.1f s, for this run alone: %s", f"{num:,}", seconds, problem)
        return Features(rows, bad, seconds / num)
    if problem := _first_problem(problem):
        text = "features of %.1f GB can't be cached: %s; training through the backbone instead"
        log.warning(text, size / 1e9, problem)
        return None
    log.info("features of %s photos in %.1f s, %.1f MB: %s", f"{num:,}", seconds, file.stat().st_size / 1e6, file)
    return open_features(file)


def _above_limit(size: int, max_bytes: float) -> str:
    """Return why features of this size are not stored; "" if they may be."""
    if max_bytes == 0:
        return "nothing is cached on the disk"
    return f"features.max_gb={max_bytes / 1e9:g} is less than {size / 1e9:.3g}" if size > max_bytes else ""


def _attempt(file: Path, action: Callable, *arguments: Any) -> str:
    """Call action(*arguments); return why it can't write the file, or ""."""
    try:
        action(*arguments)
    except OSError as error:
        return f"{file.parent} can't store them ({error.strerror or error}); features.dir= names another folder"
    return ""


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
    trainer, model = lit.trainer, lit.model
    photos = data.create_dataset(table)
    batches = padded_batches(len(table), data.batch_size, trainer.global_rank, trainer.world_size)
    start, was_training = 0, model.training
    model.eval()
    try:
        for batch in data.create_loader(photos, batches):
            bad |= data.report_bad_images(photos, batch)
            batch = data.transfer_batch_to_device(batch, trainer.strategy.root_device, 0)
            images = batch["images"]
            parts = images.split(CPU_SUBBATCH_SIZE) if images.device.type == "cpu" else [images]
            with trainer.precision_plugin.forward_context():
                values = torch.cat([model.below(lit.normalise(to_float(part))) for part in parts])
            values = gather_rows(values if values.dtype == torch.float64 else values.float())
            yield start, values[: len(table) - start].cpu()
            start += len(values)
            for stopping in callbacks_of(trainer, Stopping):
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
