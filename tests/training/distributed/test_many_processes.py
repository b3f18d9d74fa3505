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
SETTINGS = ["model.backbone=test_convnext", "schedule=constant", "logger=none"]
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
TOTAL_BATCH = 12


def settings(num: int, trainer: str, *overrides: str) -> list[str]:
    return [
        *SETTINGS, *overrides, f"data.batch_size={TOTAL_BATCH // num}", f"trainer={trainer}",
        f"trainer.devices={num}", "trainer.accelerator=cpu", "trainer.max_epochs=2",
        *(value for value in overrides if value.startswith("trainer.")),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Folders <scenario>_<processes>, plain_3, and <scenario>_fsdp of two processes."""
    folder = tmp_path_factory.mktemp("many")
    data = write_manifest(folder / "data", NUM, bad=True)
    both = {**SCENARIOS, **SHARDED}
    alone = [*data, f"features.dir={folder / 'features_1'}"]
    train_together(1, [(folder / f"{name}_1", [*alone, *settings(1, "cpu", *own)]) for name, own in both.items()])
    data.append(f"features.dir={folder / 'features_2'}")
    two = [(folder / f"{name}_2", [*data, *settings(2, "ddp", *own)]) for name, own in SCENARIOS.items()]
    two += [(folder / f"{name}_fsdp", [*data, *settings(2, "fsdp", *own)]) for name, own in SHARDED.items()]
    cut = [*data, *settings(2, "fsdp", *SHARDED["frozen"])]
    two += [(folder / "cut_fsdp", [*cut, "run.max_epochs_per_start=1"]), (folder / "cut_fsdp", cut)]
    train_together(2, two)
    train_together(3, [(folder / "plain_3", [*data, *settings(3, "ddp")])])
    return folder


PAIRS = [f"{name}_2" for name in SCENARIOS] + ["plain_3"] + [f"{name}_fsdp" for name in SHARDED]


def of(folder: Path, name: str, what: str):
    return json.loads((folder / f"{name}.{what}.json").read_text())


def of_one(name: str) -> str:
    return f"{name.rsplit('_')[0]}_1"


@pytest.mark.parametrize("name", PAIRS)
def test_several_processes_train_as_one(trained, name):
    ours, theirs = of(trained, name, "losses"), of(trained, of_one(name), "losses")
    assert len(ours) == len(theirs) > 0
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    assert np.std(theirs) > 1e-3  # it does learn
    runs = [trained / n for n in (name, of_one(name))]
    ours, theirs = (pd.read_csv(run / "history.csv").drop(columns="seconds") for run in runs)
    pd.testing.assert_frame_equal(ours, theirs, rtol=3e-5, atol=1e-6)
    bad = [sorted(pd.read_csv(run / "bad_images.csv")["path"]) for run in runs]
    assert bad[0] == bad[1] and len(bad[0]) >= 4
    ours, theirs = (carvision.load(run) for run in runs)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for head, logits in theirs(images).items():
            # rtol: a price has five digits before the point
            torch.testing.assert_close(ours(images)[head], logits, atol=1e-4, rtol=1e-5)
    ours, theirs = (json.loads((run / "metrics.json").read_text()) for run in runs)
    assert ours["best_epoch"] == theirs["best_epoch"] and ours["decodings"].keys() == theirs["decodings"].keys()
    for split in ("train", "val", "test"):
        assert ours[split].keys() == theirs[split].keys()
        for figure, value in theirs[split].items():
            if figure.rsplit("/")[-1] in ("loss", "loss_total", "mae", "rmse"):
                assert ours[split][figure] == pytest.approx(value, rel=2e-5), (split, figure)
            elif "auc" in figure:  # a score at the edge of a histogram's bin
                assert ours[split][figure] == pytest.approx(value, abs=1e-3), (split, figure)
            else:  # made of counts
                assert ours[split][figure] == value, (split, figure)


@pytest.mark.parametrize("name", SHARDED)
def test_each_process_holds_its_part_of_weights_and_moments(trained, name):
    whole, parts = of(trained, f"{name}_1", "sizes")[0], of(trained, f"{name}_fsdp", "sizes")
    for what in ("weights", "moments"):
        if whole[what]:  # SGD without momentum has none
            assert sum(part[what] for part in parts) == whole[what]
            assert max(part[what] for part in parts) < 0.6 * whole[what]


def test_an_interrupted_sharded_run_ends_as_if_undisturbed(trained):
    cut, whole = (pd.read_csv(trained / n / "history.csv").drop(columns="seconds") for n in ("cut_fsdp", "frozen_fsdp"))
    pd.testing.assert_frame_equal(cut, whole)
    state, wanted = (torch.load(trained / n / "checkpoints" / "last.ckpt") for n in ("cut_fsdp", "frozen_fsdp"))
    for name, tensor in wanted["state_dict"].items():
        torch.testing.assert_close(state["state_dict"][name], tensor, atol=0, rtol=0)
