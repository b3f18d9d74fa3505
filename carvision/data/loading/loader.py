"""PhotoDataModule: the data loaders of a Table's splits."""

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
from carvision.data.loading.dataset import Batch, KeptPhotos, Photos
from carvision.data.loading.samplers import TableSampler, TrainSampler
from carvision.data.loading.shared_batches import HandedOver, handed_over
from carvision.data.table import SPLITS, UNKNOWN, Table
from carvision.system.machine import FORK, num_cores
from carvision.system.runtime import give_back_freed_memory

log = logging.getLogger(__name__)


# Batches to the GPU while it is at work on the step before.


class Prefetch:
    """Copies batches to CUDA on a stream of its own: prefetch(batch, device) -> the batch, on the device. A batch holds
    tensors, and mappings of tensors.

    No batch is fetched ahead, so that a loader's place is always that of the step at hand. It is the host that is
    ahead: nothing in a step waits for the device, so the copy is asked for while the GPU still has the step before to
    do. In the stream of the step it would have to queue behind that, and the GPU would idle as long as it takes; in
    this one it begins at once. 64 photos of 224 px are 9.6 MB, which take 0.2 to 0.4 ms at the 25 to 50 GB/s of PCIe
    4 and 5, about a hundredth of a ResNet-50's step on an H100 (worked out, not measured). The batch must be in pinned
    memory, or the host waits for its copy.
    """

    def __init__(self):
        self.stream: torch.cuda.Stream | None = None

    def __call__(self, batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        self.stream = self.stream or torch.cuda.Stream(device)
        step = torch.cuda.current_stream(device)
        with torch.cuda.stream(self.stream):
            copied = on_device(batch, device)
        step.wait_stream(self.stream)
        # The memory belongs to the stream of the copies, which would give it to the next batch as soon as Python drops
        # this one, and the step may not have come to reading it by then.
        for value in tensors_of(copied):
            value.record_stream(step)
        return copied


def on_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: on_device(value, device) if isinstance(value, dict) else value.to(device, non_blocking=True)
        for name, value in batch.items()
    }


def tensors_of(batch: Mapping[str, Any]) -> list[Tensor]:
    """All of a batch, those in mappings within it too."""
    found = []
    for value in batch.values():
        found += tensors_of(value) if isinstance(value, dict) else [value]
    return found


# PhotoDataModule: the loaders of a Table's splits. The only Lightning in this room.


