"""Dense: layers in their order, each its formula; one number for all layers or one for each."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from carvision.config.compose import conf_dir, plain_config
from carvision.errors import InputError
from carvision.models.parts import ACTIVATIONS, Dense, Layers, described
from carvision.training.build import build_layers


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_layers_are_linear_activation_batch_norm_dropout():
    dense = Dense(5, Layers(hidden=(4, 3), dropout=0.25, activation="leaky_relu", batch_norm=True, bias=False))
    assert dense.blocks[0][1].negative_slope == 0.01  # PyTorch's, unless it is given: test_a_layer_is_its_formula
    kinds = [[type(layer) for layer in block] for block in dense.blocks]
    assert kinds == [[nn.Linear, nn.LeakyReLU, nn.BatchNorm1d, nn.Dropout]] * 2
    assert [block[0].weight.shape for block in dense.blocks] == [(4, 5), (3, 4)]
    assert [block[0].bias for block in dense.blocks] == [None, None]
    assert [block[3].p for block in dense.blocks] == [0.25, 0.25]
    assert dense.num_outputs == 3
    assert num_parameters(dense) == 4 * 5 + 2 * 4 + 3 * 4 + 2 * 3


def test_without_layers_dropout_alone_stands_before_the_output():
    dense = Dense(1000, Layers(dropout=0.5))
    x = torch.ones(20, 1000)
    out, penalty = dense(x)
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert penalty == 0
    assert dense.num_outputs == 1000
    assert torch.equal(dense.eval()(x)[0], x)
    nothing = Dense(1000, Layers(l2=1.0, activity_l1=1.0))
    assert torch.equal(nothing(x)[0], x)
    assert nothing(x)[1] == 0


@pytest.mark.parametrize(
    ("activation", "formula"),
    [
        ("relu", lambda x: max(x, 0.0)),
        ("leaky_relu", lambda x: x if x > 0 else 0.3 * x),
        ("elu", lambda x: x if x > 0 else math.exp(x) - 1),
        ("sigmoid", lambda x: 1 / (1 + math.exp(-x))),
        ("gelu", lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))),
        ("silu", lambda x: x / (1 + math.exp(-x))),
        ("tanh", math.tanh),
        ("none", lambda x: x),
    ],
)
def test_a_layer_is_its_formula(activation, formula):
    torch.manual_seed(0)
    dense = Dense(3, Layers(hidden=(2,), activation=activation, activation_slope=0.3, batch_norm=True)).double().eval()
    linear, _, norm = dense.blocks[0]
    norm.running_mean[:], norm.running_var[:] = torch.tensor([0.5, -1.0]), torch.tensor([4.0, 0.25])
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = np.empty((5, 2))
    for row in range(5):
        for unit in range(2):
            z = sum(x[row, i].item() * linear.weight[unit, i].item() for i in range(3)) + linear.bias[unit].item()
            mean, var = norm.running_mean[unit].item(), norm.running_var[unit].item()
            expected[row, unit] = (formula(z) - mean) / math.sqrt(var + norm.eps)
    np.testing.assert_allclose(dense(x)[0].detach().numpy(), expected, rtol=1e-9)
    assert activation in ACTIVATIONS


def test_keras_batch_norm_follows_keras_formula():
    """new = 0.99 * old + 0.01 * batch; output (x - mean) / sqrt(var + 1e-3)."""
    dense = Dense(2, Layers(hidden=(2,), activation="none", batch_norm="keras", bias=False)).double()
    linear, _, norm = dense.blocks[0]
    with torch.no_grad():
        linear.weight.copy_(torch.eye(2))
    x = torch.tensor([[0.0, 0.1], [0.02, 0.3], [0.04, 0.2]], dtype=torch.float64)
    out = dense(x)[0]
    expected = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-3).sqrt()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(norm.running_mean, 0.01 * x.mean(0))


def test_a_list_has_one_number_for_each_layer():
    torch.manual_seed(0)
    layers = Layers([6, 5, 4], dropout=[0.0, 0.5, 0.25], l2=[0.1, 0.0, 0.3], activity_l1=[0.0, 0.02, 0.01])
    dense = Dense(8, layers).double().eval()
    assert [[layer.p for layer in block if isinstance(layer, nn.Dropout)] for block in dense.blocks] == [
        [], [0.5], [0.25],
    ]  # fmt: skip
    x = torch.randn(7, 8, dtype=torch.float64)
    out, penalty = dense(x)
    expected, hidden = 0.0, x
    for block, l2, l1 in zip(dense.blocks, (0.1, 0.0, 0.3), (0.0, 0.02, 0.01), strict=True):
        hidden = (hidden @ block[0].weight.T + block[0].bias).clamp(min=0)
        expected += l2 * sum(w**2 for w in block[0].weight.flatten().tolist())
        expected += l1 * sum(abs(a) for a in hidden.flatten().tolist()) / 7
    torch.testing.assert_close(out, hidden)
    assert penalty.item() == pytest.approx(expected)
    assert Layers(**json.loads(json.dumps(asdict(layers)))) == layers


def test_a_number_is_the_list_that_repeats_it():
    numbers = Layers((3, 2), dropout=0.5, l2=0.1, activity_l1=0.2)
    lists = Layers((3, 2), dropout=(0.5, 0.5), l2=(0.1, 0.1), activity_l1=(0.2, 0.2))
    assert str(Dense(4, numbers)) == str(Dense(4, lists))
    assert Dense(4, numbers).penalties == Dense(4, lists).penalties == [(0.1, 0.2)] * 2


def test_activities_are_summed_over_the_photos_of_the_batch():
    torch.manual_seed(0)
    dense = Dense(8, Layers((6, 4), activity_l1=[0.5, 0.02], activity_l1_reduction="sum")).double()
    x = torch.randn(7, 8, dtype=torch.float64)
    shares = torch.tensor([1, 1, 0, 1, 0, 1, 1], dtype=torch.float64) / 5  # two photos could not be read

    def expected(rows: list[int]) -> float:
        total = 0.0
        for row in rows:
            hidden = x[row]
            for block, l1 in zip(dense.blocks, (0.5, 0.02), strict=True):
                hidden = (block[0].weight @ hidden + block[0].bias).clamp(min=0)
                total += l1 * sum(abs(value) for value in hidden.tolist())
        return total

    assert dense(x)[1].item() == pytest.approx(expected(list(range(7))))
    assert dense(x, shares)[1].item() == pytest.approx(expected([0, 1, 3, 5, 6]))
    assert dense(x, torch.zeros(7))[1] == 0
    layers = Layers((6, 4), activity_l1=(0.5, 0.02))
    assert "activity_l1_reduction" not in described(layers) and Layers(**described(layers)) == layers
    assert Layers(**described(dense.layers)) == dense.layers
    mean = Dense(8, layers).double()
    mean.load_state_dict(dense.state_dict())
    assert dense(x, shares)[1].item() == pytest.approx(5 * mean(x, shares)[1].item())
    torch.testing.assert_close(mean(x, torch.full((7,), 1 / 7))[1], mean(x)[1], check_dtype=False)


@pytest.mark.parametrize("key", ["dropout", "l2", "activity_l1"])
def test_a_list_of_another_length_is_one_line(key):
    with pytest.raises(InputError) as raised:
        build_layers({"hidden": [512, 256], key: [0.1, 0.2, 0.3]}, "model.trunk")
    assert str(raised.value) == (
        f"model.trunk.{key}: [0.1, 0.2, 0.3] has 3 numbers for the 2 layers of hidden: [512, 256]; "
        "give one number for all, or one for each"
    )
    with pytest.raises(InputError, match=f"model.heads.make.{key}: .* 1 numbers for the 0 layers"):
        build_layers({key: [0.1]}, "model.heads.make")


def test_lists_and_keywords_can_be_given_on_the_command_line():
    overrides = [
        "model.neck=[spatial_dropout,attention,se,attention]", "model.neck_dropout=0.3", "model.pool=gem",
        "model.trunk.hidden=[8,4]", "model.trunk.dropout=[0.1,0.2]", "model.trunk.l2=[0,1e-3]",
        "model.trunk.batch_norm=keras", "model.heads.make.hidden=[5]", "model.heads.make.activity_l1=[1e-3]",
    ]  # fmt: skip
    model = composed(*overrides)["model"]
    assert model["neck"] == ["spatial_dropout", "attention", "se", "attention"]
    assert build_layers(model["trunk"], "model.trunk") == Layers(
        (8, 4), dropout=(0.1, 0.2), l2=(0, 1e-3), batch_norm="keras"
    )
    assert build_layers(model["heads"]["make"], "").activity_l1 == (1e-3,)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.neck=[attention,sse]",
            r"model\.neck: \['attention', 'sse'\] is not a list whose items are each one of",
        ),
        ("model.neck=se", "model.neck: 'se' is not a list"),
        ("model.trunk.dropout=[0.1,1.5]", r"model\.trunk\.dropout: .* is not a number from 0 to 1 or a list"),
        ("model.trunk.batch_norm=tf", r"model\.trunk\.batch_norm: 'tf' is not true or false or one of keras"),
        ("model.se_reduction=0", r"model\.se_reduction: 0 is not a whole number from 1"),
    ],
)
def test_wrong_values_of_the_configuration_are_one_line(override, message):
    with pytest.raises(InputError, match=message):
        composed(override)


def composed(*overrides: str) -> dict:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return plain_config(compose("train", overrides=list(overrides)))
