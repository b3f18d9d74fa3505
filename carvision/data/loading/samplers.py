"""The order in which batches are drawn: lists of Keys, each a batch."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from carvision.data.loading.dataset import PADDING, Key
from carvision.data.packs.read import PackedPhotos
from carvision.data.table import UNKNOWN
from carvision.errors import InputError


class TrainSampler(Sampler[list[Key]]):
    """Lists of Keys, each a batch, in an order that depends on (seed, epoch) alone.

    codes: class of each photo, int (N,), by which "balanced" draws: every class is equally likely, with
    replacement; and "per_class": see per_class_batches. fraction: of the photos, how many an epoch takes. All batches
    have the same size, so that a graph is compiled once; the last one is filled up with the epoch's first photos.
    rank, world_size: each of several processes gets its own share of each batch's worth, and all the same number of
    batches. packed: the photos, where they are of a pack, whose shards may be shuffled (data.shuffle_shards).
    photos_per_class: in a batch of "per_class". Raises InputError where that gives no two classes a batch, or more than
    there are.
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
        width = self.batch_size * self.world_size
        if self.kind == "per_class":
            shape = self.batch_size // self.photos_per_class, self.photos_per_class
            batches = per_class_batches(self.codes, len(self) * self.world_size, *shape, random)
            # A process takes the columns rank, rank + world_size, ...: they are a batch of its own
            return batches.reshape(len(self), self.world_size, -1).swapaxes(1, 2).reshape(-1, width)
        if self.kind == "balanced":
            _, place, counts = np.unique(self.codes, return_inverse=True, return_counts=True)
            chance = (1 / counts)[place]
            order = random.choice(len(self.codes), self.num_photos, p=chance / chance.sum())
        else:
            order = self.packed.order(random) if self.packed else random.permutation(len(self.codes))
            order = order[: self.num_photos]
        return np.resize(order, len(self) * width).reshape(-1, width)  # repeats from the start


def require_classes(codes: np.ndarray, batch_size: int, photos_per_class: int) -> None:
    """Raises InputError where batches of "per_class" can't be made of photos of these classes."""
    num_classes, rest = divmod(batch_size, photos_per_class)
    there = len(np.unique(codes[codes != UNKNOWN]))
    if rest or not 2 <= num_classes <= there:
        raise InputError(
            f"data.batch_size: {batch_size} is not, for data.sampler=per_class with data.photos_per_class="
            f"{photos_per_class}, a multiple of {photos_per_class} from {2 * photos_per_class} to "
            f"{there * photos_per_class} (2 to all {there} classes that have training photos)"
        )


def per_class_batches(
    codes: np.ndarray, num_batches: int, num_classes: int, photos_per_class: int, random: np.random.Generator
) -> np.ndarray:
    """int (num_batches, num_classes * photos_per_class): in each the rows of so many classes, of each so many photos.

    For losses that compare the photos of a batch: Hermans et al., In defense of the triplet loss for person
    re-identification, 2017, section 2. All classes come equally often, and so do all photos of a class; no class comes
    twice in a batch, and a photo only if its class has fewer than are drawn. Photos of unknown class are left out.
    """
    order = np.argsort(codes, kind="stable")
    order = order[np.searchsorted(codes[order], UNKNOWN, side="right") :]
    of_class = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    classes = shuffled_cycles(len(of_class), num_batches, num_classes, random).ravel()
    draws = np.bincount(classes, minlength=len(of_class))
    rows = np.empty((len(classes), photos_per_class), np.int64)
    rows[np.argsort(classes, kind="stable")] = np.concatenate(
        [
            photos[shuffled_cycles(len(photos), num, photos_per_class, random)]
            for photos, num in zip(of_class, draws, strict=True)
        ]
    )
    return rows.reshape(num_batches, -1)


def shuffled_cycles(num: int, num_groups: int, size: int, random: np.random.Generator) -> np.ndarray:
    """int (num_groups, size): the numbers below `num` in a random order, then all in another, and so on, such that none
    is twice in a group. Where they are fewer than `size`, each group has all of them, and some again."""
    if num < size:
        shuffled = random.permuted(np.tile(np.arange(num), (num_groups, 1)), axis=1)
        return shuffled[:, np.arange(size) % num]
    cycle, cycles = np.arange(num), []
    for i in range(-(-num_groups * size // num)):
        begun = i * num % size  # numbers that the last cycle has put into the group that this one fills up
        if begun:
            last = cycle[-begun:]
            others = random.permutation(np.delete(np.arange(num), last))
            rest = random.permutation(np.concatenate([others[size - begun :], last]))
            cycle = np.concatenate([others[: size - begun], rest])
        else:
            cycle = random.permutation(num)
        cycles.append(cycle)
    return np.concatenate([np.empty(0, np.int64), *cycles])[: num_groups * size].reshape(num_groups, size)


class TableSampler(Sampler[list[Key]]):
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
