"""PhotoDataModule's arguments, and copies to the device; tests/training tests its loaders in whole runs."""

from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch

from carvision.data.images import Preprocessing
from carvision.data.loading.dataset import PhotoDataset
from carvision.data.loading.loader import PhotoDataModule, Prefetch
from carvision.data.table import Classes, Number, Table
from carvision.errors import InputError
from tests.data import layouts


def create_datamodule(root, **arguments) -> PhotoDataModule:
    """Create and set up a data module of 24 training photos of 2 makes and 6 models."""
    rows = pd.DataFrame({"path": [f"{i:02d}.jpg" for i in range(24)], "speed": np.float32(100), "split": "train"})
    rows["make"], rows["model"] = np.arange(24, dtype=np.int32) % 2, np.arange(24, dtype=np.int32) % 6
    for path in rows["path"]:
        layouts.write_photo(root / path)
    ids = tuple(map(str, range(6)))
    labels = {"make": Classes(ids[:2], ids[:2]), "model": Classes(ids, ids), "speed": Number()}
    table = Table("some", root, rows, labels, "model")

    def create_dataset(part: Table) -> PhotoDataset:
        return PhotoDataset(part, Preprocessing(8, (0.5,) * 3, (0.5,) * 3), False, (1, 1), (1, 1), 0, 0)

    created = PhotoDataModule(lambda: table, create_dataset, num_workers=0, sampler="per_class", **arguments)
    created.setup()
    return created


@pytest.mark.parametrize(("label", "num_classes"), [(None, 3), ("make", 2)])
def test_per_class_uses_the_named_label(tmp_path, label, num_classes):
    created = create_datamodule(tmp_path, batch_size=num_classes * 2, photos_per_class=2, sampler_label=label)
    batches = list(created.train_dataloader())
    assert len(batches) == created.num_train_batches == 24 // (num_classes * 2)
    for batch in batches:
        classes = batch["targets"][label or "model"].view(-1, 2)
        assert (classes[:, 0] == classes[:, 1]).all() and len(classes[:, 0].unique()) == num_classes


def test_wrong_values_are_errors_at_setup(tmp_path):
    with pytest.raises(InputError, match=r"data.batch_size: 6 is not, .*_class=4, a multiple of 4 from 8 to 24"):
        create_datamodule(tmp_path, batch_size=6)
    for label in ("colour", "speed"):
        with pytest.raises(InputError, match=rf"metric_loss.label: '{label}' is no label .*; those are make, model"):
            create_datamodule(tmp_path, batch_size=8, sampler_label=label)
    assert create_datamodule(tmp_path, batch_size="auto").batch_size == "auto"


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
    assert calls.mock_calls == made + expected + expected  # the same stream again
