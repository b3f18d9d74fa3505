"""Schedules and optimizers against their formulas, decay and rate of each parameter, SAM, fused kernels."""

import math

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from carvision.config.compose import options_of
from carvision.errors import InputError
from carvision.models.classifier import Classifier, Head
from carvision.training import optim
from carvision.training.optim import OPTIMIZERS, create_optimizer, create_schedule, lr_factor, r0_lr
from tests.small_runs import config


def of_conf(name: str, *overrides: str) -> dict:
    own = ["optimizer.name=adan"] if name == "timm" else []
    return config(f"optimizer={name}", *own, *overrides)["optimizer"]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.LayerNorm(2), nn.Linear(2, 3))


@pytest.mark.parametrize("name", options_of("optimizer"))
def test_each_choice_has_the_values_of_its_file_and_decays_neither_biases_nor_norms(name):
    model = network()
    values = of_conf(name, "optimizer.lr=0.1", "optimizer.weight_decay=0.5")
    optimizer = create_optimizer(model, **values)
    of_timm = timm.optim.get_optimizer_class if values["name"] not in OPTIMIZERS else None
    assert type(optimizer) is (OPTIMIZERS.get(values["name"]) or of_timm(values["name"], bind_defaults=False))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    expected = {n: 0.5 if n in ("0.weight", "4.weight") else 0.0 for n, _ in model.named_parameters()}
    assert {n: decays[id(p)] for n, p in model.named_parameters()} == expected
    ours = ("name", "weight_decay", "lr_factors", "layer_decay", "sam_rho", "arguments")
    wanted = {k: v for k, v in values.items() if k not in ours}
    for group in optimizer.param_groups:
        assert {k: list(v) if isinstance(v, tuple) else v for k, v in group.items() if k in wanted} == wanted
    model(torch.randn(4, 1, 3, 3)).square().sum().backward()
    before = model[4].weight.clone()
    optimizer.step()
    assert not torch.equal(model[4].weight, before) and model[4].weight.isfinite().all()


GRADIENTS = (1.0, -0.5, 3.0, 0.2)


def walk(name: str, *overrides: str) -> list[float]:
    """Return a weight after each of four steps from 2.0, under given gradients."""
    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(2.0)
    optimizer = create_optimizer(model, **of_conf(name, *overrides))
    values = []
    for gradient in GRADIENTS:
        model.weight.grad = torch.tensor([[gradient]]).double()
        optimizer.step()
        values.append(model.weight.item())
    return values


def test_keras_optimizers_are_keras_formulas():
    """Keras 2.2's own (optimizers.py), with the rates that report R4 prints in its table 2."""

    def sgd(w, g, t, s):
        return w - 0.001 * g

    def rmsprop(w, g, t, s):
        s["a"] = 0.9 * s.get("a", 0) + 0.1 * g * g
        return w - 0.001 * g / (math.sqrt(s["a"]) + 1e-7)

    def adagrad(w, g, t, s):
        s["a"] = s.get("a", 0) + g * g
        return w - 0.01 * g / (math.sqrt(s["a"]) + 1e-7)

    def adadelta(w, g, t, s):
        s["a"] = 0.95 * s.get("a", 0) + 0.05 * g * g
        update = g * math.sqrt(s.get("d", 0) + 1e-7) / math.sqrt(s["a"] + 1e-7)
        s["d"] = 0.95 * s.get("d", 0) + 0.05 * update * update
        return w - 0.01 * update

    def adam(w, g, t, s):
        s["m"], s["v"] = 0.9 * s.get("m", 0) + 0.1 * g, 0.999 * s.get("v", 0) + 0.001 * g * g
        rate = 0.001 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        return w - rate * s["m"] / (math.sqrt(s["v"]) + 1e-7)

    def adamax(w, g, t, s):
        s["m"], s["u"] = 0.9 * s.get("m", 0) + 0.1 * g, max(0.999 * s.get("u", 0), abs(g))
        return w - 0.001 / (1 - 0.9**t) * s["m"] / (s["u"] + 1e-7)

    def nadam(w, g, t, s):
        now, following = (0.9 * (1 - 0.5 * 0.96 ** (k * 0.004)) for k in (t, t + 1))
        s["product"] = s.get("product", 1) * now
        s["m"], s["v"] = 0.9 * s.get("m", 0) + 0.1 * g, 0.999 * s.get("v", 0) + 0.001 * g * g
        mean = (1 - now) * g / (1 - s["product"]) + following * s["m"] / (1 - s["product"] * following)
        return w - 0.001 * mean / (math.sqrt(s["v"] / (1 - 0.999**t)) + 1e-7)

    for formula in (sgd, rmsprop, adagrad, adadelta, adam, adamax, nadam):
        w, state, expected = 2.0, {}, []
        for t, g in enumerate(GRADIENTS, 1):
            w = formula(w, g, t, state)
            expected.append(w)
        steps = [a - 2.0 for a in walk(f"keras_{formula.__name__}")]
        assert steps == pytest.approx([a - 2.0 for a in expected], rel=1e-3), formula.__name__


