"""PhotoDataModule: Lightning's data loaders for a Table's splits. The only Lightning in data/."""

import functools
import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from carvision.data.images import none_usable, unusable
from carvision.data.loading.dataset import Batch, CachedFeatures, Key, PhotoDataset
from carvision.data.loading.samplers import TableSampler, TrainSampler
from carvision.data.loading.shared_batches import SharedBatches, share_batches
from carvision.data.table import SPLITS, UNKNOWN, Table
from carvision.system.machine import FORK, num_cores
from carvision.system.runtime import give_back_freed_memory

log = logging.getLogger(__name__)


class PhotoDataModule(pl.LightningDataModule):
    """Load batches of a Table's splits: `Batch` without "bad", which is reported and removed here.

    read: returns the Table with its split. create_dataset: Table of one split -> PhotoDataset. download: downloads the
    data set first, if its licence permits. batch_size: "auto" is replaced before training. num_workers: processes that
    read; None: one fewer than the cores, shared by num_sharing processes of the run, at most 16. sampler,
    photos_per_class: see TrainSampler's kind. sampler_label: the label that it balances; None: the finest.
    on_bad_image: "error" raises InputError for the first unreadable photo; "skip" leaves it out of losses and metrics;
    "blank" uses a grey image instead. bad_images {path: reason} collects them.
    """

    def __init__(
        self,
        read: Callable[[], Table],
        create_dataset: Callable[[Table], PhotoDataset],
        batch_size: int,
        num_workers: int | None = None,
        sampler: str = "shuffle",
        epoch_fraction: float = 1.0,
        on_bad_image: str = "error",
        seed: int = 0,
        download: Callable[[], None] | None = None,
        num_sharing: int = 1,
        photos_per_class: int = 4,
        sampler_label: str | None = None,
    ):
        super().__init__()
        self.read, self.create_dataset, self.download = read, create_dataset, download
        self.table: Table | None = None
        self.datasets: dict[str, PhotoDataset] = {}  # by split
        self.batch_size = batch_size
        self.num_workers = max(1, min(16, num_cores() // num_sharing - 1)) if num_workers is None else num_workers
        self.sampler, self.epoch_fraction = sampler, epoch_fraction
        self.photos_per_class, self.sampler_label = photos_per_class, sampler_label
        self.on_bad_image = on_bad_image
        self.seed = seed
        self.bad_images: dict[str, str] = {}
        self.prefetch = Prefetch()
        self.cached_features: Callable[[str], CachedFeatures | None] = lambda split: None  # replace a split's photos

    def state_dict(self) -> dict:  # for checkpoints: the next start may not read these photos again
        return {"bad_images": self.bad_images}

    def load_state_dict(self, state_dict: dict) -> None:
        self.bad_images |= state_dict["bad_images"]

    def prepare_data(self) -> None:  # Lightning calls it in one process only
        if self.download is not None:
            self.download()
            self.download = None  # Lightning calls it again before each of fit, validate and test

    def setup(self, stage: str | None = None) -> None:
        """Read the table, once, into `table` and `datasets`. Raises InputError as `read`, and for a wrong batch size of
        sampler "per_class"."""
        if self.table is None:
            self.table = self.read()
            for split in SPLITS:
                part = self.table.of_split(split)
                if len(part):
                    self.datasets[split] = self.create_dataset(part)
            if self.sampler == "per_class" and "train" in self.datasets and self.batch_size != "auto":
                self._train_sampler()  # raises now for values that don't fit

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
                bad = dataset[[(row, -1)]].get("bad")
                if not bad:
                    break
                first = first or bad[0]
            else:
                if first:
                    raise none_usable(split, known.sum(), dataset.location(first[0]), first[1])

    def train_dataloader(self) -> DataLoader:
        sampler = self._train_sampler()
        if self.trainer:  # Lightning sets the epoch only after the workers have started
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
        assert self.table is not None
        dataset, label = self.datasets["train"], self.table.class_label(self.sampler_label, "metric_loss.label")
        codes = dataset.targets[label].numpy()
        shape = self._rank_and_world_size()
        return TrainSampler(
            codes, self.batch_size, self.sampler, self.epoch_fraction, self.seed, *shape, dataset.packed,
            self.photos_per_class,
        )  # fmt: skip

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> DataLoader:
        dataset = self.datasets[split]
        rank, world_size = self._rank_and_world_size()
        packed = dataset.packed
        rows = packed.shard_by_shard() if packed and packed.shards.window else None
        sampler = TableSampler(len(dataset.paths), self.batch_size, rank, world_size, rows)
        return self.create_loader(self.cached_features(split) or dataset, sampler, EarlyLoader)

    def create_loader(
        self, dataset: PhotoDataset | CachedFeatures, sampler: Iterable[list[Key]], kind: type[DataLoader] = DataLoader
    ) -> DataLoader:
        """Create a loader of the batches that `sampler` yields; cached features need no workers."""
        # An item is a whole batch, so the loader neither batches nor collates
        num_workers, batches = 0, dataset
        if isinstance(dataset, PhotoDataset) and self.num_workers:
            num_workers = self.num_workers
            batches = share_batches(dataset, num_workers, dataset.num_bytes(self.batch_size))
        return kind(
            batches,
            sampler=sampler,
            batch_size=None,
            num_workers=num_workers,
            multiprocessing_context=FORK if num_workers else None,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=functools.partial(init_worker, os.getpid()),
            # Else the loader draws from the generator of dropout, differently with and without workers
            generator=torch.Generator(),
        )

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        assert self.trainer is not None
        split = "train" if self.trainer.training else "test" if self.trainer.testing else "val"
        for row, reason in batch.pop("bad"):
            self.report_bad_image(self.datasets[split], row, reason)
        if self.on_bad_image == "blank":
            batch["valid"] = batch["index"] >= 0  # all but padding
        return batch

    def report_bad_image(self, dataset: PhotoDataset, row: int, reason: str) -> None:
        """Log an unreadable photo once, and add it to bad_images. Raises InputError if on_bad_image is "error"."""
        path, location = dataset.path(row), dataset.location(row)
        if self.on_bad_image == "error":
            raise unusable(location, reason)
        if path not in self.bad_images:
            log.warning("%s: %s (data.on_bad_image=%s)", location, reason, self.on_bad_image)
        self.bad_images[path] = reason

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        if device.type == "cuda":
            return cast(Batch, self.prefetch(batch, device))
        if device.type == "cpu":
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)


class ResumableLoader(DataLoader):
    """DataLoader that counts the batches of the current epoch. Lightning stores the count in checkpoints, and a run
    that resumes inside an epoch starts with the next batch."""

    given = 0

    @property
    def train_sampler(self) -> TrainSampler:
        return cast(TrainSampler, self.sampler)

    # torch annotates a private class where any iterator does
    def __iter__(self) -> Iterator[Batch]:  # pyrefly: ignore[bad-override]
        self.given = self.train_sampler.start
        return self._count(super().__iter__())

    def _count(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self.given += 1
            yield batch

    def state_dict(self) -> dict:
        return {"given": self.given}

    def load_state_dict(self, state: dict) -> None:
        self.train_sampler.start = state["given"] % len(self.train_sampler)  # 0 after a whole epoch


class EarlyLoader(DataLoader):
    """DataLoader whose workers can start before the first batch is requested. After the last batch their memory is
    released, as training follows."""

    started: Iterator[Batch] | None = None

    def start_workers(self) -> None:
        """Start reading, unless the workers already do."""
        if self.num_workers and self.started is None:
            self.started = super().__iter__()

    def __iter__(self) -> Iterator[Batch]:  # pyrefly: ignore[bad-override] - as above
        batches, self.started = self.started or super().__iter__(), None
        return self._release_after(batches, self.dataset) if isinstance(self.dataset, SharedBatches) else batches

    def _release_after(self, batches: Iterator[Batch], shared: SharedBatches) -> Iterator[Batch]:
        for number, batch in enumerate(batches, 1):
            if number == len(self):  # Lightning requests no more
                shared.buffers.release_free()
            yield batch


def init_worker(parent_pid: int, worker: int) -> None:
    """Ignore the signals that Ctrl-C and schedulers send to all processes, so that the run can finish its step.

    Workers end with their parent, `parent_pid`: torch ensures that, unless the parent has already gone.
    """
    give_back_freed_memory()
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if os.getppid() != parent_pid:  # else this process would wait forever, holding the shared memory
        os._exit(1)


class Prefetch:
    """Copy batches to CUDA on a separate stream: prefetch(batch, device) -> batch on the device.

    A batch holds tensors and nested dicts of tensors, in pinned memory, or the host waits for the copy. No batch is
    fetched ahead, so the loader's position is always that of the current step. Nothing in a step waits for the device,
    so the host enqueues the copy while the GPU still computes the previous step; on the step's own stream it would
    queue behind that, and the GPU would idle meanwhile. 64 photos of 224 px are 9.6 MB, 0.2 to 0.4 ms at the 25 to 50
    GB/s of PCIe 4 and 5, about 1 % of a ResNet-50's step on an H100 (estimated, not measured).
    """

    def __init__(self):
        self.stream: torch.cuda.Stream | None = None

    def __call__(self, batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        self.stream = self.stream or torch.cuda.Stream(device)
        step = torch.cuda.current_stream(device)
        with torch.cuda.stream(self.stream):
            copied = on_device(batch, device)
        step.wait_stream(self.stream)
        # The memory belongs to the copying stream, which would reuse it for the next batch as soon as Python drops this
        # one, possibly before the step has read it
        for value in tensors_of(copied):
            value.record_stream(step)
        return copied


def on_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Copy a batch's tensors, also those in nested dicts, to the device."""
    return {
        name: on_device(value, device) if isinstance(value, dict) else value.to(device, non_blocking=True)
        for name, value in batch.items()
    }


def tensors_of(batch: Mapping[str, Any]) -> list[Tensor]:
    """List a batch's tensors, also those in nested dicts."""
    found = []
    for value in batch.values():
        found += tensors_of(value) if isinstance(value, dict) else [value]
    return found
