"""PhotoDataModule: Lightning's data loaders for a Table's splits. The only Lightning in data/."""

import logging
from collections.abc import Callable, Iterable

import numpy as np
import pytorch_lightning as pl
import torch

from carvision.data.images import none_usable, unusable
from carvision.data.loading.dataset import Batch, CachedFeatures, Key, PhotoDataset
from carvision.data.loading.loader import Loader, ResumableLoader
from carvision.data.loading.samplers import TableSampler, TrainSampler
from carvision.data.table import SPLITS, UNKNOWN, Table
from carvision.system.machine import num_cores

log = logging.getLogger(__name__)


class PhotoDataModule(pl.LightningDataModule):
    """Load batches of a Table's splits: `Batch` without "reasons", which are reported and removed here.

    create_dataset: Table of one split -> PhotoDataset. batch_size: "auto" is replaced before training. num_workers:
    threads that read; None: one fewer than the cores, shared by num_sharing processes of the run, at most 16. sampler,
    photos_per_class: see TrainSampler's kind; raises InputError for a batch size that does not suit them.
    sampler_label: the label that it balances; None: the finest. on_bad_image: "error" raises InputError for the first
    unreadable photo; "skip" leaves it out of losses and metrics; "blank" uses a grey image instead. bad_images {path:
    reason} collects them.
    """

    def __init__(
        self,
        table: Table,
        create_dataset: Callable[[Table], PhotoDataset],
        batch_size: int,
        num_workers: int | None = None,
        sampler: str = "shuffle",
        epoch_fraction: float = 1.0,
        on_bad_image: str = "error",
        seed: int = 0,
        num_sharing: int = 1,
        photos_per_class: int = 4,
        sampler_label: str | None = None,
    ):
        super().__init__()
        self.table, self.create_dataset = table, create_dataset
        parts = {split: table.of_split(split) for split in SPLITS}
        self.datasets = {split: create_dataset(part) for split, part in parts.items() if len(part)}
        self.batch_size, self.seed, self.on_bad_image = batch_size, seed, on_bad_image
        self.num_workers = max(1, min(16, num_cores() // num_sharing - 1)) if num_workers is None else num_workers
        self.sampler, self.epoch_fraction = sampler, epoch_fraction
        self.photos_per_class, self.sampler_label = photos_per_class, sampler_label
        self.bad_images: dict[str, str] = {}
        self.cached_features: Callable[[str], CachedFeatures | None] = lambda split: None  # replace a split's photos
        if sampler == "per_class" and "train" in self.datasets and batch_size != "auto":
            self._train_sampler()  # raises now for values that don't fit

    def state_dict(self) -> dict:  # for checkpoints: the next start may not read these photos again
        return {"bad_images": self.bad_images}

    def load_state_dict(self, state_dict: dict) -> None:
        self.bad_images |= state_dict["bad_images"]

    def require_usable(self, splits: Iterable[str], labels: Iterable[str]) -> None:
        """Raise InputError for the first of these splits without any readable photo, which on_bad_image would silently
        leave out.

        labels: only photos with a known value of one of them count; splits without any are not checked, such as test
        photos of unseen classes. Reads photos up to the first good one: mostly one.
        """
        if self.on_bad_image == "error":  # then the first bad photo ends the run anyway
            return
        for split in filter(self.datasets.__contains__, splits):
            dataset, first = self.datasets[split], None
            targets = [dataset.targets[label].numpy() for label in labels]
            known = np.any([~np.isnan(t) if t.dtype.kind == "f" else t != UNKNOWN for t in targets], axis=0)
            for row in np.flatnonzero(known).tolist():
                [reason] = dataset[[(row, -1)]]["reasons"]
                if not reason:
                    break
                first = first or (row, reason)
            else:
                if first:
                    raise none_usable(split, known.sum(), dataset.location(first[0]), first[1])

    def train_dataloader(self) -> Loader:
        sampler = self._train_sampler()
        if self.trainer:  # which sets later epochs itself
            # Lightning annotates the parent class, which has no such field
            sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)  # pyrefly: ignore[missing-attribute]
        return self.create_loader(self.cached_features("train") or self.datasets["train"], sampler, ResumableLoader)

    @property
    def num_train_batches(self) -> int:
        """Return the number of batches per epoch in each process."""
        return len(self._train_sampler())

    @property
    def train_batch_size(self) -> int:
        """Return the photos per training batch and process, at most as many as exist."""
        return self._train_sampler().batch_size

    def _train_sampler(self) -> TrainSampler:
        dataset, label = self.datasets["train"], self.table.class_label(self.sampler_label, "metric_loss.label")
        return TrainSampler(
            dataset.targets[label].numpy(), self.batch_size, self.sampler, self.epoch_fraction, self.seed,
            *self._rank_and_world_size(), dataset.packed, self.photos_per_class,
        )  # fmt: skip

    def val_dataloader(self) -> Loader:
        return self._eval_loader("val")

    def test_dataloader(self) -> Loader:
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> Loader:
        dataset = self.datasets[split]
        packed = dataset.packed
        rows = packed.shard_by_shard() if packed and packed.shards.window else None
        sampler = TableSampler(len(dataset.paths), self.batch_size, *self._rank_and_world_size(), rows)
        return self.create_loader(self.cached_features(split) or dataset, sampler)

    def create_loader(
        self, dataset: PhotoDataset | CachedFeatures, sampler: Iterable[list[Key]], kind: type[Loader] = Loader
    ) -> Loader:
        """Create a loader of the batches that `sampler` yields; cached features need no threads."""
        num_workers = self.num_workers if isinstance(dataset, PhotoDataset) else 0
        return kind(dataset, sampler, self.batch_size, num_workers, pin_memory=torch.cuda.is_available())

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        assert self.trainer is not None
        split = "train" if self.trainer.training else "test" if self.trainer.testing else "val"
        self.report_bad_images(self.datasets[split], batch)
        if self.on_bad_image == "blank":
            batch["valid"] = batch["index"] >= 0  # all but padding
        return batch

    def report_bad_images(self, dataset: PhotoDataset, batch: Batch) -> dict[int, str]:
        """Take the reasons from the batch, log each unreadable photo once, add it to bad_images, and return {row:
        reason}. Raises InputError if on_bad_image is "error"."""
        bad = {int(row): why for row, why in zip(batch["index"], batch.pop("reasons"), strict=True) if why}
        for row, reason in bad.items():
            path, location = dataset.paths[row], dataset.location(row)
            if self.on_bad_image == "error":
                raise unusable(location, reason)
            if path not in self.bad_images:
                log.warning("%s: %s (data.on_bad_image=%s)", location, reason, self.on_bad_image)
            self.bad_images[path] = reason
        return bad
