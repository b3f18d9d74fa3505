"""Photos: the dataset whose item is a whole batch, and the order in which batches are drawn."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from carvision.data.images import BLANK, WHOLE, BadImage, Preprocessing, read_file
from carvision.data.jpeg_part import load_decoder
from carvision.data.shards import PackedPhotos
from carvision.data.squares import empty_squares, read_square
from carvision.data.table import BOX, Classes, Table

Key = tuple[int, int]  # row of the table, epoch (-1: not training)
PADDING: Key = (-1, -1)  # a place of a batch without a photo, so that all batches have the same size


class Photos(Dataset):
    """Batches of photos. Item: a list of Keys -> a dict with

        images   uint8 (B, 3, H, W)
        targets  {label: int64 (B,), UNKNOWN where not known; or float32 (B,) with NaN for a Number}
        index    int64 (B,), rows of the table, -1 for PADDING
        draws    float32 (B, num_draws) in [0, 1): the chance of the augmentation on the device
        valid    bool (B,), false for photos that can't be read, and for PADDING
        bad      list of (row, reason) of the photos that can't be read

    A photo's randomness depends on (seed, epoch, row) alone, so a run is the same at any number of workers.
    crop_scale: range of the area of the random crop in training, as a fraction; crop_ratio: of its aspect.
    """

    def __init__(
        self,
        table: Table,
        preprocessing: Preprocessing,
        crop_to_box: bool,
        crop_scale: tuple[float, float],
        crop_ratio: tuple[float, float],
        num_draws: int,
        seed: int,
    ):
        # Arrays rather than lists of objects: a forked worker that counts references to a million strings
        # would copy all the memory that holds them.
        self.paths = np.char.encode(table.rows["path"].to_numpy(dtype=str), "utf-8")
        self.root, self.packed = table.root, table.packed
        if self.packed:
            self.packed.seed = seed
        self.boxes = table.rows[BOX].to_numpy(np.float32) if crop_to_box else None
        self.targets = {
            name: torch.from_numpy(
                table.rows[name].to_numpy(np.int64 if isinstance(label, Classes) else np.float32, copy=True)
            )
            for name, label in table.labels.items()
        }
        self.preprocessing = preprocessing
        self.crop_scale, self.crop_ratio = crop_scale, crop_ratio
        self.num_draws = num_draws
        self.seed = seed
        load_decoder()  # once, before the processes that read photos are started

    def path(self, row: int) -> str:
        """Of the photo of a row, as the table has it."""
        return self.paths[row].decode("utf-8")

    def place(self, row: int) -> str:
        """Where the photo lies, for messages."""
        path = self.path(row)
        return str(self.packed.photo(row, path) if self.packed else self.root / path)

    def num_bytes(self, batch_size: int) -> int:
        """Of a batch's images."""
        return batch_size * 3 * self.preprocessing.size_px**2

    def __getitem__(self, keys: list[Key]) -> dict:
        images = empty_squares(len(keys), self.preprocessing.size_px)
        draws = np.zeros((len(keys), self.num_draws), np.float32)
        valid = np.ones(len(keys), bool)
        bad = []
        for place, (row, epoch) in enumerate(keys):
            if row < 0:
                images[place], valid[place] = BLANK, False
                continue
            window, shift = WHOLE, 0.5
            if epoch >= 0:
                random = np.random.default_rng((self.seed, epoch, row))
                window, shift = random_window(random, self.crop_scale, self.crop_ratio), random.random()
                draws[place] = random.random(self.num_draws, np.float32)
            try:
                data = self.packed.read(row, epoch) if self.packed else read_file(f"{self.root}/{self.path(row)}")
                box = None if self.boxes is None else self.boxes[row]
                read_square(data, self.preprocessing, images[place], box, window, shift)
            except BadImage as reason:
                images[place], valid[place] = BLANK, False
                bad.append((row, str(reason)))
        rows = torch.tensor([row for row, _ in keys])
        return {
            "images": images,
            "targets": {name: values[rows] for name, values in self.targets.items()},
            "index": rows,
            "draws": torch.from_numpy(draws),
            "valid": torch.from_numpy(valid),
            "bad": bad,
        }


