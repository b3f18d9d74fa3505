"""Several processes train as one does with the same total batch; metrics count every photo once."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import carvision
from tests.training.distributed.processes import train_together, write_manifest

pytestmark = pytest.mark.slow

NUM = {"train": 37, "val": 13, "test": 11}  # none of which two or three processes divide evenly
SETTINGS = ["model.backbone=test_convnext", "schedule=constant", "logger=none", "trainer.max_epochs=2"]
LAYERS = ["model.trunk.hidden=[16]", "model.trunk.l2=0.01", "model.trunk.activity_l1=0.01"]
# Labels that are not known and photos that can't be read are in all of them.
SCENARIOS = {
    "plain": [],
    "weighted": ["loss.class_weights=balanced", "loss.head_weights={make: 0.5, model: 2.0}", *LAYERS],
    "learned": ["loss.head_weights=learned", "loss.class_weights=effective"],
    "accumulated": ["trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.1", "callbacks.ema_decay=0.9"],
    "sharpness": ["optimizer=sgd", "optimizer.sam_rho=0.05"],
    "sampled": ["data.sampler=balanced", "data.epoch_fraction=0.5"],
    "kept": ["model.train_layers=none", "augment=none", *LAYERS],  # features of the frozen backbone
}
SHARDED = {
    "weighted": SCENARIOS["weighted"],
    "frozen": ["model.train_layers=partial", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.1"],
    "tokens": ["model.backbone=test_vit", "optimizer=sgd", "optimizer.lr=0.01"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Folders <scenario>_<processes>, plain_3, and <scenario>_fsdp of two processes."""
    folder = tmp_path_factory.mktemp("many")
    data = write_manifest(folder / "data", NUM, bad=True)

    def run(name: str, num: int, trainer: str, *overrides: str) -> tuple[Path, list[str]]:
        own = [f"data.batch_size={12 // num}", f"features.dir={folder / f'features_{num}'}", f"trainer={trainer}"]
        own += [f"trainer.devices={num}", "trainer.accelerator=cpu"]
        return folder / name, [*data, *own, *SETTINGS, *overrides]

    alone = [run(f"{name}_1", 1, "cpu", *own) for name, own in {**SCENARIOS, **SHARDED}.items()]
    two = [run(f"{name}_2", 2, "ddp", *own) for name, own in SCENARIOS.items()]
    two += [run(f"{name}_fsdp", 2, "fsdp", *own) for name, own in SHARDED.items()]
    for num, runs in ((1, alone), (2, two), (3, [run("plain_3", 3, "ddp")])):
        train_together(num, runs)
    return folder


PAIRS = [f"{name}_2" for name in SCENARIOS] + ["plain_3"] + [f"{name}_fsdp" for name in SHARDED]


@pytest.mark.parametrize("name", PAIRS)
def test_several_processes_train_as_one(trained, name):
    names = (name, f"{name.rpartition('_')[0]}_1")
    ours, theirs = (json.loads((trained / f"{n}.losses.json").read_text()) for n in names)
    assert len(ours) == len(theirs) > 0
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    assert np.std(theirs) > 1e-3  # it does learn
    runs = [trained / n for n in names]
    ours, theirs = (pd.read_csv(run / "history.csv").drop(columns="seconds") for run in runs)
    pd.testing.assert_frame_equal(ours, theirs, rtol=3e-5, atol=1e-6)
    bad = [sorted(pd.read_csv(run / "bad_images.csv")["path"]) for run in runs]
    assert bad[0] == bad[1] and len(bad[0]) >= 4
    ours, theirs = (carvision.load(run) for run in runs)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # rtol: a price has five digits before the point
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-4, rtol=1e-5)
    ours, theirs = (json.loads((run / "metrics.json").read_text()) for run in runs)
    assert ours["best_epoch"] == theirs["best_epoch"] and ours["decodings"].keys() == theirs["decodings"].keys()
    for split in ("train", "val", "test"):
        assert ours[split].keys() == theirs[split].keys()
        for metric, value in theirs[split].items():
            tolerance = {"abs": 0}  # made of counts
            if metric.rsplit("/")[-1] in ("loss", "loss_total", "mae", "rmse"):
                tolerance = {"rel": 2e-5}
            elif "auc" in metric:  # a score at the edge of a histogram's bin
                tolerance = {"abs": 1e-3}
            assert ours[split][metric] == (value if value is None else pytest.approx(value, **tolerance)), metric
