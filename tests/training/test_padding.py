"""Padding of an evaluation's last batch appears in no metric."""

import shutil

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F

from carvision.data.images import BLANK
from carvision.training.build import build_datamodule, build_lit_classifier
from carvision.training.optim import build_phases
from tests.small_runs import config, demo

ACTIVITY = 0.01


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
    overrides = ["model.trunk.hidden=[8]", f"model.trunk.activity_l1={ACTIVITY}", "model.decoding=joint"]
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
        activity = ACTIVITY * lit.model.trunk.blocks[0](x).abs().sum(1).mean()
    losses = {f"{n}/loss": F.cross_entropy(logits[n], batch["targets"][n]).item() for n in ("make", "model")}
    assert {name: values[name] for name in losses} == pytest.approx(losses, rel=1e-5)
    assert values["loss"] == pytest.approx(sum(losses.values()), rel=1e-5) and activity > 1e-3
    assert values["loss_total"] - values["loss"] == pytest.approx(activity.item(), rel=1e-4)
    makes = torch.tensor(datamodule.table.labels["model"].parent_codes)
    pairs = logits["model"].log_softmax(1) + logits["make"].log_softmax(1)[:, makes]
    right = (pairs.argmax(1) == batch["targets"]["model"]).float().mean().item()
    assert [values[f"{name}/top1"] for name in ("model", "joint")] == pytest.approx([right, right])
    assert values["joint/consistent"] == 1