def random_window(random: np.random.Generator, scale: tuple, ratio: tuple) -> tuple[float, float, float, float]:
    """A part of the photo as fractions (left, top, right, bottom): area uniform in `scale`, aspect
    log-uniform in `ratio`, both relative to the region it is cut from, place uniform."""
    area, log_ratio, x, y = random.random(4)
    area = scale[0] + area * (scale[1] - scale[0])
    aspect = np.exp(np.log(ratio[0]) + log_ratio * (np.log(ratio[1]) - np.log(ratio[0])))
    wide, high = min(1.0, np.sqrt(area * aspect)), min(1.0, np.sqrt(area / aspect))
    left, top = x * (1 - wide), y * (1 - high)
    return left, top, left + wide, top + high


class TrainOrder(Sampler[list[Key]]):
    """Lists of Keys, each a batch, in an order that depends on (seed, epoch) alone.

    codes: class of each photo, int (N,), by which "balanced" draws: every class is equally likely, with
    replacement. fraction: of the photos, how many an epoch takes. All batches have the same size, so that a graph
    is compiled once; the last one is filled up with the epoch's first photos. rank, world_size: each of several
    processes gets its own share of each batch's worth, and all the same number of batches. packed: the photos, where
    they are of a pack, whose shards may be shuffled (data.shuffle_shards).
    """

    def __init__(
        self,
        codes: np.ndarray,
        batch_size: int,
        kind: str = "shuffle",
        fraction: float = 1.0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        packed: PackedPhotos | None = None,
    ):
        self.codes, self.kind, self.seed, self.packed = codes, kind, seed, packed
        self.num_photos = max(1, round(len(codes) * fraction))
        self.batch_size = min(batch_size, max(1, self.num_photos // world_size))
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.start = 0  # batches of the next pass that are left out, as an earlier start of the run has had them

    def set_epoch(self, epoch: int) -> None:  # called by Lightning at the start of each epoch
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.num_photos // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[Key]]:
        start, self.start = self.start, 0
        rows = self.rows(self.epoch)[start:, self.rank :: self.world_size]
        for batch in rows.tolist():
            yield [(row, self.epoch) for row in batch]

    def rows(self, epoch: int) -> np.ndarray:
        """int (len(self), batch_size * world_size): of the whole epoch, a row of it the batches of all processes."""
        random = np.random.default_rng((self.seed, epoch))
        if self.kind == "balanced":
            _, place, counts = np.unique(self.codes, return_inverse=True, return_counts=True)
            chance = (1 / counts)[place]
            order = random.choice(len(self.codes), self.num_photos, p=chance / chance.sum())
        else:
            order = self.packed.order(random) if self.packed else random.permutation(len(self.codes))
            order = order[: self.num_photos]
        width = self.batch_size * self.world_size
        return np.resize(order, len(self) * width).reshape(-1, width)  # repeats from the start


class TableOrder(Sampler[list[Key]]):
    """Every photo once, in the table's order, or that of `rows`. For validation and test.

    All batches, of all processes, have the same size, so that a graph is compiled once: as many batches as batches of
    batch_size would be, each as small as they then can be. Places that are left over in the last ones hold PADDING.
    """

    def __init__(
        self, num_photos: int, batch_size: int, rank: int = 0, world_size: int = 1, rows: np.ndarray | None = None
    ):
        self.rows = (range(num_photos) if rows is None else rows.tolist())[rank::world_size]
        most = -(-num_photos // world_size)  # of a process
        self.num_batches = -(-most // batch_size)
        self.batch_size = -(-most // self.num_batches)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[Key]]:
        keys = [(row, -1) for row in self.rows]
        keys += [PADDING] * (self.num_batches * self.batch_size - len(keys))
        for start in range(0, len(keys), self.batch_size):
            yield keys[start : start + self.batch_size]
