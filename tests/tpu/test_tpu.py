"""Under XLA: the parts of a step and whole runs are compiled once, run on the device, and equal the CPU's."""

import logging
import math
import re
import shutil
from collections import Counter

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import torch_xla
from lightning_fabric.utilities.apply_func import move_data_to_device
from torch import nn
from torch_xla.debug import metrics

import carvision
from carvision.augment.pipeline import Augment
from carvision.config.schema import AUGMENT_STEPS
from carvision.evaluate import evaluate
from carvision.export import export
from carvision.losses.metric import create_metric_loss
from carvision.training.build import build_datamodule, build_lit_classifier
from carvision.training.distributed import tpu
from carvision.training.optim import OPTIMIZERS, build_phases, create_optimizer
from tests.small_runs import config, demo, train
from tests.training.test_module import batch_of, lit_classifier


def counts() -> Counter[str]:
    """So far: {"compiled": graphs, "aten::...": how often the CPU did that}. _local_scalar_dense: a number was read."""
    times = metrics.metric_data("CompileTime")
    aten = {name: metrics.counter_value(name) for name in metrics.counter_names() if name.startswith("aten::")}
    return Counter(compiled=times[0] if times else 0, **aten)


def check_steps(step, num: int, compiling: int = 1) -> None:
    """Call step(0), step(1), ...: only the first ones may compile, and none leaves the device."""
    for number in range(num):
        before = counts()
        kept = step(number)  # what nothing holds is not computed
        torch_xla.sync()
        assert set(counts() - before) <= ({"compiled"} if number < compiling else set()), number
        del kept


class Counting(tpu.Steps):
    """Steps that record what each epoch, with its validation and checkpoints, and each step add to the counts."""

    def __init__(self):
        self.epochs, self.steps, self.epoch_begun = [], [], None

    def on_train_epoch_start(self, *_) -> None:
        if self.epoch_begun is not None:
            self.on_train_end()
        self.epoch_begun = counts()
        self._end()

    def on_train_batch_start(self, *_) -> None:
        self._end()
        self.step_begun = counts()

    def on_train_batch_end(self, *_) -> None:
        self._end()
        self.steps.append(counts() - self.step_begun)

    def on_train_end(self, *_) -> None:
        self.epochs.append(counts() - self.epoch_begun)


@pytest.fixture(scope="module")
def device():
    return torch_xla.device()


def test_every_step_of_the_augmentation_equals_the_cpus(device):
    keys = config()["augment"]["steps"]
    assert set(keys) == set(AUGMENT_STEPS)
    random = torch.Generator().manual_seed(0)
    images = torch.rand(3, 4, 3, 32, 24, generator=random)
    for name in keys:
        augment = Augment([name], {name: {**keys[name], "p": 0.5}})
        draws = torch.rand(3, 4, augment.num_draws, generator=random)
        done = []
        check_steps(lambda i: done.append(augment(images[i].to(device), draws[i].to(device))), 3)  # noqa: B023
        for number, result in enumerate(done):
            torch.testing.assert_close(result.cpu(), augment(images[number], draws[number]), atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", [*OPTIMIZERS, "lamb", "lion"])
def test_optimizers_compile_at_most_twice_and_read_nothing(device, name):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).to(device)
    optimizer = create_optimizer(model, name, lr=0.01, weight_decay=0.01)
    inputs = torch.rand(6, 8, 4)

    def step(number):
        optimizer.zero_grad()
        model(inputs[number].to(device)).square().mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (number + 1)
        optimizer.step()

    check_steps(step, 5, compiling=2)  # the second has the optimizer's state


@pytest.mark.parametrize("name", ["semi_hard", "batch_hard", "coupled_clusters", "supcon", "arcface", "proxy_anchor"])
def test_metric_losses_compile_once_and_equal_the_cpus(device, name):
    """Though each batch has other classes, and another number of pairs."""
    loss = create_metric_loss("triplet", mining=name) if name.endswith("hard") else create_metric_loss(name)
    random = torch.Generator().manual_seed(0)
    inputs = torch.rand(4, 12, 8, generator=random) * 0.9
    targets = torch.randint(-1, 8, (4, 12), generator=random)

    def value_and_slope(number, device) -> tuple[torch.Tensor, torch.Tensor]:
        x, classes = inputs[number].to(device).requires_grad_(), targets[number].to(device)
        value = loss(x, classes, classes >= 0)
        return value.detach(), torch.autograd.grad(value, x)[0]

    done = []
    check_steps(lambda number: done.append(value_and_slope(number, device)), 4)
    for number, found in enumerate(done):
        for ours, expected in zip(found, value_and_slope(number, "cpu"), strict=True):
            torch.testing.assert_close(ours.cpu(), expected, atol=1e-3, rtol=1e-3)


def test_bf16_mixed_puts_bfloat16_into_the_graph_and_not_into_the_weights(device):
    lit, batch = lit_classifier().to(device), move_data_to_device(batch_of(), device)

    def products() -> set[str]:
        """The types of the results of products and convolutions in the graph of a step."""
        torch_xla.sync()  # what was begun before is no part of it
        loss = lit._step(batch["images"].float() / 255, batch, None)
        loss.backward()
        gradients = [p.grad for p in lit.parameters() if p.grad is not None]
        graph = torch_xla._XLAC._get_xla_tensors_hlo([loss, *gradients])
        assert {gradient.dtype for gradient in gradients} == {torch.float32}
        lit.zero_grad()
        return set(re.findall(r"= (\w+)\[[^\n]* (?:dot|convolution)\(", graph))

    assert products() == {"f32"}
    with tpu.BFloat16().forward_context():
        assert products() == {"bf16"}


def test_dropout_follows_its_seed_without_compiling(device):
    seeds, results = [1, 2, 1, 2**62], []

    def step(number):
        tpu.seed(seeds[number])
        results.append(F.dropout(torch.ones(4, 64, device=device), 0.5))

    check_steps(step, 4)
    one, two, again, large = (result.cpu() for result in results)
    assert torch.equal(one, again) and not torch.equal(one, two) and not torch.equal(two, large)


# Most of what a step can hold
EVERYTHING = [
    "trainer.max_epochs=3", "augment=r1", "augment.mixup=0.2", "augment.cutmix=1.0", "loss=focal",
    "loss.class_weights=effective", "loss.head_weights=learned", "loss.label_smoothing=0.1", "model.decoding=joint",
    "model.trunk.hidden=[8]", "model.trunk.dropout=0.3", "model.trunk.batch_norm=true", "model.trunk.activity_l1=0.01",
    "+model/head@model.heads.speed=linear", "callbacks.ema_decay=0.9", "trainer.gradient_clip_val=1.0",
    "schedule=one_cycle",
]  # fmt: skip
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


def test_a_run_equals_the_cpus_and_resumes(demo_photos, tmp_path, counted):
    plain = [*demo(demo_photos), "augment=light", "optimizer.lr=0.003"]
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
