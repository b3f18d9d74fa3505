"""Batch samplers: they yield lists of Keys, each a batch."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from carvision.data.loading.dataset import PADDING, Key
from carvision.data.packs.read import PackedPhotos
from carvision.data.table import UNKNOWN
from carvision.errors import InputError


class TrainSampler(Sampler[list[Key]]):
    """Sample training batches in an order that depends only on (seed, epoch).

    codes: int (N,), the class of each photo. kind: "shuffle"; "balanced" draws every class with equal probability, with
    replacement; "per_class", see per_class_batches. fraction: share of the photos that an epoch takes. All batches have
    the same size, so that a graph is compiled once; the last one is filled up with the epoch's first photos.
    rank, world_size: each process gets its own share of every global batch, so all have the same number of batches.
    packed: the photos of a pack, whose shards may be shuffled (data.shuffle_shards). photos_per_class: for "per_class";
    raises InputError if a batch would then hold fewer than two classes, or more than exist.
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
        photos_per_class: int = 4,
    ):
        self.codes, self.kind, self.seed, self.packed = codes, kind, seed, packed
        self.photos_per_class = photos_per_class
        self.num_photos = max(1, round(len(codes) * fraction))
        if kind == "per_class":
            require_classes(codes, batch_size, photos_per_class)
            self.batch_size = batch_size
        else:
            self.batch_size = min(batch_size, max(1, self.num_photos // world_size))
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.start = 0  # batches that the next iteration skips, as an earlier start of the run has used them

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
        """Return the table rows of an epoch: int (len(self), batch_size * world_size), a row per global batch."""
        random = np.random.default_rng((self.seed, epoch))
        width = self.batch_size * self.world_size
        if self.kind == "per_class":
            shape = self.batch_size // self.photos_per_class, self.photos_per_class
            batches = per_class_batches(self.codes, len(self) * self.world_size, *shape, random)
            # A process takes the columns rank, rank + world_size, ...: they must form whole classes
            return batches.reshape(len(self), self.world_size, -1).swapaxes(1, 2).reshape(-1, width)
        if self.kind == "balanced":
            _, inverse, counts = np.unique(self.codes, return_inverse=True, return_counts=True)
            weights = (1 / counts)[inverse]
            order = random.choice(len(self.codes), self.num_photos, p=weights / weights.sum())
        else:
            order = self.packed.order(random) if self.packed else random.permutation(len(self.codes))
            order = order[: self.num_photos]
        return np.resize(order, len(self) * width).reshape(-1, width)  # repeats from the start


def require_classes(codes: np.ndarray, batch_size: int, photos_per_class: int) -> None:
    """Raise InputError if the photos of these classes can't form "per_class" batches."""
    num_classes, rest = divmod(batch_size, photos_per_class)
    available = len(np.unique(codes[codes != UNKNOWN]))
    if rest or not 2 <= num_classes <= available:
        raise InputError(
            f"data.batch_size: {batch_size} is not, for data.sampler=per_class with data.photos_per_class="
            f"{photos_per_class}, a multiple of {photos_per_class} from {2 * photos_per_class} to "
            f"{available * photos_per_class} (2 to all {available} classes that have training photos)"
        )


def per_class_batches(
    codes: np.ndarray, num_batches: int, num_classes: int, photos_per_class: int, random: np.random.Generator
) -> np.ndarray:
    """Draw batches of num_classes random classes with photos_per_class random photos each: int (num_batches,
    num_classes * photos_per_class), rows of `codes`, class by class.

    For losses that compare the photos of a batch: Hermans et al., In defense of the triplet loss for person
    re-identification, 2017, section 2. All classes are drawn equally often, as are all photos of a class; no class
    occurs twice in a batch, a photo only if its class has too few. Photos of unknown class are left out.
    """
    order = np.argsort(codes, kind="stable")
    order = order[np.searchsorted(codes[order], UNKNOWN, side="right") :]
    rows_by_class = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    classes = shuffled_cycles(len(rows_by_class), num_batches, num_classes, random).ravel()
    draws = np.bincount(classes, minlength=len(rows_by_class))
    rows = np.empty((len(classes), photos_per_class), np.int64)
    rows[np.argsort(classes, kind="stable")] = np.concatenate(
        [
            members[shuffled_cycles(len(members), num, photos_per_class, random)]
            for members, num in zip(rows_by_class, draws, strict=True)
        ]
    )
    return rows.reshape(num_batches, -1)


def shuffled_cycles(num: int, num_groups: int, size: int, random: np.random.Generator) -> np.ndarray:
    """Concatenate random permutations of range(num) and cut them into groups, int (num_groups, size), none of which has
    a number twice. If num < size, each group has all numbers, and some again."""
    if num < size:
        shuffled = random.permuted(np.tile(np.arange(num), (num_groups, 1)), axis=1)
        return shuffled[:, np.arange(size) % num]
    cycle, cycles = np.arange(num), []
    for i in range(-(-num_groups * size // num)):
        partial = i * num % size  # numbers of the last cycle in the group that this one completes
        if partial:
            last = cycle[-partial:]
            others = random.permutation(np.delete(np.arange(num), last))
            rest = random.permutation(np.concatenate([others[size - partial :], last]))
            cycle = np.concatenate([others[: size - partial], rest])
        else:
            cycle = random.permutation(num)
        cycles.append(cycle)
    return np.concatenate([np.empty(0, np.int64), *cycles])[: num_groups * size].reshape(num_groups, size)


class TableSampler(Sampler[list[Key]]):
    """Sample every photo once, in the table's order or that of `rows`, int (N,). For validation and test.

    All batches of all processes have the same size, so that a graph is compiled once: as few batches as batch_size
    permits, each as small as possible. The last ones are filled up with PADDING.
    """

    def __init__(
        self, num_photos: int, batch_size: int, rank: int = 0, world_size: int = 1, rows: np.ndarray | None = None
    ):
        self.rows = (range(num_photos) if rows is None else rows.tolist())[rank::world_size]
        per_process = -(-num_photos // world_size)  # at most
        self.num_batches = -(-per_process // batch_size)
        self.batch_size = -(-per_process // self.num_batches)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[Key]]:
        keys = [(row, -1) for row in self.rows]
        keys += [PADDING] * (self.num_batches * self.batch_size - len(keys))
        for start in range(0, len(keys), self.batch_size):
            yield keys[start : start + self.batch_size]
