"""Batch samplers: sizes, chances, processes, and what decides the order."""

import math

import numpy as np
import pytest

from carvision.data.loading.samplers import TableSampler, TrainSampler
from carvision.data.table import UNKNOWN


def rows_of(sampler) -> list[int]:
    return [row for batch in sampler for row, _ in batch]


@pytest.mark.parametrize(("num", "batch_size"), [(10, 4), (12, 4), (3, 64), (1, 1)])
def test_shuffle_takes_every_photo_and_fills_up_from_the_start(num, batch_size):
    sampler = TrainSampler(np.zeros(num), batch_size)
    batches = list(sampler)
    size = min(batch_size, num)
    assert [len(batch) for batch in batches] == [size] * math.ceil(num / size) and len(sampler) == len(batches)
    rows = rows_of(sampler)
    assert sorted(rows[:num]) == list(range(num)) and rows[num:] == rows[: len(rows) - num]
    assert {epoch for batch in batches for _, epoch in batch} == {0}


@pytest.mark.parametrize("kind", ["shuffle", "balanced", "per_class"])
def test_seed_and_epoch_alone_decide_the_order_and_a_run_resumes_inside_an_epoch(kind):
    def batches(seed: int, epoch: int, start: int = 0) -> list:
        sampler = TrainSampler(PER_CLASS, 8, kind, seed=seed)
        sampler.set_epoch(epoch)
        sampler.start = start
        skipped, whole = list(sampler), list(sampler)
        assert skipped == whole[start:]  # only the first iteration skips
        return whole

    assert batches(1, 3) == batches(1, 3, start=2)
    assert {epoch for batch in batches(1, 3) for _, epoch in batch} == {3}
    assert len({str([[row for row, _ in b] for b in batches(seed, e)]) for seed in (0, 1) for e in (0, 1)}) == 4


def test_each_epoch_takes_another_fraction():
    sampler = TrainSampler(np.zeros(100), 10, fraction=0.25)
    seen = set()
    for epoch in range(40):
        sampler.set_epoch(epoch)
        rows = rows_of(sampler)
        assert len(rows) == 30 and len(set(rows)) == 25
        seen |= set(rows)
    assert len(sampler) == 3 and seen == set(range(100))


def test_balanced_draws_every_class_with_the_same_probability():
    codes = np.repeat([0, 1, 2, 7], [500, 90, 9, 1])
    sampler = TrainSampler(codes, 64, "balanced", seed=1)
    drawn = []
    for epoch in range(40):
        sampler.set_epoch(epoch)
        drawn += rows_of(sampler)[:600]
    assert np.bincount(codes[drawn])[[0, 1, 2, 7]] / len(drawn) == pytest.approx([0.25] * 4, abs=0.02)
    assert np.bincount(drawn)[:500].max() < 40  # 12 on average: within a class, all the same


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize(("num", "batch_size", "kind"), [(50, 8, "shuffle"), (48, 4, "balanced"), (2, 8, "shuffle")])
def test_processes_share_the_photos_in_equally_many_batches(num, batch_size, kind, world_size):
    codes = np.arange(num) % 2
    samplers = [TrainSampler(codes, batch_size, kind, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [list(sampler) for sampler in samplers]
    assert {len(of_rank) for of_rank in batches} == {len(samplers[0])}
    assert len({len(batch) for of_rank in batches for batch in of_rank}) == 1
    interleaved = [row for rows in zip(*map(rows_of, samplers), strict=True) for row in rows]
    if kind == "shuffle":
        assert sorted(interleaved[:num]) == list(range(num))
    else:  # the same draw as one process makes
        assert interleaved[:num] == rows_of(TrainSampler(codes, batch_size, kind))[:num]


PER_CLASS = np.repeat([3, 0, UNKNOWN, 1, 2, 8], [20, 8, 9, 3, 14, 1])


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("batch_size", "photos_per_class"), [(8, 4), (20, 4), (5, 1)])
def test_per_class_gives_each_process_whole_classes(batch_size, photos_per_class, world_size):
    options = {"world_size": world_size, "photos_per_class": photos_per_class}
    for rank in range(world_size):
        sampler = TrainSampler(PER_CLASS, batch_size, "per_class", rank=rank, **options)
        batches = [[row for row, _ in batch] for batch in sampler]
        assert len(batches) == len(sampler) == math.ceil(len(PER_CLASS) / (batch_size * world_size))
        for rows in batches:
            classes = PER_CLASS[rows].reshape(-1, photos_per_class)
            assert (classes == classes[:, :1]).all() and UNKNOWN not in classes
            assert len(set(classes[:, 0])) == batch_size // photos_per_class
            for code in classes[:, 0]:
                drawn = {row for row in rows if PER_CLASS[row] == code}
                assert len(drawn) == min((code == PER_CLASS).sum(), photos_per_class)


def test_per_class_takes_all_classes_equally_often_and_all_photos_of_a_class():
    codes = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 30))
    samplers = [TrainSampler(codes, 12, "per_class", rank=r, world_size=2, photos_per_class=3) for r in range(2)]
    rows = [row for sampler in samplers for row in rows_of(sampler)]
    assert len(rows) == 13 * 24  # 312 for 300 photos
    counts = np.bincount(rows, minlength=300)
    assert np.ptp(np.bincount(codes, weights=counts)) <= 3  # one draw
    assert counts.min() >= 1 and counts.max() <= 2


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize(("num", "batch_size"), [(10, 4), (2, 5), (9, 8), (100, 7)])
def test_the_table_sampler_takes_every_photo_once_in_batches_of_one_size(num, batch_size, world_size):
    samplers = [TableSampler(num, batch_size, rank, world_size) for rank in range(world_size)]
    photos = [[row for row in rows_of(sampler) if row >= 0] for sampler in samplers]
    assert sorted(row for rows in photos for row in rows) == list(range(num))
    assert all(rows == sorted(rows) for rows in photos)
    batches = [list(sampler) for sampler in samplers]
    assert {len(of_rank) for of_rank in batches} == {len(sampler) for sampler in samplers} == {len(samplers[0])}
    (size,) = {len(batch) for of_rank in batches for batch in of_rank}
    assert size <= batch_size
    assert all(epoch == -1 for of_rank in batches for batch in of_rank for _, epoch in batch)
    if world_size == 1:  # no more batches than needed, and less than one PADDING per batch
        assert len(batches[0]) == math.ceil(num / batch_size) and size * len(batches[0]) - num < len(batches[0])
