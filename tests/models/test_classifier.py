"""Classifier: heads, sizes counted by hand, penalties recomputed, pools, the round trip."""

import json

import pytest
import timm
import torch
from torch import nn

from carvision.errors import InputError
from carvision.models.classifier import Classifier, Head, classifier_from
from carvision.models.parts import Layers

F = 96  # features of test_resnet


def images(num: int = 4, size_px: int = 32) -> torch.Tensor:
    return torch.randn(num, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    "labels",
    [["class"], ["make", "model", "type", "doors", "seats"], ["a.b", "a_b", "a%2Eb", "a b", "forward", "train"]],
)
def test_any_number_of_heads_under_any_name(labels):
    torch.manual_seed(0)
    heads = {name: Head(i + 2) for i, name in enumerate(labels)}
    model = Classifier("test_resnet", heads, 32).eval()
    logits = model(images())
    assert {name: values.shape for name, values in logits.items()} == {n: (4, i + 2) for i, n in enumerate(labels)}
    assert list(logits) == list(model.labels) == labels
    assert num_parameters(model) == num_parameters(model.backbone) + sum((F + 1) * (i + 2) for i in range(len(labels)))
    other = classifier_from(model.description).eval()
    other.load_state_dict(model.state_dict())
    for name, values in other(images()).items():
        torch.testing.assert_close(values, logits[name], rtol=0, atol=0)


def test_parameters_of_a_network_counted_by_hand():
    trunk = Layers(hidden=(8, 6), dropout=0.3, batch_norm=True)
    head = Layers(hidden=(5,), bias=False)
    model = Classifier("test_resnet", {"make": Head(3), "model": Head(7, head)}, 32, trunk=trunk)
    assert num_parameters(model.trunk) == (F * 8 + 8 + 16) + (8 * 6 + 6 + 12)
    assert num_parameters(model.get_submodule("head_make")) == 6 * 3 + 3
    assert num_parameters(model.get_submodule("head_model")) == 6 * 5 + (5 * 7 + 7)
    assert num_parameters(model.backbone) == num_parameters(timm.create_model("test_resnet", num_classes=0)) == 372_688


def test_penalties_are_keras_formulas():
    """l2: l2 * sum(w^2) of the kernels, not of biases or norms; activity_l1: l1 * sum(|a|) / photos of the batch."""
    torch.manual_seed(0)
    trunk = Layers(hidden=(8, 6), l2=0.01, activity_l1=0.002, batch_norm=True, dropout=0.5, activation="tanh")
    head = Layers(hidden=(5,), l2=0.3, activation="none", activity_l1=0.07)
    model = Classifier("test_resnet", {"make": Head(3), "model": Head(7, head)}, 32, trunk=trunk).double()
    photos = images(num=5).double()
    seen = {}
    for name, block in {"0": model.trunk.blocks[0], "1": model.trunk.blocks[1]}.items():
        block[1].register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    hidden = model.get_submodule("head_model").layers.blocks[0]
    hidden[1].register_forward_hook(lambda _, __, out: seen.update({"head": out}))
    for mode in (True, False):
        model.train(mode)
        penalty = model.outputs(photos).penalty
        expected = 0.0
        for block, name, l2, l1 in (
            (model.trunk.blocks[0], "0", 0.01, 0.002),
            (model.trunk.blocks[1], "1", 0.01, 0.002),
            (hidden, "head", 0.3, 0.07),
        ):
            expected += l2 * sum(w**2 for w in block[0].weight.flatten().tolist())
            expected += l1 * sum(abs(a) for a in seen[name].flatten().tolist()) / 5
        assert penalty.shape == ()
        assert penalty.item() == pytest.approx(expected)
    penalty.backward()
    assert hidden[0].weight.grad.abs().sum() > 0
    assert model.get_submodule("head_make").output.weight.grad is None


POOLS = {
    "default": lambda maps: maps.mean((2, 3)),
    "avg": lambda maps: maps.mean((2, 3)),
    "max": lambda maps: maps.amax((2, 3)),
    "avgmax": lambda maps: 0.5 * (maps.mean((2, 3)) + maps.amax((2, 3))),
    "catavgmax": lambda maps: torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1),
    "flatten": lambda maps: maps.reshape(len(maps), -1),
    "gem": lambda maps: maps.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3),
}


