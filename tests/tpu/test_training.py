"""Whole runs under XLA: compiled once, and equal to the CPU's."""

import logging
import math

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch

import carvision
from carvision.evaluate import evaluate
from carvision.export import export
from carvision.training.build import build_datamodule, build_lit_classifier
from carvision.training.optim import build_phases
from tests.small_runs import config, demo, train

# Most of what a step can hold
EVERYTHING = [
    "trainer=tpu", "trainer.max_epochs=3", "augment=r1", "augment.mixup=0.2", "augment.cutmix=1.0", "loss=focal",
    "loss.class_weights=effective", "loss.head_weights=learned", "loss.label_smoothing=0.1", "model.decoding=joint",
    "model.trunk.hidden=[8]", "model.trunk.dropout=0.3", "model.trunk.batch_norm=true", "model.trunk.activity_l1=0.01",
    "+model/head@model.heads.speed=linear", "callbacks.ema_decay=0.9", "trainer.gradient_clip_val=1.0",
    "schedule=one_cycle",
]  # fmt: skip
PLAIN = ["augment=light", "optimizer.lr=0.003"]
LOSSES = ["train/loss", "val/loss"]


def history(folder) -> pd.DataFrame:
    return pd.read_csv(folder / "history.csv")


def check_counts(counting, name: str, epochs: int) -> None:
    """Check what was compiled; printed, too, which pytest shows with -rA or -s."""
    print(f"{name}: graphs compiled by epoch", [epoch.get("compiled", 0) for epoch in counting.epochs])
    assert len(counting.epochs) == epochs
    assert counting.epochs[0]["compiled"] > 0
    assert [epoch.get("compiled", 0) for epoch in counting.epochs[1:]] == [0] * (epochs - 1)
    assert len(counting.steps) == epochs * 9  # 141 photos by 16
    on_the_cpu = [{name for name in step if name != "compiled"} for step in counting.steps]
    assert on_the_cpu == [set()] * len(on_the_cpu)  # not even a number was read
    others = {name for epoch in counting.epochs for name in epoch} - {"compiled", "aten::_local_scalar_dense"}
    assert not others  # nor in validation


def test_everything_compiles_once_and_stays_on_the_device(demo_photos, tmp_path, counted):
    folder = train(tmp_path / "run", *demo(demo_photos), *EVERYTHING)
    check_counts(counted[0], "everything", epochs=3)
    rows = history(folder)
    assert rows["epoch"].tolist() == [0, 1, 2]
    assert rows[[*LOSSES, "val/speed/mae"]].map(math.isfinite).all(axis=None)
    state = torch.load(folder / "checkpoints" / "last.ckpt")
    assert {value.device.type for value in state["state_dict"].values()} == {"cpu"}
    model = carvision.load(folder)
    assert model(torch.zeros(2, 3, 32, 32))["model"].shape == (2, 12)


def test_sam_compiles_once_and_stays_on_the_device(demo_photos, tmp_path, counted):
    train(tmp_path / "run", *demo(demo_photos), "trainer=tpu", "optimizer.sam_rho=0.05")
    check_counts(counted[0], "sam", epochs=2)


def test_bf16_and_accumulation_compile_once_and_stay_on_the_device(demo_photos, tmp_path, counted):
    values = ["trainer.precision=bf16-mixed", "trainer.accumulate_grad_batches=2"]
    folder = train(tmp_path / "run", *demo(demo_photos), "trainer=tpu", *values)
    assert "bf16-mixed: torch's autocast" in (folder / "run.log").read_text()
    check_counts(counted[0], "bf16, accumulation", epochs=2)
    assert history(folder)[LOSSES].map(math.isfinite).all(axis=None)


