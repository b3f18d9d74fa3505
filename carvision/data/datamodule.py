"""PhotoDataModule: the loaders of a Table's splits. The only Lightning in this room."""

import logging
from collections.abc import Callable

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from carvision.data.photos import Photos, TableOrder, TrainOrder
from carvision.data.prefetch import Prefetch
from carvision.data.table import SPLITS, Table
from carvision.errors import InputError
from carvision.machine import num_cores

log = logging.getLogger(__name__)


class PhotoDataModule(pl.LightningDataModule):
    """Batches as `Photos` gives them, without "bad", which ends here.

    read: returns the Table with its split. create_photos: (Table) -> Photos, with everything that reading them needs.
    download: fetches the data set first, where its licence permits.
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
    ):
        super().__init__()
        self.read, self.create_photos, self.download = read, create_photos, download
        self.table: Table | None = None
        self.photos: dict[str, Photos] = {}
        self.batch_size = batch_size
        self.num_workers = max(1, min(16, num_cores() - 1)) if num_workers is None else num_workers
        self.sampler, self.epoch_fraction = sampler, epoch_fraction
        self.on_bad_image = on_bad_image
        self.seed = seed
        self.bad_images: dict[str, str] = {}
        self.prefetch = Prefetch()

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

    def train_dataloader(self) -> DataLoader:
        photos = self.photos["train"]
        codes = photos.targets[self.table.finest].numpy()
        order = TrainOrder(
            codes, self.batch_size, self.sampler, self.epoch_fraction, self.seed, *self._rank_and_world_size()
        )
        return self._loader(photos, order)

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> DataLoader:
        photos = self.photos[split]
        return self._loader(photos, TableOrder(len(photos.paths), self.batch_size, *self._rank_and_world_size()))

    def _loader(self, photos: Photos, order) -> DataLoader:
        # An item is a whole batch, so the loader neither batches nor collates.
        return DataLoader(
            photos,
            sampler=order,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def on_before_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        split = "train" if self.trainer.training else "test" if self.trainer.testing else "val"
        for row, reason in batch.pop("bad"):
            path = self.photos[split].path(row)
            if self.on_bad_image == "error":
                raise InputError(
                    f"{self.table.root / path}: {reason}. Mend or remove the photo, or go on without it with "
                    "data.on_bad_image=skip (python -m carvision.check finds all such photos)"
                )
            if path not in self.bad_images:
                log.warning("%s: %s (data.on_bad_image=%s)", self.table.root / path, reason, self.on_bad_image)
            self.bad_images[path] = reason
        if self.on_bad_image == "blank":
            batch["valid"] = torch.ones_like(batch["valid"])
        return batch

    def transfer_batch_to_device(self, batch: dict, device: torch.device, dataloader_idx: int) -> dict:
        if device.type == "cuda":
            return self.prefetch(batch, device)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)
