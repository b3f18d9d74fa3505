"""Learning rates typed out epoch by epoch, and which parameters decay."""

import math

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from carvision.config import conf_dir
from carvision.training.optimization import OPTIMIZERS, cosine_factor, create_optimizer, lr_factor, r0_lr

STEPS = 7  # of an epoch


def yaml(group: str, name: str) -> dict:
    return OmegaConf.to_container(OmegaConf.load(conf_dir() / group / f"{name}.yaml"))


def choices(group: str) -> list[str]:
    return sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))


@pytest.mark.parametrize("peak", [1e-1, 1e-3])
def test_r0_curve_at_every_epoch(peak):
    factor = lr_factor(**yaml("schedule", "r0"), lr=peak, num_steps=81 * STEPS, steps_per_epoch=STEPS)
    for epoch in range(81):
        expected = 1e-6 + epoch * (peak - 1e-6) / 6 if epoch < 5 else peak * math.exp(-0.1 * epoch)
        assert r0_lr(epoch, peak) == pytest.approx(expected, rel=1e-12)
        for step in (epoch * STEPS, epoch * STEPS + 1, epoch * STEPS + STEPS - 1):
            assert peak * factor(step) == pytest.approx(expected, rel=1e-12)


def test_r0_curve_at_points_worked_out_by_hand():
    found = [r0_lr(epoch, 0.1) for epoch in (0, 1, 4, 5, 10, 80)]
    assert found == pytest.approx([1e-6, 0.0166675, 0.066667, 0.0606530660, 0.0367879441, 3.35462628e-5], rel=1e-6)


def test_cosine_rises_linearly_then_falls_as_half_a_cosine():
    factor = lr_factor("cosine", 0.1, num_steps=100, steps_per_epoch=10, warmup_epochs=2, final_fraction=0.05)
    for step in range(101):
        rising, falling = (step + 1) / 20, 0.05 + 0.95 * (1 + math.cos(math.pi * (step - 20) / 80)) / 2
        expected = rising if step < 20 else falling
        assert factor(step) == pytest.approx(expected)
    assert factor(19) == factor(20) == 1
    assert factor(60) == pytest.approx(0.525)
    assert factor(100) == pytest.approx(0.05)
    assert factor(150) == pytest.approx(0.05)  # no second rise
    falling = [factor(step) for step in range(20, 101)]
    assert falling == sorted(falling, reverse=True)


def test_cosine_without_warm_up_begins_at_the_full_rate():
    factor = lr_factor("cosine", 0.1, num_steps=10, steps_per_epoch=10, warmup_epochs=0)
    assert factor(0) == 1
    assert factor(5) == pytest.approx(0.5)
    assert factor(10) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_a_warm_up_longer_than_the_run_is_cut(num_steps):
    """A run of one epoch with one epoch of warm-up still reaches its rate."""
    factor = lr_factor("cosine", 0.1, num_steps=num_steps, steps_per_epoch=num_steps, warmup_epochs=3)
    values = [factor(step) for step in range(num_steps)]
    assert max(values) == 1
    assert all(0 < value <= 1 for value in values)
    assert cosine_factor(num_steps, num_steps, num_steps - 1, 0.0) == pytest.approx(0, abs=1e-12)


def test_constant_is_constant():
    factor = lr_factor(**yaml("schedule", "constant"), lr=0.3, num_steps=50, steps_per_epoch=5)
    assert {factor(step) for step in range(60)} == {1.0}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.LayerNorm(2), nn.Linear(2, 3))


@pytest.mark.parametrize("name", choices("optimizer"))
def test_optimizer_of_conf_decays_weights_and_neither_biases_nor_norms(name):
    model = network()
    values = yaml("optimizer", name) | {"lr": 0.1, "weight_decay": 0.5}
    optimizer = create_optimizer(model.named_parameters(), **values)
    assert type(optimizer) is OPTIMIZERS[values["name"]]
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    expected = {
        "0.weight": 0.5,
        "0.bias": 0,
        "1.weight": 0,
        "1.bias": 0,
        "3.weight": 0,
        "3.bias": 0,
        "4.weight": 0.5,
        "4.bias": 0,
    }
    assert {n: decays[id(p)] for n, p in model.named_parameters()} == expected
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 8
    for group in optimizer.param_groups:
        assert all(
            group[key] == value or list(group[key]) == value
            for key, value in values.items()
            if key not in ("name", "weight_decay")
        )
    before = {n: p.clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for n, p in model.named_parameters():  # without a gradient, a step is decay alone: w - lr * decay * w
        torch.testing.assert_close(p, before[n] * (1 - 0.1 * expected[n]))


def test_frozen_parameters_are_not_given_to_the_optimizer():
    model = network()
    model[0].requires_grad_(False)
    optimizer = create_optimizer(model.named_parameters(), **yaml("optimizer", "sgd"))
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert given == {id(p) for p in model.parameters() if p.requires_grad}
    model[4].weight.requires_grad_(False)  # now nothing with more than one dimension trains
    assert len(create_optimizer(model.named_parameters(), **yaml("optimizer", "sgd")).param_groups) == 1


def test_sgd_with_momentum_is_its_formula():
    parameter = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = create_optimizer([("w", parameter)], **yaml("optimizer", "sgd") | {"lr": 0.1, "momentum": 0.9})
    w, velocity = 2.0, 0.0
    for gradient in (1.0, -0.5, 3.0):
        parameter.grad = torch.tensor([[gradient]])
        optimizer.step()
        velocity = 0.9 * velocity + gradient
        w -= 0.1 * velocity
        assert parameter.item() == pytest.approx(w)


@pytest.mark.parametrize("name", choices("schedule"))
def test_schedule_of_conf_binds_and_begins_above_zero(name):
    factor = lr_factor(**yaml("schedule", name), lr=0.1, num_steps=30, steps_per_epoch=3)
    assert all(0 < factor(step) <= 1 for step in range(30))
