"""Feature cache for frozen backbones: computed once, reused by every epoch and by later runs.

If a phase trains no layer of the backbone and every epoch sees the same photos, the backbone's output is a function of
the photo. One pass before the phase, shared by all processes, computes it and stores it in a file that later runs find
(see feature_files). Metrics and weights equal those of training through the backbone: to the bit if the same photos
form batches of the same size; else up to the rounding of convolutions, which depends on the batch size.
"""

import hashlib
import logging
import os
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import PIL
import timm
import torch
from pytorch_lightning.trainer.states import TrainerFn

import carvision
from carvision.data.datamodule import PhotoDataModule
from carvision.data.jpeg_part import load_decoder
from carvision.data.kept_photos import KeptPhotos
from carvision.data.photo_paths import file_of, text_of_path
from carvision.data.table import BOX, PLACE, SOURCE, SPLITS
from carvision.errors import InputError
from carvision.fixed_photos import random_transforms, reason_not_cacheable
from carvision.training.clock import Clock
from carvision.training.feature_files import Features, digest_of_tensors, features_folder, open_features
from carvision.training.feature_pass import compute_features
from carvision.training.lit_classifier import LitClassifier
from carvision.training.many_processes import any_process

log = logging.getLogger(__name__)

FORMAT = 2  # raise it with every change of how features are computed


def create_feature_cache(
    cfg: dict, lit: LitClassifier, data: PhotoDataModule, clock: Clock, with_train: bool = False
) -> "FeatureCache":
    """Create the cache for PhotoDataModule.kept. with_train: also cache training photos that are augmented in training.

    Raises InputError if features.keep=true and nothing can be cached.
    """
    wanted, phases = cfg["features"]["keep"], lit.hparams.phases
    frozen = [phase for phase in phases if phase["train_layers"] == "none"]
    changing, forbidden = random_transforms(cfg), reason_not_cacheable(cfg)
    if wanted is True:
        if forbidden or changing:
            raise InputError(
                f"features.keep: true is not possible with {forbidden or changing}; use features.keep=auto"
            )
        if not frozen:
            raise InputError("features.keep: true needs a phase with a frozen backbone; add model.train_layers=none")
    cached = ("val",) if changing else ("train", "val")
    if len(frozen) == len(phases):
        if cfg["run"]["test"]:
            cached += ("test",)  # the backbone stays the same until the test
        if changing and wanted == "auto" and not forbidden:
            log.info(
                "the backbone is frozen, but training photos change (%s), so every epoch runs them through it; "
                "with augment=none their features are cached, for epochs of a fifteenth of the time or less",
                changing,
            )
    splits = tuple(split for split in SPLITS if split in cached or (with_train and split == "train"))
    return FeatureCache(cfg, lit, data, clock, splits, cached if wanted is not False and not forbidden else ())