def test_a_run_equals_the_cpus_and_resumes(demo_photos, tmp_path, counted):
    plain = [*demo(demo_photos), *PLAIN]
    cpu = history(train(tmp_path / "cpu", *plain))
    whole = train(tmp_path / "whole", *plain, "trainer=tpu")
    xla = history(whole)
    print("losses on the CPU", cpu[LOSSES].to_numpy().tolist(), "and under XLA", xla[LOSSES].to_numpy().tolist())
    # after nine steps of which each takes up the roundings of those before; the optimizer of the CPU is a fused one
    assert xla.loc[0, LOSSES].to_numpy() == pytest.approx(cpu.loc[0, LOSSES].to_numpy(), rel=2e-3)
    assert xla.loc[1, LOSSES].to_numpy() == pytest.approx(cpu.loc[1, LOSSES].to_numpy(), rel=2e-2)
    cut = [*plain, "trainer=tpu", "run.max_epochs_per_start=1"]
    for _ in range(2):
        train(tmp_path / "cut", *cut)
    assert len(counted) == 3
    assert not {name for step in counted[-1].steps for name in step if name != "compiled"}
    assert history(tmp_path / "cut")[LOSSES].to_numpy() == pytest.approx(xla[LOSSES].to_numpy(), rel=1e-5)
    ours, theirs = (carvision.load(folder).state_dict() for folder in (whole, tmp_path / "cut"))
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-5)


def test_a_run_begun_on_the_cpu_resumes_under_xla_and_is_evaluated_on_both_and_exported(demo_photos, tmp_path):
    plain, folder = [*demo(demo_photos), *PLAIN], tmp_path / "run"
    train(folder, *plain, "run.max_epochs_per_start=1")
    train(folder, *plain, "trainer=tpu", "run.allow_changes=true")
    rows = history(folder)
    assert rows["epoch"].tolist() == [0, 1]
    whole = history(train(tmp_path / "cpu", *plain))
    assert rows.loc[1, LOSSES].to_numpy() == pytest.approx(whole.loc[1, LOSSES].to_numpy(), rel=2e-2)
    for device in ("cpu", "xla"):
        out = str(tmp_path / f"on_{device}")
        evaluate([str(folder), "--samples", "0", "--device", device, "--out", out, "data.batch_size=50"])
    cpu, xla = (pd.read_csv(tmp_path / f"on_{device}" / "predictions.csv") for device in ("cpu", "xla"))
    assert xla["model_id"].tolist() == cpu["model_id"].tolist()
    assert xla["model_prob"].tolist() == pytest.approx(cpu["model_prob"].tolist(), abs=1e-4)
    export([str(folder), "--format", "torch-export", "onnx", "timm"])
    assert {path.name for path in (folder / "export").iterdir()} == {"model.pt2", "model.onnx", "timm"}


def test_the_strategy_of_several_cores_trains_and_tests_in_its_own_process(demo_photos):
    """In the only process that XLA's CPU device has."""
    from carvision.training.distributed import tpu

    class Two(tpu.XLAOnCPU):
        """Says that it has two: Lightning takes the strategy for more than one device only."""

        @staticmethod
        def get_parallel_devices(devices: int) -> list[torch.device]:
            return [torch.device("xla", index) for index in range(2)]

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    cfg = config(*demo(demo_photos), "augment=none")
    values = []
    for arguments in ({"accelerator": tpu.XLAOnCPU()}, {"accelerator": Two(), "strategy": tpu.MultiCoreStrategy()}):
        datamodule = build_datamodule(cfg, None)
        lit = build_lit_classifier(cfg, datamodule, build_phases(cfg))
        trainer = pl.Trainer(
            **arguments, devices=1, max_epochs=1, logger=False, enable_checkpointing=False, num_sanity_val_steps=0,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
            callbacks=[tpu.Steps()],
        )  # fmt: skip
        trainer.fit(lit, datamodule=datamodule)
        assert trainer.current_epoch == 1  # which Lightning's own launcher would have left behind in another process
        trainer.test(lit, datamodule=datamodule, verbose=False)
        values.append({name: value.item() for name, value in trainer.callback_metrics.items()})
    assert lit.test_metrics.heads[0].distributed_available_fn()
    assert values[1] == pytest.approx(values[0], rel=1e-5)
