"""Copies to the device; tests/training tests the loaders in whole runs."""

from unittest import mock

import torch

from carvision.data.loading.loader import Prefetch


def test_on_cuda_copies_have_a_stream_that_the_step_waits_for_and_its_memory_is_kept_for_the_step(monkeypatch):
    """Without CUDA, only the calls and their order can be tested."""
    calls, device = mock.MagicMock(), torch.device("cuda", 0)
    monkeypatch.setattr(torch, "cuda", calls.cuda)
    copies, step = calls.cuda.Stream.return_value, calls.cuda.current_stream.return_value
    prefetch, made = Prefetch(), [mock.call.cuda.Stream(device)]
    expected = [
        mock.call.cuda.current_stream(device), mock.call.cuda.stream(copies), mock.call.cuda.stream().__enter__(),
        mock.call.images.to(device, non_blocking=True), mock.call.make.to(device, non_blocking=True),
        mock.call.cuda.stream().__exit__(None, None, None), mock.call.cuda.current_stream().wait_stream(copies),
        mock.call.images.to().record_stream(step), mock.call.make.to().record_stream(step),
    ]  # fmt: skip
    for _ in range(2):
        prefetch({"images": calls.images, "targets": {"make": calls.make}}, device)
    found = [call for call in calls.mock_calls if "__bool__" not in call[0]]
    assert found == made + expected + expected  # the same stream again