@pytest.mark.parametrize(
    ("backbone", "pool"),
    [*(("test_resnet", p) for p in POOLS), *(("test_mambaout", p) for p in POOLS if p != "default")],
)
def test_pools(backbone, pool):
    model = Classifier(backbone, {"class": Head(2)}, 64, pool=pool).eval()
    photos = images(num=2, size_px=64)
    maps = model.backbone.forward_features(photos)
    if backbone == "test_mambaout" and pool == "default":
        expected = model.backbone(photos)  # its own head has a norm after the pool
    elif backbone == "test_mambaout":  # channels last
        assert model.backbone.output_fmt == "NHWC"
        expected = maps.flatten(1) if pool == "flatten" else POOLS[pool](maps.permute(0, 3, 1, 2))
    else:
        assert maps.shape == (2, F, 2, 2)
        expected = POOLS[pool](maps)
    torch.testing.assert_close(model.features(photos), expected)
    assert model.get_submodule("head_class").output.in_features == expected.shape[1]


@pytest.mark.parametrize("pool", ["max", "flatten", "gem"])
def test_pooling_tokens_is_an_input_error(pool):
    with pytest.raises(
        InputError, match=f"model.pool: '{pool}' needs a feature map, and test_vit gives tokens; use def"
    ):
        Classifier("test_vit", {"class": Head(2)}, 32, pool=pool)
    assert Classifier("test_vit", {"class": Head(2)}, 32)(images())["class"].shape == (4, 2)


def test_a_size_that_the_backbone_cannot_take_is_an_input_error():
    with pytest.raises(InputError, match=r"data\.image_px: test_vit does not take images of 33 px") as raised:
        Classifier("test_vit", {"class": Head(2)}, 33, {"img_size": 32})
    assert "\n" not in str(raised.value)


def test_a_number_is_given_in_its_own_unit():
    torch.manual_seed(0)
    heads = {"class": Head(3), "speed": Head(1, mean=220.0, std=35.0)}
    model = Classifier("test_resnet", heads, 32).eval()
    head = model.get_submodule("head_speed")
    raw = head["output"](model.features(images()))
    logits = model(images())
    torch.testing.assert_close(logits["speed"], raw * 35 + 220)
    torch.testing.assert_close(logits["class"], model.get_submodule("head_class")["output"](model.features(images())))
    with torch.no_grad():
        head["output"].weight.zero_(), head["output"].bias.zero_()
    assert model(images())["speed"].flatten().tolist() == [220.0] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_numbers_survive_mixed_precision(dtype):
    """A price of 150,003 is beyond float16, and bfloat16 has three digits."""
    model = Classifier("test_resnet", {"price": Head(1, mean=150_003.0, std=1.0)}, 32).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype):
        estimates = model(images())["price"]
    assert (estimates - 150_003).abs().max() < 50


def test_description_goes_through_json():
    torch.manual_seed(0)
    heads = {"make": Head(3, Layers(hidden=(5, 4), dropout=0.1)), "speed": Head(1, mean=220.0, std=35.0)}
    trunk = Layers(hidden=(8,), activation="gelu", batch_norm=True, bias=False, l2=0.1, activity_l1=0.2)
    model = Classifier("test_resnet", heads, 48, {"stem_width": 24}, "catavgmax", trunk, "none")
    assert model.backbone.conv1[0].out_channels == 24
    other = classifier_from(json.loads(json.dumps(model.description)))
    assert json.dumps(other.description) == json.dumps(model.description)
    other.load_state_dict(model.state_dict())
    photos = images(size_px=48)
    for name, values in model.eval()(photos).items():
        torch.testing.assert_close(other.eval()(photos)[name], values, rtol=0, atol=0)
    assert model.outputs(photos).penalty > 0
    torch.testing.assert_close(other.outputs(photos).penalty, model.outputs(photos).penalty)
    assert other.trunk.layers == trunk == model.trunk.layers