def classifier() -> Classifier:
    return Classifier("test_resnet", {"make": Head(3), "model": Head(4)}, 32)


def test_the_innermost_module_sets_the_learning_rate():
    model = classifier()
    factors = {"backbone": 0.1, "backbone.layer4": 0.5, "head_make": 2.0}
    optimizer = create_optimizer(model, **of_conf("sgd") | {"lr": 1.0, "lr_factors": factors})
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, rate in ((name, rates[id(p)]) for name, p in model.named_parameters()):
        expected = 2.0 if name.startswith("head_make") else 1.0 if name.startswith("head_model") else 0.1
        assert rate == (0.5 if name.startswith("backbone.layer4") else expected), name


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_layer_decay_and_weight_decay_equal_timms(name):
    with torch.device("meta"):
        whole, backbone = (timm.create_model(name, num_classes=num) for num in (3, 0))
    exempt = whole.no_weight_decay() if hasattr(whole, "no_weight_decay") else ()
    groups = param_groups_layer_decay(whole, 0.05, exempt, layer_decay=0.7)
    names = {id(parameter): name for name, parameter in whole.named_parameters()}
    theirs = {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    model = nn.ModuleDict({"backbone": backbone})
    groups = optim.parameter_groups(model, 1.0, 0.05, optim.lr_factors_of(model, {}, 0.7))
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    ours = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(ours) == len(theirs) - 2  # the classifier's, which the heads replace
    assert all(ours[name] == pytest.approx(theirs[name]) for name in ours)


@pytest.mark.parametrize(("values", "line"), [
    ({"name": "adamm"}, "optimizer.name: 'adamm' is not an optimizer; nearest: adam"),
    ({"arguments": {"beta": 3}}, "optimizer: sgd can't be built with"),
    ({"lr_factors": {"bakbone": 0.1}}, "optimizer.lr_factors: there is no module 'bakbone'; nearest: backbone"),
])  # fmt: skip
def test_unknown_names_and_arguments_are_refused_in_one_line(values, line):
    with pytest.raises(InputError) as caught:
        create_optimizer(classifier(), **of_conf("sgd") | values)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


def test_sam_steps_with_the_gradient_at_the_worst_point_within_reach():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    x, y = torch.randn(8, 3).double(), torch.randn(8, 2).double()
    optimizer = create_optimizer(model, **of_conf("sgd") | {"lr": 0.1, "momentum": 0.0, "sam_rho": 0.3})
    perturbed = []

    def closure():
        perturbed.append(optimizer.perturbed)
        model.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    def gradient(weight, bias):
        error = x @ weight.T + bias - y
        return 2 * error.T @ x / error.numel(), 2 * error.sum(0) / error.numel()

    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    for _ in range(3):
        g = gradient(weight, bias)
        norm = math.sqrt(sum(float(part.square().sum()) for part in g))
        at = gradient(weight + 0.3 * g[0] / norm, bias + 0.3 * g[1] / norm)
        weight, bias = weight - 0.1 * at[0], bias - 0.1 * at[1]
        optimizer.step(closure)
        torch.testing.assert_close(model.weight, weight)
        torch.testing.assert_close(model.bias, bias)
    assert perturbed == [False, True] * 3


@pytest.mark.parametrize("name", sorted(optim.FUSED))
def test_fused_kernels_are_used_where_they_exist_unless_the_user_says_otherwise(name, monkeypatch):
    def created(**values) -> torch.optim.Optimizer:
        return create_optimizer(network(), **of_conf(name) | values)

    optimizer = created()
    assert optimizer.defaults["fused"] and all(group["fused"] for group in optimizer.param_groups)
    for values in ({"fused": False}, {"arguments": {"fused": False}}, {"arguments": {"foreach": True}}):
        assert not created(**values).defaults["fused"]
    monkeypatch.setattr(optim, "has_fused_kernel", lambda name, groups: False)  # as on a TPU
    elsewhere = created()
    assert not elsewhere.defaults["fused"]
    for one, other, fused in ((optimizer, elsewhere, True), (elsewhere, optimizer, False)):  # resumed on the other
        one.load_state_dict(other.state_dict())
        assert all(bool(group["fused"]) is fused for group in one.param_groups)


def schedule_of(name: str) -> dict:
    return config(f"schedule={name}")["schedule"]


def test_r0_is_its_curve_at_every_epoch():
    for peak in (1e-1, 1e-3):
        factor = lr_factor(**schedule_of("r0"), lr=peak, num_steps=81 * 7, steps_per_epoch=7)
        for epoch in range(81):
            expected = 1e-6 + epoch * (peak - 1e-6) / 6 if epoch < 5 else peak * math.exp(-0.1 * epoch)
            assert r0_lr(epoch, peak) == pytest.approx(expected, rel=1e-12)
            for step in (7 * epoch, 7 * epoch + 1, 7 * epoch + 6):
                assert peak * factor(step) == pytest.approx(expected, rel=1e-12)


def test_cosine_rises_linearly_then_falls_as_half_a_cosine():
    factor = lr_factor("cosine", 0.1, num_steps=100, steps_per_epoch=10, warmup_epochs=2, final_fraction=0.05)
    for step in range(101):
        rising, falling = (step + 1) / 20, 0.05 + 0.95 * (1 + math.cos(math.pi * (step - 20) / 80)) / 2
        expected = rising if step < 20 else falling
        assert factor(step) == pytest.approx(expected)
    assert factor(19) == factor(20) == 1
    assert factor(150) == pytest.approx(0.05)  # no second rise
    short = lr_factor("cosine", 0.1, num_steps=2, steps_per_epoch=2, warmup_epochs=3)  # still reaches its rate
    assert max(short(step) for step in (0, 1)) == 1
    plain = lr_factor("cosine", 0.1, num_steps=10, steps_per_epoch=10)  # no warm-up
    assert [plain(step) for step in (0, 5, 10)] == pytest.approx([1, 0.5, 0], abs=1e-12)


def rates(name: str, num_steps: int, lr: float = 0.2, **values) -> list[tuple]:
    """Return (rate of the first group, of the second, momentum) at each step; the second group learns at a tenth."""
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    made = torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:], "lr": lr / 10}], lr=lr, momentum=0.9)
    counts = {"num_steps": num_steps, "steps_per_epoch": 5, "batches_per_epoch": 5}
    schedule = create_schedule(made, **schedule_of(name) | values, **counts)["scheduler"]
    found = []
    for _ in range(num_steps):
        found.append((made.param_groups[0]["lr"], made.param_groups[1]["lr"], made.param_groups[0].get("momentum")))
        made.step()
        schedule.step()
    return found


