"""Batches that workers return in shared memory that is reused."""

import gc
import multiprocessing
import os

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from carvision.data.loading.loader import EarlyLoader, init_worker
from carvision.data.loading.shared_batches import BUFFERS_PER_WORKER, SharedBatches, empty_bytes, share_batches
from carvision.errors import InputError
from carvision.system.machine import FORK

pytestmark = pytest.mark.skipif(FORK is None, reason="workers are not forked here")
SIZE = 5000  # bytes: less than two pages


class Numbered(Dataset):
    """Item i: a tensor full of i, and what else a batch may hold."""

    def __getitem__(self, number: int) -> dict:
        if number == 99:
            raise InputError("99 is wrong")
        images = empty_bytes(SIZE if number < 50 else 3 * SIZE).fill_(number)
        return {
            "images": images[: SIZE // 8 * 8].view(-1, 2, 4).permute(2, 0, 1),
            "more": [(number, torch.tensor([number] * 3)), {"valid": torch.ones(2, dtype=torch.bool)}],
            "large": torch.full((40_000,), float(number)),
            **({"odd": torch.ones(1, dtype=torch.bfloat16)} if number == 98 else {}),
        }


def create_loader(numbers, num_workers: int = 1, kind: type = DataLoader) -> tuple[DataLoader, SharedBatches]:
    shared = SharedBatches(Numbered(), num_workers, SIZE)
    loader = kind(
        shared, sampler=numbers, batch_size=None, num_workers=num_workers, multiprocessing_context=FORK,
        persistent_workers=True, timeout=60,
    )  # fmt: skip
    return loader, shared


def is_right(batch: dict, number: int) -> bool:
    expected = Numbered()[number]
    (_, more), (pair, rest) = expected["more"][0], batch["more"]
    assert batch["images"].stride() == expected["images"].stride() and rest["valid"].dtype == torch.bool
    return (
        all(torch.equal(batch[name], expected[name]) for name in ("images", "large"))
        and (pair[0], pair[1].dtype) == (number, torch.int64) and torch.equal(pair[1], more)
    )  # fmt: skip


def num_taken(shared: SharedBatches) -> int:
    gc.collect()
    return sum(shared.buffers.taken[:])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_batches_arrive_unchanged_and_buffers_are_reused(num_workers):
    loader, shared = create_loader(range(40), num_workers)
    addresses = set()
    for _ in range(2):
        for number, batch in enumerate(loader):
            assert is_right(batch, number)
            addresses.add(batch["images"].untyped_storage().data_ptr())
    del batch
    assert len(addresses) <= num_workers * BUFFERS_PER_WORKER and num_taken(shared) == 0


def test_batches_that_are_held_stay_unchanged():
    """So do views of them, and more batches than there are buffers."""
    loader, shared = create_loader(range(30))
    held = list(loader)
    assert all(is_right(batch, number) for number, batch in enumerate(held))
    assert num_taken(shared) == BUFFERS_PER_WORKER
    views = [batch["images"][0, 0].numpy() for batch in held]
    del held
    assert all(is_right(batch, number) for number, batch in enumerate(list(loader)))
    assert all((view == number).all() for number, view in enumerate(views))


def test_too_large_batches_arrive_and_failed_ones_free_their_buffer():
    loader, shared = create_loader([1, 60, *[1, 99] * (2 * BUFFERS_PER_WORKER), 98])
    batches = iter(loader)
    assert is_right(next(batches), 1) and (next(batches)["images"] == 60).all()
    for _ in range(2 * BUFFERS_PER_WORKER):
        assert is_right(next(batches), 1)
        with pytest.raises(InputError, match=r"^99 is wrong$"):
            next(batches)
    with pytest.raises(TypeError, match="BFloat16"):  # can't be pickled, which is an error of the worker
        next(batches)
    assert num_taken(shared) == 0


def test_a_validation_releases_its_memory_after_the_last_batch():
    loader, shared = create_loader(range(20), kind=EarlyLoader)
    for early in (True, False):
        if early:
            loader.start_workers()
        batches = iter(loader)
        for _ in range(20):  # and no more, like Lightning
            last = next(batches)["images"]
        buffers = [shared.buffers.bytes_of(buffer) for buffer in range(BUFFERS_PER_WORKER)]
        # Except for this batch, and the previous one, which was held while this one arrived
        assert (last == 19).all() and sum(values.any() for values in buffers) == 2


def test_only_the_process_that_received_a_batch_frees_its_buffer():
    """Its forks have a copy of the tensor and the same memory."""
    loader, shared = create_loader(range(3))
    batch = next(iter(loader))
    child = multiprocessing.get_context(FORK).Process(target=lambda: (batch.clear(), gc.collect()))
    child.start()
    child.join()
    assert child.exitcode == 0 and shared.buffers.taken[0] == 1 and is_right(batch, 0)


def test_a_worker_whose_parent_has_gone_ends():
    """If the parent goes before torch notes its id, torch would never notice, and wait forever."""
    for parent, code in ((os.getpid(), 0), (os.getppid(), 1)):
        worker = multiprocessing.get_context(FORK).Process(target=init_worker, args=(parent, 0))
        worker.start()
        worker.join()
        assert worker.exitcode == code


def test_without_workers_or_shared_memory_the_dataset_is_used_directly(monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(12, "Cannot allocate memory")

    dataset = Numbered()
    shared = share_batches(dataset, 1, SIZE)
    assert isinstance(shared, SharedBatches) and is_right(shared[3], 3) and num_taken(shared) == 0
    assert share_batches(dataset, 0, SIZE) is dataset
    monkeypatch.setattr("carvision.data.loading.shared_batches.mmap.mmap", refuse)
    assert share_batches(dataset, 1, SIZE) is dataset
