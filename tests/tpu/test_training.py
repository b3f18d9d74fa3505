"""Whole runs under XLA: compiled once, and equal to the CPU's."""

import logging
import math
import shutil

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch

import carvision
from carvision.evaluate import evaluate
from carvision.export import export
from carvision.training.build import build_datamodule, build_lit_classifier
from carvision.training.distributed import tpu
from carvision.training.optim import build_phases
from tests.small_runs import config, demo, train
from tests.tpu.counting import Counting

# Most of what a step can hold
EVERYTHING = [
    "trainer.max_epochs=3", "augment=r1", "augment.mixup=0.2", "augment.cutmix=1.0", "loss=focal",
    "loss.class_weights=effective", "loss.head_weights=learned", "loss.label_smoothing=0.1", "model.decoding=joint",
    "model.trunk.hidden=[8]", "model.trunk.dropout=0.3", "model.trunk.batch_norm=true", "model.trunk.activity_l1=0.01",
    "+model/head@model.heads.speed=linear", "callbacks.ema_decay=0.9", "trainer.gradient_clip_val=1.0",
    "schedule=one_cycle",
]  # fmt: skip
PLAIN = ["augment=light", "optimizer.lr=0.003"]
LOSSES = ["train/loss", "val/loss"]


@pytest.fixture
def counted(monkeypatch) -> list[Counting]:
    """A list, to which each fit of this test adds its Counting."""
    fits = []
    monkeypatch.setattr(tpu, "Steps", lambda: fits.append(Counting()) or fits[-1])
    return fits


def history(folder) -> pd.DataFrame:
    return pd.read_csv(folder / "history.csv")


@pytest.mark.parametrize(("overrides", "epochs"), [
    (EVERYTHING, 3), (["optimizer.sam_rho=0.05"], 2),
    (["trainer.precision=bf16-mixed", "trainer.accumulate_grad_batches=2"], 2),
], ids=["everything", "sam", "bf16"])  # fmt: skip
def test_a_run_compiles_once_and_stays_on_the_device(demo_photos, tmp_path, counted, overrides, epochs):
    folder = train(tmp_path / "run", *demo(demo_photos), "trainer=tpu", *overrides)
    [counting] = counted
    compiled = [epoch["compiled"] for epoch in counting.epochs]
    print("graphs compiled by epoch", compiled)  # with -rA or -s
    assert compiled[0] > 0 and compiled[1:] == [0] * (epochs - 1)
    assert len(counting.steps) == epochs * 9  # 141 photos by 16
    assert not {name for step in counting.steps for name in step} - {"compiled"}  # not even a number was read
    others = {name for epoch in counting.epochs for name in epoch} - {"compiled", "aten::_local_scalar_dense"}
    assert not others  # nor in validation
    rows = history(folder)
    assert rows["epoch"].tolist() == list(range(epochs)) and rows[LOSSES].map(math.isfinite).all(axis=None)
    state = torch.load(folder / "checkpoints" / "last.ckpt")
    assert {value.device.type for value in state["state_dict"].values()} == {"cpu"}
    assert carvision.load(folder)(torch.zeros(2, 3, 32, 32))["model"].shape == (2, 12)
    assert ("bf16-mixed: torch's autocast" in (folder / "run.log").read_text()) == ("bf16" in str(overrides))


def test_a_run_equals_the_cpus_and_resumes(demo_photos, tmp_path, counted):
    plain = [*demo(demo_photos), *PLAIN]
    cpu = history(train(tmp_path / "cpu", *plain))
    whole = train(tmp_path / "whole", *plain, "trainer=tpu")
    xla = history(whole)
    # after nine steps of which each takes up the roundings of those before; the optimizer of the CPU is a fused one
    assert xla.loc[0, LOSSES].to_numpy() == pytest.approx(cpu.loc[0, LOSSES].to_numpy(), rel=2e-3)
    assert xla.loc[1, LOSSES].to_numpy() == pytest.approx(cpu.loc[1, LOSSES].to_numpy(), rel=2e-2)
    for _ in range(2):
        train(tmp_path / "cut", *plain, "trainer=tpu", "run.max_epochs_per_start=1")
    assert not {name for step in counted[2].steps for name in step} - {"compiled"}
    assert history(tmp_path / "cut")[LOSSES].to_numpy() == pytest.approx(xla[LOSSES].to_numpy(), rel=1e-5)
    ours, theirs = (carvision.load(folder).state_dict() for folder in (whole, tmp_path / "cut"))
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-5)
    # begun on the CPU
    train(tmp_path / "both", *plain, "run.max_epochs_per_start=1")
    both = history(train(tmp_path / "both", *plain, "trainer=tpu", "run.allow_changes=true"))
    assert both["epoch"].tolist() == [0, 1]
    assert both.loc[1, LOSSES].to_numpy() == pytest.approx(cpu.loc[1, LOSSES].to_numpy(), rel=2e-2)


def test_a_run_is_evaluated_on_both_and_exported(demo_run, demo_photos, tmp_path):
    for device in ("cpu", "xla"):
        words = ["--samples", "0", "--device", device, "--out", str(tmp_path / device), "data.batch_size=50"]
        evaluate([str(demo_run), *words])
    cpu, xla = (pd.read_csv(tmp_path / device / "predictions.csv") for device in ("cpu", "xla"))
    assert xla["model_id"].tolist() == cpu["model_id"].tolist()
    assert xla["model_prob"].tolist() == pytest.approx(cpu["model_prob"].tolist(), abs=1e-4)
    folder = shutil.copytree(demo_run, tmp_path / "run")
    export([str(folder), "--format", "torch-export", "onnx", "timm"])
    assert {path.name for path in (folder / "export").iterdir()} == {"model.pt2", "model.onnx", "timm"}


def test_the_strategy_of_several_cores_trains_and_tests_in_its_own_process(demo_photos, monkeypatch):
    """In the only process that XLA's CPU device has. Lightning takes the strategy for more than one device only."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    cfg, values = config(*demo(demo_photos), "augment=none"), []
    for num, arguments in ((1, {}), (2, {"strategy": tpu.MultiCoreStrategy()})):
        devices = [torch.device("xla", index) for index in range(num)]
        monkeypatch.setattr(tpu.XLAOnCPU, "get_parallel_devices", staticmethod(lambda _, found=devices: found))
        datamodule = build_datamodule(cfg, None)
        lit = build_lit_classifier(cfg, datamodule, build_phases(cfg))
        trainer = pl.Trainer(
            **arguments, accelerator=tpu.XLAOnCPU(), devices=1, max_epochs=1, logger=False, num_sanity_val_steps=0,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False, callbacks=[tpu.Steps()],
        )  # fmt: skip
        trainer.fit(lit, datamodule=datamodule)
        assert trainer.current_epoch == 1  # which Lightning's own launcher would have left behind in another process
        trainer.test(lit, datamodule=datamodule, verbose=False)
        values.append({name: value.item() for name, value in trainer.callback_metrics.items()})
    assert lit.test_metrics.heads[0].distributed_available_fn()
    assert values[1] == pytest.approx(values[0], rel=1e-5)