class FeatureCache:
    """Call cache(split) for the split's KeptPhotos, or None if the photos themselves must be used. Set as
    PhotoDataModule.kept.

    splits: those whose features are computed, all in one file. cached: those whose photos the features replace; without
    any, nothing is stored on the disk.
    """

    def __init__(
        self,
        cfg: dict,
        lit: LitClassifier,
        data: PhotoDataModule,
        clock: Clock,
        splits: tuple[str, ...],
        cached: tuple[str, ...],
    ):
        self.lit, self.data, self.clock, self.cached = lit, data, clock, cached
        self.splits = tuple(split for split in splits if split in data.photos)
        self.folder = features_folder(cfg["features"]["dir"])
        self.max_bytes = 1e9 * cfg["features"]["max_gb"] * bool(cached)
        self.crop_to_box, self.epoch_fraction = cfg["data"]["crop_to_box"], cfg["data"]["epoch_fraction"]
        self.opened: dict[str, Features | None] = {}  # the last ones, by their digest

    def __call__(self, split: str) -> KeptPhotos | None:
        fitting = self.data.trainer.state.fn == TrainerFn.FITTING
        if split not in self.cached or split not in self.splits or (fitting and not self._is_worth_it()):
            return None
        # After training a missing file is not computed: the evaluation itself is one pass
        features = self.obtain(compute=fitting)
        return features and self.photos_of(features, split)

    def _is_worth_it(self) -> bool:
        phase = self.lit.phase
        return phase["train_layers"] == "none" and phase["epochs"] * self.epoch_fraction >= 1

    def photos_of(self, features: Features, split: str) -> KeptPhotos:
        """Return the split's photos as rows of `features`."""
        indices = indices_of(self._rows()["path"], self.data.table.of_split(split).rows["path"])
        row_of = {int(index): row for row, index in enumerate(indices)}
        bad = {row_of[index]: reason for index, reason in features.bad.items() if index in row_of}
        return KeptPhotos(features.rows, indices, bad, self.data.photos[split].targets)

    def _rows(self) -> pd.DataFrame:
        """Return the photos of all splits, sorted by path: the file does not depend on how they are split, as into
        folds."""
        rows = self.data.table.rows
        return rows[rows["split"].isin(self.splits)].sort_values("path").reset_index(drop=True)

    def obtain(self, compute: bool = True) -> Features | None:
        """Return the features of all photos of the splits, sorted by path, with the backbone's current weights; from
        the file, or computed. None if they are missing and `compute` is false, or too large."""
        key = self._digest()
        if any_process(key not in self.opened):
            began = time.perf_counter()
            file = self.folder / f"{key}.safetensors"
            found = open_features(file) if self.cached else None
            if any_process(found is None):
                if not compute:
                    return None
                table = replace(self.data.table, rows=self._rows())
                found = compute_features(self.lit, self.data, table, file, self.max_bytes)
            else:
                log.info("features of %s photos from %s", f"{len(found.rows):,}", file)
            self.opened = {key: found}
            self.clock.add("features", time.perf_counter() - began)
        return self.opened[key]

    def _digest(self) -> str:
        """Return a digest of all that the features depend on."""
        trainer, table, rows = self.data.trainer, self.data.table, self._rows()
        device = trainer.strategy.root_device
        on_cuda = device.type == "cuda"
        network = self.lit.model.description
        decoder = found.name if (found := load_decoder()) else "pillow"
        fingerprint = [
            FORMAT, carvision.__version__, torch.__version__, timm.__version__, PIL.__version__, decoder,
            trainer.precision, device.type,
            torch.cuda.get_device_name(device) if on_cuda else torch.backends.cpu.get_cpu_capability(),
            network["backbone"], network["backbone_kwargs"], network["pool"], self.lit.model.learns_from_map,
            self.lit.hparams.preprocessing, digest_of_tensors(self.lit.model.backbone.state_dict()),
        ]  # fmt: skip
        digest = hashlib.sha256(repr(fingerprint).encode())
        if table.shards is None:
            root = os.fspath(table.root.resolve())
            for path in rows["path"]:
                digest.update(f"{text_of_path(root)} {path} {_size_and_time(root, path)}\n".encode())
        else:  # independent of the pack's location
            for photo in zip(*(rows[name] for name in ("path", SOURCE, *PLACE[2:])), strict=True):
                digest.update(f"{photo}\n".encode())
        if self.crop_to_box:
            digest.update(rows[BOX].to_numpy(np.float32).tobytes())
        return digest.hexdigest()[:32]


def indices_of(paths, wanted) -> np.ndarray:
    """Return the index in `paths` (sorted) of each of `wanted`, int64."""
    return np.searchsorted(paths.to_numpy(dtype=str), wanted.to_numpy(dtype=str)).astype(np.int64)


def _size_and_time(root: str, path: str) -> tuple[int, int]:
    try:
        stat = os.stat(file_of(root, path))  # noqa: PTH116 - creating a million Paths takes longer than the disk
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns
