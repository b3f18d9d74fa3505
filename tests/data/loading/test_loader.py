"""What PhotoDataModule makes of its arguments; its loaders are tested with whole runs, in tests/training."""

import numpy as np
import pandas as pd
import pytest

from carvision.data.images import Preprocessing
from carvision.data.loading.dataset import PhotoDataset
from carvision.data.loading.loader import PhotoDataModule
from carvision.data.table import Classes, Number, Table
from carvision.errors import InputError
from tests.data import layouts


def table_of(root) -> Table:
    """24 training photos of 2 makes and 6 models."""
    rows = pd.DataFrame(
        {
            "path": [f"{i:02d}.jpg" for i in range(24)],
            "make": np.arange(24, dtype=np.int32) % 2,
            "model": np.arange(24, dtype=np.int32) % 6,
            "speed": np.float32(100),
            "split": "train",
        }
    )
    for path in rows["path"]:
        layouts.write_photo(root / path)
    ids = tuple(map(str, range(6)))
    labels = {"make": Classes(ids[:2], ids[:2]), "model": Classes(ids, ids), "speed": Number()}
    return Table("some", root, rows, labels, "model")


def datamodule_of(root, **arguments) -> PhotoDataModule:
    def create_dataset(part: Table) -> PhotoDataset:
        return PhotoDataset(part, Preprocessing(8, (0.5,) * 3, (0.5,) * 3), False, (1, 1), (1, 1), 0, 0)

    made = PhotoDataModule(lambda: table_of(root), create_dataset, num_workers=0, **arguments)
    made.setup()
    return made


@pytest.mark.parametrize(("label", "num_classes"), [(None, 3), ("model", 3), ("make", 2)])
def test_per_class_goes_by_the_label_that_is_named(tmp_path, label, num_classes):
    made = datamodule_of(
        tmp_path, batch_size=num_classes * 2, sampler="per_class", photos_per_class=2, sampler_label=label
    )
    batches = list(made.train_dataloader())
    assert len(batches) == made.num_train_batches == 24 // (num_classes * 2)
    for batch in batches:
        classes = batch["targets"][label or "model"].view(-1, 2)
        assert (classes[:, 0] == classes[:, 1]).all()
        assert len(classes[:, 0].unique()) == num_classes


def test_a_run_resumes_inside_an_epoch_of_per_class(tmp_path):
    whole, rest = (datamodule_of(tmp_path, batch_size=6, sampler="per_class", photos_per_class=2) for _ in range(2))
    loader = rest.train_dataloader()
    loader.load_state_dict({"given": 3})
    expected = [batch["index"].tolist() for batch in whole.train_dataloader()]
    assert [batch["index"].tolist() for batch in loader] == expected[3:]
    assert [batch["index"].tolist() for batch in loader] == expected


def test_values_that_do_not_fit_are_errors_before_anything_is_built(tmp_path):
    with pytest.raises(InputError, match=r"data.batch_size: 6 is not, .*_class=4, a multiple of 4 from 8 to 24"):
        datamodule_of(tmp_path, batch_size=6, sampler="per_class")
    for label in ("colour", "speed"):
        with pytest.raises(InputError, match=rf"metric_loss.label: '{label}' is no label .*; those are make, model"):
            datamodule_of(tmp_path, batch_size=8, sampler="per_class", sampler_label=label)
    assert datamodule_of(tmp_path, batch_size="auto", sampler="per_class").batch_size == "auto"
