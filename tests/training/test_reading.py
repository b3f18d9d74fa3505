"""What a run reads: how often, when, from packs; padding and bad photos appear in no metric."""

import shutil
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F

from carvision.data.images import BLANK
from carvision.data.loading.dataset import PhotoDataset
from carvision.data.packs.write import pack
from carvision.data.readers.compcars import read_compcars
from carvision.training.build import build_datamodule, build_lit_classifier
from carvision.training.module import LitClassifier
from carvision.training.optim import build_phases
from tests import forked
from tests.data.packs.small import form
from tests.small_runs import config, demo, train
from tests.training.run.test_killed_runs import assert_same_run

EPOCHS = 2


@pytest.fixture
def reads(monkeypatch):
    """A list of (path, epoch) for each photo that is read, the epoch -1 if not for training."""
    found, read = [], PhotoDataset.read

    def noted(photos: PhotoDataset, batch: dict, keys: list, start: int) -> None:
        found.extend((photos.paths[row], epoch) for row, epoch in keys if row >= 0)
        read(photos, batch, keys, start)

    monkeypatch.setattr(PhotoDataset, "read", noted)
    return found


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_photo_is_read_once_an_epoch_and_once_for_the_test(num_workers, demo_photos, tmp_path, reads):
    folder = train(tmp_path / "run", *demo(demo_photos), f"data.num_workers={num_workers}")
    splits = pd.read_csv(folder / "splits.csv").groupby("split")["path"].agg(list)
    assert Counter(path for path, epoch in reads if epoch < 0) == Counter(EPOCHS * splits["val"] + splits["test"])
    num_batches = -(-len(splits["train"]) // 16)
    for epoch in range(EPOCHS):
        counts = Counter(path for path, read_in in reads if read_in == epoch)
        assert set(counts) == set(splits["train"])
        assert counts.total() == 16 * num_batches and max(counts.values()) <= 2  # the last batch is filled up


def test_validation_photos_are_read_before_the_last_step_is_over(demo_photos, tmp_path, reads, monkeypatch):
    step, waited = LitClassifier.training_step, []

    def training_step(lit: LitClassifier, batch: dict, batch_idx: int) -> torch.Tensor:
        if batch_idx + 1 == lit.trainer.num_training_batches:
            wanted = lit.current_epoch * len(lit.trainer.datamodule.datasets["val"].paths)  # of the epochs before
            forked.wait_until(lambda: sum(epoch < 0 for _, epoch in reads) > wanted, 60)
            waited.append(wanted)
        return step(lit, batch, batch_idx)

    monkeypatch.setattr(LitClassifier, "training_step", training_step)
    train(tmp_path / "run", *demo(demo_photos), "data.num_workers=1")
    assert len(waited) == EPOCHS


def test_a_run_on_packed_photos_equals_that_on_files_to_the_bit(demo_photos, demo_run, tmp_path):
    table = replace(read_compcars(demo_photos, known=None), name="demo", heads=("make", "model"))
    pack(table, form(), 0.1, tmp_path / "packed", 0)  # some ten shards
    own = ["data=packed", f"data.root={tmp_path / 'packed'}", "data.crop_to_box=true", "data.num_workers=2"]
    own += [f"+model/head@model.heads.{name}=linear" for name in ("make", "model", "speed")]
    train(tmp_path / "run", *own, "optimizer.lr=0.003")
    assert_same_run(tmp_path / "run", demo_run)
    assert (tmp_path / "run" / "splits.csv").read_bytes() == (demo_run / "splits.csv").read_bytes()


@pytest.fixture(scope="module")
def photos_with_a_bad_one(tmp_path_factory, demo_photos):
    """The demo photos, of which one for the test is a text file."""
    root = shutil.copytree(demo_photos, tmp_path_factory.mktemp("bad") / "data")
    table = build_datamodule(config(*demo(root)), None).table
    (table.root / table.of_split("test").rows["path"].iloc[3]).write_text("no photo")
    return root


@pytest.mark.parametrize("on_bad_image", ["skip", "blank"])
@pytest.mark.parametrize("batch_size", [50, 7])  # 72 photos fill 2 * 36 and 11 * 7 rows
def test_metrics_are_those_of_the_photos_alone(photos_with_a_bad_one, on_bad_image, batch_size):
    overrides = ["model.trunk.hidden=[8]", "model.trunk.activity_l1=0.01", "model.decoding=joint"]
    overrides += [f"data.batch_size={batch_size}", f"data.on_bad_image={on_bad_image}"]
    cfg = config(*demo(photos_with_a_bad_one), *overrides)
    datamodule = build_datamodule(cfg, None)
    lit = build_lit_classifier(cfg, datamodule, build_phases(cfg))
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, use_distributed_sampler=False)
    trainer.test(lit, datamodule=datamodule, verbose=False)
    values = {name.removeprefix("test/"): value.item() for name, value in trainer.callback_metrics.items()}
    photos = datamodule.datasets["test"]
    assert (len(photos.paths), len(datamodule.bad_images)) == (72, 1)
    rows = [row for row in range(72) if row != 3 or on_bad_image == "blank"]
    batch = photos[[(row, -1) for row in rows]]
    if on_bad_image == "blank":
        assert (batch["images"][3] == BLANK).all()
    with torch.no_grad():
        logits = lit.eval()(batch["images"])
        x = lit.model.features(lit.normalise(batch["images"].float() / 255))
        activity = 0.01 * lit.model.trunk.blocks[0](x).abs().sum(1).mean()
    losses = {f"{n}/loss": F.cross_entropy(logits[n], batch["targets"][n]).item() for n in ("make", "model")}
    assert {name: values[name] for name in losses} == pytest.approx(losses, rel=1e-5)
    assert values["loss"] == pytest.approx(sum(losses.values()), rel=1e-5) and activity > 1e-3
    assert values["loss_total"] - values["loss"] == pytest.approx(activity.item(), rel=1e-4)
    makes = torch.tensor(datamodule.table.labels["model"].parent_codes)
    pairs = logits["model"].log_softmax(1) + logits["make"].log_softmax(1)[:, makes]
    right = (pairs.argmax(1) == batch["targets"]["model"]).float().mean().item()
    assert [values[f"{name}/top1"] for name in ("model", "joint")] == pytest.approx([right, right])
    assert values["joint/consistent"] == 1
