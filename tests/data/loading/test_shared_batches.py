"""Batches that reading processes hand over in memory that is used again."""

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

pytestmark = pytest.mark.skipif(FORK is None, reason="readers are not forked here")
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
        }


def loader_of(numbers, num_readers: int = 1) -> tuple[DataLoader, SharedBatches]:
    handed = SharedBatches(Numbered(), num_readers, SIZE)
    loader = DataLoader(
        handed, sampler=numbers, batch_size=None, num_workers=num_readers, multiprocessing_context=FORK,
        persistent_workers=True,
    )  # fmt: skip
    return loader, handed


def is_right(batch: dict, number: int) -> bool:
    plain = Numbered()[number]
    images, (pair, rest) = batch["images"], batch["more"]
    return (
        torch.equal(images, plain["images"])
        and images.stride() == plain["images"].stride()
        and (pair[0], pair[1].tolist(), pair[1].dtype) == (number, [number] * 3, torch.int64)
        and rest["valid"].dtype == torch.bool
        and torch.equal(batch["large"], plain["large"])
    )


def num_taken(handed: SharedBatches) -> int:
    return sum(handed.slots.taken[:])


@pytest.mark.parametrize("num_readers", [1, 2])
def test_batches_arrive_as_they_were_made_and_slots_are_used_again(num_readers):
    loader, handed = loader_of(range(40), num_readers)
    addresses = set()
    for _ in range(2):
        for number, batch in enumerate(loader):
            assert is_right(batch, number)
            addresses.add(batch["images"].untyped_storage().data_ptr())
    del batch
    gc.collect()
    assert len(addresses) <= num_readers * BUFFERS_PER_WORKER and num_taken(handed) == 0


def test_batches_that_are_kept_stay_as_they_are():
    """Also views of them, and more of them than there are slots."""
    loader, handed = loader_of(range(30))
    kept = list(loader)
    assert all(is_right(batch, number) for number, batch in enumerate(kept))
    assert num_taken(handed) == BUFFERS_PER_WORKER
    views = [batch["images"][0, 0].numpy() for batch in kept]
    del kept
    again = list(loader)
    assert all(is_right(batch, number) for number, batch in enumerate(again))
    assert all((view == number).all() for number, view in enumerate(views))


def test_what_is_larger_than_a_slot_arrives_too():
    loader, _ = loader_of([1, 60, 2])
    first, large, last = loader
    assert is_right(first, 1) and is_right(last, 2) and (large["images"] == 60).all()


def test_a_batch_that_fails_leaves_no_slot_behind():
    loader, handed = loader_of([1, 99] * (2 * BUFFERS_PER_WORKER))
    batches = iter(loader)
    for _ in range(2 * BUFFERS_PER_WORKER):
        assert is_right(next(batches), 1)
        with pytest.raises(InputError, match=r"^99 is wrong$"):
            next(batches)
    gc.collect()
    assert num_taken(handed) == 0


def test_after_its_last_batch_a_validation_gives_its_memory_back():
    handed = SharedBatches(Numbered(), 1, SIZE)
    loader = EarlyLoader(
        handed, sampler=range(20), batch_size=None, num_workers=1, multiprocessing_context=FORK, persistent_workers=True
    )
    for begun_early in (True, False):
        if begun_early:
            loader.start_workers()
        batches = iter(loader)
        for _ in range(20):  # and no more, as Lightning does it
            last = next(batches)["images"]
        slots = [handed.slots.bytes_of(slot) for slot in range(BUFFERS_PER_WORKER)]
        # But for this batch, and the one before, which was held while this one came
        assert (last == 19).all() and sum(values.any() for values in slots) == 2


def test_only_the_process_that_has_a_batch_frees_its_slot():
    """A fork of it has a copy of the tensor, and memory that is the same."""
    loader, handed = loader_of(range(3))
    batch = next(iter(loader))
    child = multiprocessing.get_context(FORK).Process(target=lambda: (batch.clear(), gc.collect()))
    child.start()
    child.join()
    assert child.exitcode == 0 and handed.slots.taken[0] == 1 and is_right(batch, 0)


def test_what_cannot_be_packed_is_an_error_of_the_reader():
    class Odd(Numbered):
        def __getitem__(self, number: int) -> dict:
            return super().__getitem__(number) | {"odd": torch.ones(1, dtype=torch.bfloat16)}

    handed = SharedBatches(Odd(), 1, SIZE)
    with pytest.raises(TypeError, match="BFloat16"):
        list(
            DataLoader(handed, sampler=[1, 2], batch_size=None, num_workers=1, multiprocessing_context=FORK, timeout=60)
        )
    gc.collect()
    assert num_taken(handed) == 0


def test_a_reader_whose_training_process_has_gone_ends():
    """Gone before torch looks whose child it is: it would never see that, and wait for ever."""
    context = multiprocessing.get_context(FORK)
    for training, code in ((os.getpid(), 0), (os.getppid(), 1)):
        reader = context.Process(target=init_worker, args=(training, 0))
        reader.start()
        reader.join()
        assert reader.exitcode == code


def test_a_system_without_that_memory_gives_the_dataset_itself(monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(12, "Cannot allocate memory")

    batches = Numbered()
    assert share_batches(batches, 0, SIZE) is batches and isinstance(share_batches(batches, 1, SIZE), SharedBatches)
    monkeypatch.setattr("carvision.data.loading.shared_batches.mmap.mmap", refuse)
    assert share_batches(batches, 1, SIZE) is batches


def test_without_readers_it_is_the_dataset_itself():
    handed = SharedBatches(Numbered(), 1, SIZE)
    assert is_right(handed[3], 3) and num_taken(handed) == 0
