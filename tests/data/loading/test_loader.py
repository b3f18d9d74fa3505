"""Batches: photos and their randomness, the threads that read them, and samplers: sizes, chances, processes, order."""

import math
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from carvision.data.decode import decode_image
from carvision.data.images import BLANK, Preprocessing, open_image
from carvision.data.loading.dataset import PADDING, PhotoDataset, random_windows
from carvision.data.loading.loader import Loader, ResumableLoader
from carvision.data.loading.samplers import TableSampler, TrainSampler
from carvision.data.table import BOX, UNKNOWN, Classes, Number, Table
from carvision.data.threads import InThreads
from carvision.errors import InputError
from tests.conftest import ROOT

PREPROCESSING = Preprocessing(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NUM = 8
BAD = {3, 5}


@pytest.fixture
def table(tmp_path) -> Table:
    """Write noisy photos of 24 x 16 px; 3 is an empty file, 5 is missing."""
    random = np.random.default_rng(0)
    for i in set(range(NUM)) - BAD:
        Image.fromarray(random.integers(0, 256, (16, 24, 3), np.uint8)).save(tmp_path / f"é{i}.png")
    (tmp_path / "é3.png").touch()
    rows = pd.DataFrame({"path": [f"é{i}.png" for i in range(NUM)], "split": "train"})
    rows["class"] = np.array([0, 1, UNKNOWN, 1, 0, 1, 0, 1], np.int32)
    rows["speed"] = np.array([200, 150, math.nan, 1, 2, 3, 4, 5], np.float32)
    rows[BOX] = np.float32([2, 1, 20, 9])
    return Table("some", tmp_path, rows, {"class": Classes(("a", "b"), ("a", "b")), "speed": Number()}, "class")


def photos_of(table: Table, crop_to_box=False, seed=0) -> PhotoDataset:
    return PhotoDataset(table, PREPROCESSING, crop_to_box, (0.3, 1.0), (0.5, 2.0), 4, seed)


@pytest.mark.parametrize("crop_to_box", [False, True])
def test_outside_of_training_images_show_the_whole_photo_or_box(table, crop_to_box):
    batch = photos_of(table, crop_to_box)[[(6, -1), (0, -1), (2, -1)]]
    box = table.rows[BOX].to_numpy()[0] if crop_to_box else None
    for image, row in zip(batch["images"], (6, 0, 2), strict=True):
        with open_image(table.root / f"é{row}.png") as photo:
            assert torch.equal(image, decode_image(photo, PREPROCESSING, box))
    assert batch["images"].dtype == torch.uint8 and batch["images"].shape == (3, 3, 8, 8)
    assert batch["index"].tolist() == [6, 0, 2]
    classes, speed = batch["targets"]["class"], batch["targets"]["speed"]
    assert (classes.tolist(), classes.dtype, speed.dtype) == ([0, 0, UNKNOWN], torch.int64, torch.float32)
    assert speed.tolist() == pytest.approx([4, 200, math.nan], nan_ok=True)
    assert batch["draws"].tolist() == [[0.0] * 4] * 3
    assert batch["valid"].tolist() == [True] * 3 and batch["reasons"] == [None] * 3


def test_bad_photos_and_padding_are_blank_and_invalid_and_bad_ones_reported(table):
    dataset = photos_of(table, crop_to_box=True)
    for epoch in (-1, 0):
        batch = dataset[[(5, epoch), (0, epoch), (3, epoch), PADDING, PADDING]]
        assert batch["index"].tolist() == [5, 0, 3, -1, -1]
        assert batch["valid"].tolist() == [False, True, False, False, False]
        assert batch["reasons"] == ["the file is missing", None, "the file is empty", None, None]
        assert (batch["images"][[0, 2, 3, 4]] == BLANK).all()
        assert torch.equal(batch["images"][1], dataset[[(0, epoch)]]["images"][0])
    assert dataset.paths[5] == "é5.png" and dataset.location(5) == str(table.root / "é5.png")


def items(photos: PhotoDataset, keys: list) -> dict[tuple, tuple]:
    """Return {key: (image, draws)} as bytes."""
    batch = photos[keys]
    values = zip(keys, batch["images"], batch["draws"], strict=True)
    return {key: (image.numpy().tobytes(), draws.numpy().tobytes()) for key, image, draws in values}


def test_an_image_is_the_same_in_any_batch_and_differs_by_epoch_seed_and_row(table):
    keys = [(row, epoch) for row in set(range(NUM)) - BAD for epoch in (0, 1, 2)]
    photos = photos_of(table)
    together = items(photos, keys)
    for key in keys:
        assert items(photos, [key])[key] == together[key]
    assert items(photos_of(table), keys[::-1]) == together
    images, draws = ({value[i] for value in together.values()} for i in range(2))
    assert len(images) == len(draws) == len(keys)
    other = items(photos_of(table, seed=1), keys)
    assert all(other[key][i] != together[key][i] for key in keys for i in range(2))
    draws = photos[keys]["draws"]
    assert ((draws >= 0) & (draws < 1)).all() and len(draws.unique()) == draws.numel()


def quantiles_are_uniform(values: np.ndarray, low: float = 0.0, high: float = 1.0) -> bool:
    levels = np.linspace(0, 1, 21)
    return np.abs(np.quantile((values - low) / (high - low), levels) - levels).max() < 0.02


def test_windows_lie_inside_the_photo_uniform_in_area_aspect_and_position():
    random = np.random.default_rng(0)
    left, top, right, bottom = random_windows(random.random((20_000, 4)), (0.1, 0.3), (0.5, 2.0)).T
    wide, high = right - left, bottom - top
    assert quantiles_are_uniform(wide * high, 0.1, 0.3)
    assert quantiles_are_uniform(np.log(wide / high), -math.log(2), math.log(2))
    assert quantiles_are_uniform(left / (1 - wide)) and quantiles_are_uniform(top / (1 - high))
    related = np.corrcoef([wide * high, wide / high, left / (1 - wide), top / (1 - high)])[np.triu_indices(4, 1)]
    assert abs(related).max() < 0.03
    left, top, right, bottom = random_windows(random.random((5_000, 4)), (0.5, 1.0), (0.25, 4.0)).T
    assert min(left.min(), top.min()) >= 0 and max(right.max(), bottom.max()) <= 1 + 1e-12
    assert ((right - left) * (bottom - top) > 0.1).all()
    assert ((right - left == 1) & (bottom - top < 1)).any()  # too wide a window ends at the edges
    assert random_windows(random.random((1, 4)), (1.0, 1.0), (1.0, 1.0)).tolist() == [[0, 0, 1, 1]]


class Numbers:
    """Batches of their own keys, as lists. wrong: the key that raises; gate: {key: event to wait for}."""

    def __init__(self, wrong: object = None, gate: dict | None = None):
        self.wrong, self.gate, self.begun, self.read_by = wrong, gate or {}, 0, {}

    def begin(self, keys: list, pin_memory: bool) -> list:
        self.begun += 1
        return [None] * len(keys)

    def read(self, batch: list, keys: list, start: int) -> None:
        for i, key in enumerate(keys, start):
            assert key not in self.gate or self.gate[key].wait(60)
            if key == self.wrong:
                raise InputError(f"shard of {key}: can't be fetched")
            batch[i], self.read_by[key] = key, threading.current_thread()


def batches_of(count: int, size: int) -> list[list[int]]:
    return np.arange(count * size).reshape(count, size).tolist()


def wait_until(condition) -> bool:
    for _ in range(60_000):
        if condition():
            return True
        threading.Event().wait(0.001)
    raise AssertionError("nothing happened")


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = {*threading.enumerate()}
    yield
    assert {*threading.enumerate()} <= before


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_batches_come_whole_and_in_order(size, num_workers):
    numbers, wanted = Numbers(), batches_of(9, size)
    loader = Loader(numbers, wanted, size, num_workers)
    assert len(loader) == 9 and list(loader) == list(loader) == wanted
    threads = {*numbers.read_by.values()}
    assert (threads == {threading.current_thread()}) == (num_workers == 0) and len(threads) <= max(1, num_workers)


def test_a_slow_photo_delays_no_other_and_read_ahead_is_bounded():
    gate = threading.Event()
    numbers, wanted = Numbers(gate={0: gate}), batches_of(50, 16)
    loader = iter(Loader(numbers, wanted, 16, 2))
    others = threading.Timer(0, lambda: wait_until(lambda: len(numbers.read_by) >= 16) and gate.set())
    others.start()
    for number in range(20):
        assert next(loader) == wanted[number] and numbers.begun <= number + 4  # two ahead, and one is begun
    others.join()
    loader.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_is_raised_at_its_batch_and_ends_the_reading(num_workers):
    loader = iter(Loader(Numbers(wrong=21), batches_of(9, 4), 4, num_workers))
    assert [next(loader) for _ in range(5)] == batches_of(5, 4)
    with pytest.raises(InputError, match="shard of 21"):
        next(loader)
    assert list(loader) == []


def test_it_can_begin_before_the_first_batch_is_asked_for():
    numbers = Numbers()
    loader = Loader(numbers, batches_of(5, 4), 4, 1)
    iter(loader)  # as Lightning does, to see whether it can
    assert numbers.begun == 0
    for _ in range(2):
        loader.start()
        assert wait_until(lambda: len(numbers.read_by) == 8) and numbers.begun <= 3
    assert list(loader) == list(loader) == batches_of(5, 4)
    loader.start()  # and is dropped


def test_a_task_in_progress_ends_and_those_that_wait_are_dropped_with_the_iterator():
    gate = threading.Event()
    numbers = Numbers(gate={4: gate})
    loader = iter(Loader(numbers, batches_of(50, 4), 4, 1))
    next(loader)
    threading.Timer(0.05, gate.set).start()
    del loader  # waits for 4
    assert 4 in numbers.read_by and len(numbers.read_by) < 12


def test_reading_threads_do_not_multiply_torchs_threads():
    numbers, before = Numbers(), torch.get_num_threads()
    numbers.read = lambda batch, keys, start: batch.append(torch.get_num_threads())
    torch.set_num_threads(2)
    try:
        assert list(Loader(numbers, batches_of(1, 1), 1, 2)) == [[None, 1]] and torch.get_num_threads() == 2
        assert list(InThreads(torch.get_num_threads, [()], 1)) == [2]  # threads that others start
    finally:
        torch.set_num_threads(before)


END = """
import threading, time
from carvision.data import threads

threads.END_S = {limit}
begun = threading.Event()
def read(number):
    begun.set()
    time.sleep({seconds})
    print("read", number, flush=True)

results = threads.InThreads(read, [(number,) for number in range(9)], 1)
begun.wait()
{end}
"""


@pytest.mark.parametrize("seconds, limit, end, code", [(0.2, 60, "", 0), (0.2, 60, "exit(138)", 138), (99, 0.1, "", 0)])
def test_the_end_of_the_process_waits_for_a_photo_and_not_for_a_disk(seconds, limit, end, code):
    program = END.format(seconds=seconds, limit=limit, end=end)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    printed = "" if seconds > limit else "read 0\n"
    assert (done.returncode, done.stdout, done.stderr) == (code, printed, "")


def test_the_number_of_threads_changes_nothing(table):
    found = []
    for num_workers in (0, 1, 3):
        sampler = TrainSampler(np.zeros(NUM), 3, seed=5)
        sampler.set_epoch(2)
        found.append(list(Loader(photos_of(table), sampler, 3, num_workers)))
    for one, *others in zip(*found, strict=True):
        for other in others:
            assert all(torch.equal(one[name], other[name]) for name in ("images", "index", "draws", "valid"))
            assert one["reasons"] == other["reasons"]
    bad = {int(row) for batch in found[2] for row, why in zip(batch["index"], batch["reasons"], strict=True) if why}
    assert bad == BAD


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_resumes_after_any_batch(num_workers):
    first, other = (ResumableLoader(Numbers(), TrainSampler(np.zeros(50), 4), 4, num_workers) for _ in range(2))
    keys = list(TrainSampler(np.zeros(50), 4))
    for given in (0, 1, 5, len(keys)):
        first.given, batches = 0, iter(first)
        assert [next(batches) for _ in range(given)] == keys[:given] and first.state_dict() == {"given": given}
        batches.close()
        other.load_state_dict({"given": given})
        assert list(other) == (keys[given:] or keys) and list(other) == keys


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