class ResumableLoader(DataLoader):
    """Knows how many batches of the pass at hand it has given. Lightning keeps that in checkpoints, and a run that goes
    on inside an epoch begins with the batch after them."""

    given = 0

    @property
    def order(self) -> TrainSampler:
        return cast(TrainSampler, self.sampler)

    # torch's annotation names a private class, of which nobody needs more than an iterator
    def __iter__(self) -> Iterator[Batch]:  # pyrefly: ignore[bad-override]
        self.given = self.order.start
        return self._count(super().__iter__())

    def _count(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self.given += 1
            yield batch

    def state_dict(self) -> dict:
        return {"given": self.given}

    def load_state_dict(self, state: dict) -> None:
        self.order.start = state["given"] % len(self.order)  # of a whole epoch none: the next is begun


class EarlyLoader(DataLoader):
    """Its readers can begin before its batches are asked for. After the last of them their memory is given back, as
    training comes next."""

    begun: Iterator[Batch] | None = None

    def begin(self) -> None:
        if self.num_workers and self.begun is None:
            self.begun = super().__iter__()

    def __iter__(self) -> Iterator[Batch]:  # pyrefly: ignore[bad-override] - as above
        batches, self.begun = self.begun or super().__iter__(), None
        return self._give_back_after(batches, self.dataset) if isinstance(self.dataset, HandedOver) else batches

    def _give_back_after(self, batches: Iterator[Batch], handed_over: HandedOver) -> Iterator[Batch]:
        for number, batch in enumerate(batches, 1):
            if number == len(self):  # Lightning does not ask for more
                handed_over.slots.give_back()
            yield batch


def begin_reading(training: int, worker: int) -> None:
    """Schedulers and Ctrl-C signal all processes; the readers go on, so that the run can end its step. They end with
    the process that started them, whose number is `training`: torch sees to that, unless it has gone by now."""
    give_back_freed_memory()
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if os.getppid() != training:  # else this one would wait for ever, with all the memory that it shares
        os._exit(1)


class PhotoDataModule(pl.LightningDataModule):
    """Batches as `Photos` gives them, without "bad", which ends here.

    read: returns the Table with its split. create_photos: (Table) -> Photos, with everything that reading them needs.
    download: fetches the data set first, where its licence permits. num_sharing: processes of the run that share this
    one's cores. sampler, photos_per_class: see TrainSampler, as data.sampler. sampler_label: the label it balances;
    None: the finest.
    on_bad_image: "error" raises InputError for the first photo that can't be read; "skip" leaves it out of losses and
    metrics; "blank" takes a grey picture in its place. bad_images {path: reason} holds those met so far.
    """

    def __init__(
        self,
        read: Callable[[], Table],
        create_photos: Callable[[Table], Photos],
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
        self.read, self.create_photos, self.download = read, create_photos, download
        self.table: Table | None = None
        self.photos: dict[str, Photos] = {}
        self.batch_size = batch_size
        self.num_workers = max(1, min(16, num_cores() // num_sharing - 1)) if num_workers is None else num_workers
        self.sampler, self.epoch_fraction = sampler, epoch_fraction
        self.photos_per_class, self.sampler_label = photos_per_class, sampler_label
        self.on_bad_image = on_bad_image
        self.seed = seed
        self.bad_images: dict[str, str] = {}
        self.prefetch = Prefetch()
        self.kept: Callable[[str], KeptPhotos | None] = lambda split: None  # features in place of a split's photos

    def state_dict(self) -> dict:  # for checkpoints: the next start may not meet these photos again
        return {"bad_images": self.bad_images}

    def load_state_dict(self, state_dict: dict) -> None:
        self.bad_images |= state_dict["bad_images"]

    def prepare_data(self) -> None:  # called by Lightning in one process only
        if self.download is not None:
            self.download()
            self.download = None  # Lightning asks again before each of fit, validate and test

    def setup(self, stage: str | None = None) -> None:
        """Reads the table, once. After it, `table` and `photos` {split: Photos} are there."""
        if self.table is None:
            self.table = self.read()
            for split in SPLITS:
                part = self.table.of_split(split)
                if len(part):
                    self.photos[split] = self.create_photos(part)
            if self.sampler == "per_class" and "train" in self.photos and self.batch_size != "auto":
                self._train_sampler()  # so that values that don't fit are told now

    def require_usable(self, splits: Iterable[str], labels: Iterable[str]) -> None:
        """Raise InputError for the first of these splits of which no photo can be read, where on_bad_image would leave
        all of them out: a run would end as if it had learned from them.

        labels: only photos with a known value of one of them count; a split without any is not looked at, as test
        photos of classes that are not trained. Reads the photos up to the first good one: of nearly all data, one.
        """
        if self.on_bad_image == "error":  # then the first bad photo ends the run anyway
            return
        for split in filter(self.photos.__contains__, splits):
            photos, first = self.photos[split], None
            targets = [photos.targets[label].numpy() for label in labels]
            known = np.any([~np.isnan(t) if t.dtype.kind == "f" else t != UNKNOWN for t in targets], axis=0)
            for row in np.flatnonzero(known).tolist():
                bad = photos[[(row, -1)]]["bad"]
                if not bad:
                    break
                first = first or bad[0]
            else:
                if first:
                    raise none_usable(split, known.sum(), photos.place(first[0]), first[1])

    def train_dataloader(self) -> DataLoader:
        order = self._train_sampler()
        if self.trainer:  # Lightning sets the epoch only after the readers have begun
            # Lightning annotates it with its parent class, which has no such field
            order.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)  # pyrefly: ignore[missing-attribute]
        return self.create_loader(self.kept("train") or self.photos["train"], order, ResumableLoader)

    @property
    def num_train_batches(self) -> int:
        """Of an epoch, in each process."""
        return len(self._train_sampler())

    @property
    def train_batch_size(self) -> int:
        """Photos in each batch of training, in each process: no more than there are."""
        return self._train_sampler().batch_size

    def _train_sampler(self) -> TrainSampler:
        assert self.table is not None
        photos, label = self.photos["train"], self.table.class_label(self.sampler_label, "metric_loss.label")
        codes = photos.targets[label].numpy()
        shape = self._rank_and_world_size()
        return TrainSampler(
            codes, self.batch_size, self.sampler, self.epoch_fraction, self.seed, *shape, photos.packed,
            self.photos_per_class,
        )  # fmt: skip

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> DataLoader:
        photos = self.photos[split]
        shape, packed = self._rank_and_world_size(), photos.packed
        rows = packed.shard_by_shard() if packed and packed.shards.window else None
        order = TableSampler(len(photos.paths), self.batch_size, *shape, rows)
        return self.create_loader(self.kept(split) or photos, order, EarlyLoader)

    def create_loader(self, photos: Photos | KeptPhotos, order, kind: type[DataLoader] = DataLoader) -> DataLoader:
        """order: gives lists of Keys, each a batch."""
        # An item is a whole batch, so the loader neither batches nor collates.
        num_workers, batches = 0, photos
        if isinstance(photos, Photos) and self.num_workers:
            num_workers = self.num_workers
            batches = handed_over(photos, num_workers, photos.num_bytes(self.batch_size))
        return kind(
            batches,
            sampler=order,
            batch_size=None,
            num_workers=num_workers,
            multiprocessing_context=FORK if num_workers else None,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=functools.partial(begin_reading, os.getpid()),
            # Else the loader takes numbers from those that dropout draws, more of them without workers
            generator=torch.Generator(),
        )

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        assert self.trainer is not None
        split = "train" if self.trainer.training else "test" if self.trainer.testing else "val"
        for row, reason in batch.pop("bad"):
            self.meet_bad_image(self.photos[split], row, reason)
        if self.on_bad_image == "blank":
            batch["valid"] = batch["index"] >= 0  # all but what pads the last batch
        return batch

    def meet_bad_image(self, photos: Photos, row: int, reason: str) -> None:
        """Raises InputError where such photos end the run."""
        path, place = photos.path(row), photos.place(row)
        if self.on_bad_image == "error":
            raise unusable(place, reason)
        if path not in self.bad_images:
            log.warning("%s: %s (data.on_bad_image=%s)", place, reason, self.on_bad_image)
        self.bad_images[path] = reason

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        if device.type == "cuda":
            return cast(Batch, self.prefetch(batch, device))
        if device.type == "cpu":
            return batch  # it is there
        return super().transfer_batch_to_device(batch, device, dataloader_idx)