def test_inverse_time_is_keras_decay():
    for step, (rate, other, _) in enumerate(rates("inverse_time", 50, decay=0.1)):
        assert rate == pytest.approx(0.2 / (1 + 0.1 * step))  # Keras' optimizers.py: lr * 1 / (1 + decay * iterations)
        assert other == pytest.approx(rate / 10)


def test_one_cycle_goes_up_and_down_with_momentum_against_it():
    found = rates("one_cycle", 100)
    values = [rate for rate, _, _ in found]
    peak = values.index(max(values))
    assert max(values) == pytest.approx(0.2, rel=1e-3) and 28 <= peak <= 31
    assert values[0] == pytest.approx(0.2 / 25) and values[-1] < 1e-4
    momenta = [momentum for _, _, momentum in found]
    assert momenta.index(min(momenta)) in (peak - 1, peak, peak + 1) and momenta[0] == 0.95
    assert all(other == pytest.approx(rate / 10) for rate, other, _ in found)
    made = torch.optim.RMSprop([nn.Parameter(torch.zeros(2))], lr=0.1, momentum=0.0)  # stays without
    create_schedule(made, **schedule_of("one_cycle"), num_steps=9, steps_per_epoch=3, batches_per_epoch=3)
    assert made.param_groups[0]["momentum"] == 0.0


def test_plateau_waits_for_its_patience():
    made = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=1.0)
    config = create_schedule(made, **schedule_of("plateau"), num_steps=100, steps_per_epoch=2.5, batches_per_epoch=5)
    assert (config["interval"], config["frequency"], config["monitor"]) == ("step", 5, "val/loss")
    found = []
    for loss in (1.0, 0.9, 0.95, 0.91, 0.92, 0.5, 0.6, 0.6, 0.6, 0.6):
        found.append(made.param_groups[0]["lr"])
        config["scheduler"].step(loss)
    # the second epoch without a better loss lowers the rate, as in Keras: 0.95 and 0.91; then 0.6 and 0.6, twice
    assert found == pytest.approx([1, 1, 1, 1, 0.2, 0.2, 0.2, 0.2, 0.04, 0.04])


@pytest.mark.parametrize("values", [{"name": "cosine", "patience": 3}, {"name": "inverse_time"}])
def test_missing_and_unknown_keys_are_refused_in_one_line(values):
    made = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=1.0)
    with pytest.raises(InputError, match=f"^schedule: {values['name']} can't be built with"):
        create_schedule(made, **values, num_steps=9, steps_per_epoch=3, batches_per_epoch=3)
