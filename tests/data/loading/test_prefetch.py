"""Batches to the device. What CUDA itself does can't be tested here: only what is asked of it, and in which order."""

import contextlib

import pytest
import torch

from carvision.data.loading.loader import PhotoDataModule, Prefetch, tensors_of
from tests.small_runs import demo, train


def batch_of(make) -> dict:
    return {"images": make("images"), "targets": {"make": make("make"), "model": make("model")}, "valid": make("valid")}


def test_on_the_cpu_the_batch_is_handed_through():
    datamodule = PhotoDataModule(read=None, create_dataset=None, batch_size=8)
    batch = batch_of(lambda name: torch.rand(3))
    moved = datamodule.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert all(a is b for a, b in zip(tensors_of(batch), tensors_of(moved), strict=True))
    assert datamodule.prefetch.stream is None


@pytest.fixture
def cuda(monkeypatch):
    """A pretended torch.cuda, and the list of what was asked of it."""
    asked, current = [], ["step"]

    class Stream:
        def __init__(self, name="copies"):
            self.name = name
            asked.append(f"new {name}") if name == "copies" else None

        def wait_stream(self, other):
            asked.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def within(stream):
        current.append(stream.name)
        yield
        current.pop()

    class FakeTensor(torch.Tensor):
        def to(self, device, non_blocking=False):
            asked.append(f"{self.called} to {device} in {current[-1]}{'' if non_blocking else ', waiting'}")
            return self

        def record_stream(self, stream):
            asked.append(f"{self.called} used by {stream.name}")

    def fake(name: str) -> torch.Tensor:
        tensor = torch.rand(3).as_subclass(FakeTensor)
        tensor.called = name
        return tensor

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("step"))
    return fake, asked


def test_on_cuda_the_copy_has_its_own_stream_the_step_waits_for_it_and_keeps_the_memory(cuda):
    fake, asked = cuda
    prefetch = Prefetch()
    names = ["images", "make", "model", "valid"]
    copies = [f"{name} to cuda:0 in copies" for name in names]
    kept = [f"{name} used by step" for name in names]
    prefetch(batch_of(fake), torch.device("cuda", 0))
    assert asked == ["new copies", *copies, "step waits for copies", *kept]
    asked.clear()
    prefetch(batch_of(fake), torch.device("cuda", 0))
    assert asked == [*copies, "step waits for copies", *kept]  # the same stream again


def test_the_batches_of_a_run_go_through_it_without_what_ends_on_the_host(demo_photos, tmp_path, monkeypatch):
    seen = []
    real = PhotoDataModule.transfer_batch_to_device
    monkeypatch.setattr(
        PhotoDataModule, "transfer_batch_to_device", lambda self, *a: seen.append(set(a[0])) or real(self, *a)
    )
    train(tmp_path / "run", *demo(demo_photos), "trainer.max_epochs=1")
    assert len(seen) > 10 and all("bad" not in keys and "images" in keys for keys in seen)
