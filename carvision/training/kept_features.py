"""Features of a backbone that does not train, computed once: the epochs of such a phase begin above it.

Where a phase trains no layer of the backbone and photos are the same in every epoch, what the backbone gives is a
function of the photo. It is computed in one pass before the phase, by all processes together, and kept in a file that
later runs find (see feature_files). Figures and weights are those of training through the backbone, to the bit where
the same photos would stand in batches of the same size; else they differ by the rounding of convolutions, which depends
on the number of photos in a batch.
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

FORMAT = 2  # to be raised with every change of what a photo's features are


def create_feature_cache(
    cfg: dict, lit: LitClassifier, data: PhotoDataModule, clock: Clock, with_train: bool = False
) -> "FeatureCache":
    """For data.kept. with_train: features of training photos are wanted, too, though these change in training.

    Raises InputError where features.keep=true and nothing can be kept.
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
    taken = ("val",) if changing else ("train", "val")
    if len(frozen) == len(phases):
        if cfg["run"]["test"]:
            taken += ("test",)  # which the same backbone will see
        if changing and wanted == "auto" and not forbidden:
            log.info(
                "the backbone is frozen, but training photos change (%s), so that every epoch takes them through it; "
                "with augment=none their features are kept, for epochs of a fifteenth of the time or less",
                changing,
            )
    splits = tuple(split for split in SPLITS if split in taken or (with_train and split == "train"))
    return FeatureCache(cfg, lit, data, clock, splits, taken if wanted is not False and not forbidden else ())


class FeatureCache:
    """kept(split) -> its KeptPhotos, or None where the photos themselves are to be taken. For PhotoDataModule.kept.

    splits: those of which features are computed, all in one file. taken: those that they stand in for; without any,
    nothing is kept on the disk.
    """

    def __init__(
        self,
        cfg: dict,
        lit: LitClassifier,
        data: PhotoDataModule,
        clock: Clock,
        splits: tuple[str, ...],
        taken: tuple[str, ...],
    ):
        self.lit, self.data, self.clock, self.taken = lit, data, clock, taken
        self.splits = tuple(split for split in splits if split in data.photos)
        self.folder = features_folder(cfg["features"]["dir"])
        self.max_bytes = 1e9 * cfg["features"]["max_gb"] * bool(taken)
        self.crop_to_box, self.epoch_fraction = cfg["data"]["crop_to_box"], cfg["data"]["epoch_fraction"]
        self.opened: dict[str, Features | None] = {}  # by their digest; the last ones

    def __call__(self, split: str) -> KeptPhotos | None:
        fitting = self.data.trainer.state.fn == TrainerFn.FITTING
        if split not in self.taken or split not in self.splits or (fitting and not self._is_worth_it()):
            return None
        # After training, what isn't there needs no pass of its own: the evaluation is one
        features = self.obtain(compute=fitting)
        return features and self.photos_of(features, split)

    def _is_worth_it(self) -> bool:
        phase = self.lit.phase
        return phase["train_layers"] == "none" and phase["epochs"] * self.epoch_fraction >= 1

    def photos_of(self, features: Features, split: str) -> KeptPhotos:
        places = place_of(self._rows()["path"], self.data.table.of_split(split).rows["path"])
        row_of = {int(place): row for row, place in enumerate(places)}
        bad = {row_of[place]: reason for place, reason in features.bad.items() if place in row_of}
        return KeptPhotos(features.rows, places, bad, self.data.photos[split].targets)

    def _rows(self) -> pd.DataFrame:
        """Of the photos of all splits, by path: however they are divided, as into folds, the file is the same."""
        rows = self.data.table.rows
        return rows[rows["split"].isin(self.splits)].sort_values("path").reset_index(drop=True)

    def obtain(self, compute: bool = True) -> Features | None:
        """Of all photos of the splits, ordered by path, with the backbone's present weights: from the file, or else
        computed now. None where they are not there and `compute` is false, or where they would be too large."""
        key = self._digest()
        if any_process(key not in self.opened):
            began = time.perf_counter()
            file = self.folder / f"{key}.safetensors"
            found = open_features(file) if self.taken else None
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
        """Of all that the features depend on."""
        trainer, table, rows = self.data.trainer, self.data.table, self._rows()
        device = trainer.strategy.root_device
        on_cuda = device.type == "cuda"
        network = self.lit.model.description
        decoder = found.name if (found := load_decoder()) else "pillow"
        said = [
            FORMAT, carvision.__version__, torch.__version__, timm.__version__, PIL.__version__, decoder,
            trainer.precision, device.type,
            torch.cuda.get_device_name(device) if on_cuda else torch.backends.cpu.get_cpu_capability(),
            network["backbone"], network["backbone_kwargs"], network["pool"], self.lit.model.learns_from_map,
            self.lit.hparams.preprocessing, digest_of_tensors(self.lit.model.backbone.state_dict()),
        ]  # fmt: skip
        digest = hashlib.sha256(repr(said).encode())
        if table.shards is None:
            root = os.fspath(table.root.resolve())
            for path in rows["path"]:
                digest.update(f"{text_of_path(root)} {path} {_size_and_time(root, path)}\n".encode())
        else:  # wherever the pack lies
            for photo in zip(*(rows[name] for name in ("path", SOURCE, *PLACE[2:])), strict=True):
                digest.update(f"{photo}\n".encode())
        if self.crop_to_box:
            digest.update(rows[BOX].to_numpy(np.float32).tobytes())
        return digest.hexdigest()[:32]


def place_of(paths, wanted) -> np.ndarray:
    """int64: where in `paths`, sorted, each of `wanted` stands."""
    return np.searchsorted(paths.to_numpy(dtype=str), wanted.to_numpy(dtype=str)).astype(np.int64)


def _size_and_time(root: str, path: str) -> tuple[int, int]:
    try:
        stat = os.stat(file_of(root, path))  # noqa: PTH116 - a million Paths take longer than the disk
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns
