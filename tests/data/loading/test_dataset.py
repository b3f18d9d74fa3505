"""Batches of photos, their randomness, and the order in which they are drawn."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from carvision.data.decode import decode_image
from carvision.data.images import BLANK, Preprocessing, open_image
from carvision.data.loading.dataset import PADDING, PhotoDataset, random_window
from carvision.data.loading.samplers import TableSampler, TrainSampler, shuffled_cycles
from carvision.data.table import BOX, UNKNOWN, Classes, Number, Table
from carvision.errors import InputError

PREPROCESSING = Preprocessing(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NUM = 8
BAD = {3: "empty", 5: "missing"}


@pytest.fixture
def table(tmp_path) -> Table:
    """Photos of 24 x 16 px with noise; 3 is an empty file, 5 is none."""
    random = np.random.default_rng(0)
    for i in range(NUM):
        path = tmp_path / f"é{i}.png"
        if i not in BAD:
            Image.fromarray(random.integers(0, 256, (16, 24, 3), np.uint8)).save(path)
    (tmp_path / "é3.png").touch()
    rows = pd.DataFrame(
        {
            "path": [f"é{i}.png" for i in range(NUM)],
            "class": np.array([0, 1, UNKNOWN, 1, 0, 1, 0, 1], np.int32),
            "speed": np.array([200, 150, math.nan, 1, 2, 3, 4, 5], np.float32),
            "split": "train",
            **{name: np.float32(value) for name, value in zip(BOX, (2, 1, 20, 9), strict=True)},
        }
    )
    return Table("some", tmp_path, rows, {"class": Classes(("a", "b"), ("a", "b")), "speed": Number()}, "class")


def photos_of(table: Table, crop_to_box=False, scale=(0.3, 1.0), ratio=(0.5, 2.0), seed=0, **kwargs) -> PhotoDataset:
    return PhotoDataset(table, kwargs.get("preprocessing", PREPROCESSING), crop_to_box, scale, ratio, 4, seed)


@pytest.mark.parametrize("crop_to_box", [False, True])
def test_photos_that_do_not_train_are_the_whole_photo_or_box(table, crop_to_box):
    batch = photos_of(table, crop_to_box)[[(6, -1), (0, -1), (2, -1)]]
    box = table.rows[BOX].to_numpy()[0] if crop_to_box else None
    for image, row in zip(batch["images"], (6, 0, 2), strict=True):
        with open_image(table.root / f"é{row}.png") as photo:
            assert torch.equal(image, decode_image(photo, PREPROCESSING, box))
    assert batch["images"].dtype == torch.uint8
    assert batch["images"].shape == (3, 3, 8, 8)
    assert batch["index"].tolist() == [6, 0, 2]
    assert batch["targets"]["class"].tolist() == [0, 0, UNKNOWN]
    assert batch["targets"]["class"].dtype == torch.int64
    assert batch["targets"]["speed"].tolist() == pytest.approx([4, 200, math.nan], nan_ok=True)
    assert batch["targets"]["speed"].dtype == torch.float32
    assert batch["draws"].tolist() == [[0.0] * 4] * 3
    assert batch["valid"].tolist() == [True] * 3
    assert batch["bad"] == []


def test_bad_photos_are_blank_invalid_and_named(table):
    for epoch in (-1, 0):
        batch = photos_of(table)[[(5, epoch), (0, epoch), (3, epoch)]]
        assert batch["valid"].tolist() == [False, True, False]
        assert batch["bad"] == [(5, "the file is missing"), (3, "the file is empty")]
        assert (batch["images"][[0, 2]] == BLANK).all()
        assert (batch["images"][1] != BLANK).any()
        assert photos_of(table).path(5) == "é5.png"


def items(photos: PhotoDataset, keys: list) -> dict[tuple, tuple]:
    """{key: (image, draws)} as bytes."""
    batch = photos[keys]
    values = zip(keys, batch["images"], batch["draws"], strict=True)
    return {key: (image.numpy().tobytes(), draws.numpy().tobytes()) for key, image, draws in values}


def test_a_photo_is_the_same_in_any_batch_and_differs_by_epoch_seed_and_row(table):
    good = [row for row in range(NUM) if row not in BAD]
    keys = [(row, epoch) for row in good for epoch in (0, 1, 2)]
    photos = photos_of(table)
    together = items(photos, keys)
    for key in keys:
        assert items(photos, [key])[key] == together[key]
    backwards = items(photos_of(table), keys[::-1])
    assert backwards == together
    images, draws = ({value[i] for value in together.values()} for i in range(2))
    assert len(images) == len(draws) == len(keys)
    other = items(photos_of(table, seed=1), keys)
    assert all(other[key][i] != together[key][i] for key in keys for i in range(2))
    draws = photos[keys]["draws"]
    assert ((draws >= 0) & (draws < 1)).all()
    assert len(draws.unique()) == draws.numel()


def test_the_window_moves_the_square_of_resize_crop_too(table):
    """Without a random window, the square still lies anywhere along the longer side in training."""
    centred = Preprocessing(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), resize="crop")
    photos = photos_of(table, scale=(1.0, 1.0), ratio=(1.0, 1.0), preprocessing=centred)
    assert len({items(photos, [(0, epoch)])[(0, epoch)][0] for epoch in range(6)}) > 1
    with open_image(table.root / "é0.png") as photo:
        assert torch.equal(photos[[(0, -1)]]["images"][0], decode_image(photo, centred))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_number_of_workers_changes_nothing(table, num_workers):
    order = TrainSampler(np.zeros(NUM), 3, seed=5)
    order.set_epoch(2)
    batches = [
        list(DataLoader(photos_of(table), sampler=order, batch_size=None, num_workers=n)) for n in (0, num_workers)
    ]
    assert len(batches[0]) == len(batches[1]) == 3
    for one, other in zip(*batches, strict=True):
        for name in ("images", "index", "draws", "valid"):
            assert torch.equal(one[name], other[name])
        assert one["bad"] == other["bad"]


def quantiles_are_uniform(values: np.ndarray, low: float = 0.0, high: float = 1.0) -> bool:
    places = np.linspace(0, 1, 21)
    return np.abs(np.quantile((values - low) / (high - low), places) - places).max() < 0.02


def test_windows_are_uniform_in_area_aspect_and_position():
    random = np.random.default_rng(0)
    left, top, right, bottom = np.array([random_window(random, (0.1, 0.3), (0.5, 2.0)) for _ in range(20_000)]).T
    wide, high = right - left, bottom - top
    assert quantiles_are_uniform(wide * high, 0.1, 0.3)
    assert quantiles_are_uniform(np.log(wide / high), -math.log(2), math.log(2))
    assert quantiles_are_uniform(left / (1 - wide))
    assert quantiles_are_uniform(top / (1 - high))
    related = np.corrcoef([wide * high, wide / high, left / (1 - wide), top / (1 - high)])[np.triu_indices(4, 1)]
    assert abs(related).max() < 0.03


def test_windows_lie_inside_the_photo():
    random = np.random.default_rng(0)
    windows = np.array([random_window(random, (0.5, 1.0), (0.25, 4.0)) for _ in range(5_000)])
    left, top, right, bottom = windows.T
    assert (windows >= 0).all()
    assert (windows <= 1 + 1e-12).all()
    assert ((right - left) * (bottom - top) > 0.1).all()
    assert ((right - left == 1) & (bottom - top < 1)).any()  # too wide a window ends at the edges
    assert random_window(random, (1.0, 1.0), (1.0, 1.0)) == (0, 0, 1, 1)


def rows_of(order) -> list[int]:
    return [row for batch in order for row, _ in batch]


@pytest.mark.parametrize(("num", "batch_size"), [(10, 4), (12, 4), (3, 64), (1, 1), (7, 3)])
def test_train_order_takes_every_photo_and_fills_up_from_the_start(num, batch_size):
    order = TrainSampler(np.zeros(num), batch_size)
    batches = list(order)
    size = min(batch_size, num)
    assert [len(batch) for batch in batches] == [size] * math.ceil(num / size)
    assert len(order) == len(batches)
    rows = rows_of(order)
    assert sorted(rows[:num]) == list(range(num))
    assert rows[num:] == rows[: len(rows) - num]
    assert {epoch for batch in batches for _, epoch in batch} == {0}


def test_train_order_depends_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int) -> list:
        made = TrainSampler(np.zeros(50), 8, seed=seed)
        made.set_epoch(epoch)
        assert list(made) == list(made)
        return list(made)

    assert order(1, 3) == order(1, 3)
    assert {epoch for batch in order(1, 3) for _, epoch in batch} == {3}
    orders = [[row for batch in order(seed, epoch) for row, _ in batch] for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(rows) for rows in orders}) == 4


def test_train_order_takes_another_fraction_each_epoch():
    order = TrainSampler(np.zeros(100), 10, fraction=0.25)
    seen = set()
    for epoch in range(40):
        order.set_epoch(epoch)
        rows = rows_of(order)
        assert len(rows) == 30
        assert len(set(rows)) == 25
        seen |= set(rows)
    assert len(order) == 3
    assert seen == set(range(100))
    assert len(rows_of(TrainSampler(np.zeros(100), 10, fraction=0.001))) == 1


def test_balanced_gives_every_class_the_same_chance():
    codes = np.repeat([0, 1, 2, 7], [500, 90, 9, 1])
    order = TrainSampler(codes, 64, "balanced", seed=1)
    counts = np.zeros(8)
    photos_of_first = []
    for epoch in range(40):
        order.set_epoch(epoch)
        rows = rows_of(order)[:600]
        counts += np.bincount(codes[rows], minlength=8)
        photos_of_first += [row for row in rows if row < 500]
    assert counts[[0, 1, 2, 7]] / counts.sum() == pytest.approx([0.25] * 4, abs=0.02)
    assert np.bincount(photos_of_first, minlength=500).max() < 40  # 12 on average: within a class, all the same


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize(
    ("num", "batch_size", "kind"), [(50, 8, "shuffle"), (48, 4, "balanced"), (5, 4, "shuffle"), (2, 8, "shuffle")]
)
def test_ranks_share_the_photos_in_as_many_batches(num, batch_size, kind, world_size):
    codes = np.arange(num) % 2
    orders = [TrainSampler(codes, batch_size, kind, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [list(order) for order in orders]
    assert len({len(of_rank) for of_rank in batches}) == 1
    assert len(batches[0]) == len(orders[0])
    assert len({len(batch) for of_rank in batches for batch in of_rank}) == 1
    interleaved = [row for rows in zip(*map(rows_of, orders), strict=True) for row in rows]
    if kind == "shuffle":
        assert sorted(interleaved[:num]) == list(range(num))
    else:  # the same draw as one process makes
        assert interleaved[:num] == rows_of(TrainSampler(codes, batch_size, kind))[:num]


@pytest.mark.parametrize(
    ("num", "num_groups", "size"),
    [(7, 40, 3), (5, 33, 4), (4, 9, 4), (12, 30, 5), (2, 20, 2), (9, 1, 4), (6, 0, 3), (1, 3, 1), (100, 7, 3)],
)
def test_cycles_give_all_numbers_equally_often_and_none_twice_in_a_group(num, num_groups, size):
    groups = shuffled_cycles(num, num_groups, size, np.random.default_rng(0))
    assert groups.shape == (num_groups, size)
    assert all(len(set(group)) == size for group in groups.tolist())
    numbers = groups.ravel().tolist()
    for start in range(0, len(numbers), num):  # a cycle after the other
        cycle = numbers[start : start + num]
        assert len(set(cycle)) == len(cycle)
        assert set(cycle) <= set(range(num))


def test_cycles_of_fewer_numbers_than_a_group_has():
    groups = shuffled_cycles(3, 50, 7, np.random.default_rng(0))
    for group in groups:
        assert sorted(np.bincount(group)) == [2, 2, 3]
    assert len({tuple(group) for group in groups.tolist()}) == 6  # all orders


def test_cycles_are_uniform():
    """Each number in each place of a later cycle, as far as the one before leaves it free."""
    random = np.random.default_rng(0)
    drawn = np.array([shuffled_cycles(5, 5, 3, random).ravel() for _ in range(6_000)])
    for place in range(15):
        assert np.bincount(drawn[:, place], minlength=5) / 6_000 == pytest.approx([0.2] * 5, abs=0.03)
    # Place 5 begins the second cycle, in a group with the places 3 and 4 of the first
    same = drawn[:, 5:6] == drawn[:, :5]
    assert same.mean(axis=0) == pytest.approx([1 / 3] * 3 + [0, 0], abs=0.03)


PER_CLASS = np.repeat([3, 0, UNKNOWN, 1, 2, 8], [20, 8, 9, 3, 14, 1])


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("batch_size", "photos_per_class"), [(8, 4), (20, 4), (6, 2), (5, 1), (9, 3)])
def test_per_class_gives_each_process_whole_classes(batch_size, photos_per_class, world_size):
    for rank in range(world_size):
        order = TrainSampler(
            PER_CLASS, batch_size, "per_class", rank=rank, world_size=world_size, photos_per_class=photos_per_class
        )
        batches = [[row for row, _ in batch] for batch in order]
        assert len(batches) == len(order) == math.ceil(len(PER_CLASS) / (batch_size * world_size))
        for rows in batches:
            of_class = PER_CLASS[rows].reshape(-1, photos_per_class)
            assert (of_class == of_class[:, :1]).all()
            assert len(set(of_class[:, 0])) == batch_size // photos_per_class
            assert UNKNOWN not in of_class
            for code in of_class[:, 0]:
                there, drawn = (code == PER_CLASS).sum(), {row for row in rows if PER_CLASS[row] == code}
                assert len(drawn) == min(there, photos_per_class)


def test_per_class_takes_all_classes_equally_often_and_each_photo_of_a_class(world_size=2):
    codes = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 30))
    orders = [TrainSampler(codes, 12, "per_class", rank=r, world_size=world_size, photos_per_class=3) for r in range(2)]
    rows = [row for order in orders for row in rows_of(order)]
    assert len(rows) == 13 * 24
    counts = np.bincount(rows, minlength=300)
    of_class = np.bincount(codes, weights=counts)
    assert of_class.max() - of_class.min() <= 3  # one draw
    assert (counts >= 1).all() and (counts <= 2).all()  # 312 places for 300 photos
    few = TrainSampler(np.repeat([0, 1, 2], [300, 30, 3]), 6, "per_class", photos_per_class=3)
    few.set_epoch(5)
    drawn = np.bincount(rows_of(few), minlength=333)
    totals = [drawn[:300].sum(), drawn[300:330].sum(), drawn[330:].sum()]
    assert max(totals) - min(totals) <= 3
    for part in (drawn[:300], drawn[300:330], drawn[330:]):
        assert part.max() - part.min() <= 1


def test_per_class_depends_on_seed_and_epoch_alone_and_resumes_inside_an_epoch():
    def batches(seed: int, epoch: int, start: int = 0) -> list:
        order = TrainSampler(PER_CLASS, 8, "per_class", seed=seed, photos_per_class=4)
        order.set_epoch(epoch)
        order.start = start
        return list(order)

    assert batches(1, 3) == batches(1, 3)
    assert batches(1, 3, start=2) == batches(1, 3)[2:]
    assert len({str([[row for row, _ in b] for b in batches(seed, e)]) for seed in (0, 1) for e in (0, 1)}) == 4
    assert len(TrainSampler(PER_CLASS, 8, "per_class", fraction=0.5)) == 4  # of 55 photos 28


@pytest.mark.parametrize(
    ("batch_size", "photos_per_class", "world_size"), [(10, 4, 1), (4, 4, 1), (24, 4, 2), (3, 4, 1), (6, 1, 1)]
)
def test_batches_that_do_not_hold_so_many_of_so_many_classes(batch_size, photos_per_class, world_size):
    known = (
        rf"a multiple of {photos_per_class} from {2 * photos_per_class} to {5 * photos_per_class} \(2 to all 5 classes"
    )
    with pytest.raises(InputError, match=rf"^data.batch_size: {batch_size} is not, .*per_class.*{known}"):
        TrainSampler(PER_CLASS, batch_size, "per_class", world_size=world_size, photos_per_class=photos_per_class)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize(("num", "batch_size"), [(10, 4), (12, 4), (2, 5), (9, 8), (1, 1), (100, 7)])
def test_table_order_gives_every_photo_once_in_batches_of_one_size(num, batch_size, world_size):
    orders = [TableSampler(num, batch_size, rank, world_size) for rank in range(world_size)]
    photos = [[row for row in rows_of(order) if row >= 0] for order in orders]
    assert sorted(row for rows in photos for row in rows) == list(range(num))
    assert all(rows == sorted(rows) for rows in photos)
    batches = [list(order) for order in orders]
    assert [len(of_rank) for of_rank in batches] == [len(order) for order in orders]
    assert len({len(order) for order in orders}) == 1
    sizes = {len(batch) for of_rank in batches for batch in of_rank}
    assert len(sizes) == 1
    assert max(sizes) <= batch_size
    assert all(epoch == -1 for of_rank in batches for batch in of_rank for _, epoch in batch)
    if world_size == 1:  # no more batches than need be, and less than one place a batch to fill
        assert len(orders[0]) == math.ceil(num / batch_size)
        assert sum(len(batch) for batch in batches[0]) - num < len(orders[0])


def test_padding_is_blank_invalid_and_no_bad_photo(table):
    photos = photos_of(table, crop_to_box=True)
    batch = photos[[(1, -1), PADDING, PADDING]]
    assert batch["index"].tolist() == [1, -1, -1]
    assert batch["valid"].tolist() == [True, False, False]
    assert batch["bad"] == []
    assert torch.equal(batch["images"][1:], torch.full_like(batch["images"][1:], BLANK))
    assert torch.equal(batch["images"][:1], photos[[(1, -1)]]["images"])
