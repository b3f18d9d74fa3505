"""Feature map, neck, pools, dense layers and loss weights, each recomputed from its formula."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import timm
import torch
from torch import nn

from carvision.errors import InputError
from carvision.models.backbones import load_backbone_weights
from carvision.models.classifier import Classifier, Head
from carvision.models.parts import ChannelGate, Dense, GeM, HeadWeights, Layers, Neck, create_neck, described
from carvision.training.build import build_layers


def random_map(*shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def images() -> torch.Tensor:
    return random_map(2, 3, 64, 64, dtype=torch.float32)


def create(backbone: str, **kwargs) -> Classifier:
    torch.manual_seed(0)
    return Classifier(backbone, {"class": Head(2)}, 64, **kwargs)


def unused_parameters(model: Classifier) -> list[str]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss = model.eval()(images())["class"].square().sum()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]


@pytest.mark.parametrize(("backbone", "left_out"), [
    ("test_resnet", ()), ("test_convnext", ("head",)),  # a norm
    ("test_mambaout", ("head",)), ("mobilenetv3_small_050", ("conv_head",)),  # channels last in the first
])  # fmt: skip
def test_layers_after_the_feature_map_are_left_out_with_a_pool_and_used_without(backbone, left_out):
    neck = Neck(("spatial_dropout", "attention", "se"))
    with_pool = create(backbone, pool="gem", neck=neck)
    assert with_pool.backbone.left_out == left_out and unused_parameters(with_pool) == []
    own_pool = create(backbone, neck=neck)
    assert not hasattr(own_pool.backbone, "left_out") and unused_parameters(own_pool) == []
    whole = timm.create_model(backbone, num_classes=0)
    assert own_pool.backbone.state_dict().keys() == whole.state_dict().keys()


@pytest.mark.parametrize(("backbone", "channels"), [("mobilenetv3_small_050", 1), ("test_mambaout", 3)])
def test_the_neck_stands_between_feature_map_and_own_pool(backbone, channels):
    model = create(backbone, neck=Neck(("attention",))).eval()
    feature_map = model.backbone.forward_features(images())
    as_bchw = feature_map.movedim(channels, 1)
    gated = model.neck[0](as_bchw).movedim(1, channels)
    torch.testing.assert_close(model.features(images()), model.backbone.forward_head(gated))
    assert not torch.allclose(model.features(images()), model.backbone(images()))
    assert model.neck[0].reduce.in_features == feature_map.shape[channels]


def test_weights_of_the_whole_network_load_without_what_is_left_out():
    """timm's files and runs of earlier versions also hold the layers after the feature map."""
    model = create("mobilenetv3_small_050", pool="avg")
    torch.manual_seed(1)
    whole = timm.create_model("mobilenetv3_small_050", num_classes=10)
    load_backbone_weights(model.backbone, whole.state_dict(), "file")
    torch.testing.assert_close(model.backbone.conv_stem.weight, whole.conv_stem.weight)
    earlier = model.state_dict() | {"backbone.conv_head.weight": whole.conv_head.weight}
    assert create("mobilenetv3_small_050", pool="avg").load_state_dict(earlier).missing_keys == []
    with pytest.raises(InputError, match=r"1 belong to no part of it \(first: conv_header\.weight\)"):
        load_backbone_weights(model.backbone, whole.state_dict() | {"conv_header.weight": torch.zeros(1)}, "file")


def test_channel_gate_is_its_formula():
    torch.manual_seed(0)
    gate = ChannelGate(6, reduction=2).double()
    assert [tuple(p.shape) for p in gate.parameters()] == [(3, 6), (3,), (6, 3), (6,)]
    w1, b1, w2, b2 = (p.detach().numpy() for p in gate.parameters())
    x = random_map(2, 6, 3, 5).numpy()
    expected = np.empty_like(x)
    for photo in range(2):
        mean = [x[photo, c].sum() / 15 for c in range(6)]
        hidden = [max(0.0, sum(w1[u, c] * mean[c] for c in range(6)) + b1[u]) for u in range(3)]
        for c in range(6):
            z = sum(w2[c, u] * hidden[u] for u in range(3)) + b2[c]
            expected[photo, c] = x[photo, c] / (1 + math.exp(-z))
    np.testing.assert_allclose(gate(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-12)


def test_blocks_stand_in_their_order_as_often_as_named():
    torch.manual_seed(0)
    neck = create_neck(Neck(("se", "spatial_dropout", "attention", "se"), dropout=0.4), 32)
    assert [type(block) for block in neck] == [ChannelGate, nn.Dropout2d, ChannelGate, ChannelGate]
    assert [block.reduce.out_features for block in neck if isinstance(block, ChannelGate)] == [2, 4, 2]
    assert neck[1].p == 0.4
    x = random_map(2, 32, 3, 3, dtype=torch.float32)
    torch.testing.assert_close(neck.eval()(x), neck[3](neck[2](neck[0](x))))


@pytest.mark.parametrize("channels_last", [False, True])
def test_gem_is_its_formula_and_learns_its_power(channels_last):
    pool = GeM(channels_last).double()
    assert pool.p.item() == 3 and pool.eps == 1e-6
    x = random_map(2, 3, 4, 5)

    def naive(p: float) -> np.ndarray:
        clamped = np.maximum(x.numpy().astype(np.float32).astype(np.float64), 1e-6)
        return np.array([[(sum(v**p for v in channel.flat) / 20) ** (1 / p) for channel in photo] for photo in clamped])

    pooled = pool(x.permute(0, 2, 3, 1) if channels_last else x)
    assert pooled.shape == (2, 3)
    np.testing.assert_allclose(pooled.detach().numpy(), naive(3.0), rtol=1e-5)
    pooled.sum().backward()
    slope = (naive(3.0 + 1e-4).sum() - naive(3.0 - 1e-4).sum()) / 2e-4
    assert pool.p.grad.item() == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gem_of_dark_channels_in_half_precision(dtype):
    """eps^3 = 1e-18 would be 0 in 16 bits, and the gradient of its root NaN."""
    x = torch.zeros(1, 2, 3, 3, dtype=dtype, requires_grad=True)
    pool = GeM()
    pooled = pool(x)
    pooled.sum().backward()
    assert pooled.dtype == dtype
    assert torch.isfinite(pooled).all() and torch.isfinite(x.grad).all() and torch.isfinite(pool.p.grad)


def test_without_layers_dropout_alone_stands_before_the_output():
    dense, x = Dense(1000, Layers(dropout=0.5)), torch.ones(20, 1000)
    out, penalty = dense(x)
    assert set(out.unique().tolist()) == {0.0, 2.0} and penalty == 0 and dense.num_outputs == 1000


@pytest.mark.parametrize(("activation", "formula"), [
    ("relu", lambda x: max(x, 0.0)), ("leaky_relu", lambda x: x if x > 0 else 0.3 * x),
    ("elu", lambda x: x if x > 0 else math.exp(x) - 1), ("sigmoid", lambda x: 1 / (1 + math.exp(-x))),
    ("gelu", lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))), ("silu", lambda x: x / (1 + math.exp(-x))),
    ("tanh", math.tanh), ("none", lambda x: x),
])  # fmt: skip
def test_a_layer_is_its_formula(activation, formula):
    torch.manual_seed(0)
    layers = Layers(hidden=(2,), dropout=0.25, activation=activation, activation_slope=0.3, batch_norm=True)
    dense = Dense(3, layers).double().eval()
    linear, _, norm, dropout = dense.blocks[0]
    assert dropout.p == 0.25
    norm.running_mean[:], norm.running_var[:] = torch.tensor([0.5, -1.0]), torch.tensor([4.0, 0.25])
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = np.empty((5, 2))
    for row in range(5):
        for unit in range(2):
            z = sum(x[row, i].item() * linear.weight[unit, i].item() for i in range(3)) + linear.bias[unit].item()
            mean, var = norm.running_mean[unit].item(), norm.running_var[unit].item()
            expected[row, unit] = (formula(z) - mean) / math.sqrt(var + norm.eps)
    np.testing.assert_allclose(dense(x)[0].detach().numpy(), expected, rtol=1e-9)


def test_keras_batch_norm_follows_keras_formula():
    """new = 0.99 * old + 0.01 * batch; output (x - mean) / sqrt(var + 1e-3)."""
    dense = Dense(2, Layers(hidden=(2,), activation="none", batch_norm="keras", bias=False)).double()
    linear, _, norm = dense.blocks[0]
    with torch.no_grad():
        linear.weight.copy_(torch.eye(2))
    x = torch.tensor([[0.0, 0.1], [0.02, 0.3], [0.04, 0.2]], dtype=torch.float64)
    expected = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-3).sqrt()
    torch.testing.assert_close(dense(x)[0], expected)
    torch.testing.assert_close(norm.running_mean, 0.01 * x.mean(0))


L2, ACTIVITY_L1 = (0.1, 0.0, 0.3), (0.0, 0.02, 0.01)


def naive_penalty(dense: Dense, x: torch.Tensor, num_photos: int) -> float:
    """Keras' penalties: l2 * sum(w^2) of the kernels; l1 * sum(|a|) / photos of the activations, before batch norms."""
    total = 0.0
    for block, l2, l1 in zip(dense.blocks, L2, ACTIVITY_L1, strict=True):
        activity = (x @ block[0].weight.T + block[0].bias).tanh()
        total += l2 * sum(w**2 for w in block[0].weight.flatten().tolist())
        total += l1 * sum(abs(a) for a in activity.flatten().tolist()) / num_photos
        x = block[2](activity)
    return total


def test_penalties_are_keras_formulas_of_all_photos_or_of_those_with_a_share():
    torch.manual_seed(0)
    lists = {"dropout": [0.0, 0.5, 0.25], "l2": list(L2), "activity_l1": list(ACTIVITY_L1)}
    layers = Layers([6, 5, 4], activation="tanh", batch_norm=True, **lists)
    summing = Layers(**asdict(layers) | {"activity_l1_reduction": "sum"})
    mean, total = Dense(8, layers).double().eval(), Dense(8, summing).double().eval()
    for block in mean.blocks:
        block[2].running_mean.fill_(0.5)
    total.load_state_dict(mean.state_dict())
    x = torch.randn(7, 8, dtype=torch.float64)
    shares = torch.tensor([1, 1, 0, 1, 0, 1, 1], dtype=torch.float64) / 5  # two photos are unreadable
    for dense, num_photos, num_known in ((mean, 7, 5), (total, 1, 1)):
        assert dense(x)[1].item() == pytest.approx(naive_penalty(mean, x, num_photos))
        assert dense(x, shares)[1].item() == pytest.approx(naive_penalty(mean, x[shares > 0], num_known))
    assert total(x, torch.zeros(7))[1].item() == pytest.approx(naive_penalty(mean, x[:0], 1))
    numbers = Dense(4, Layers((3, 2), dropout=0.5, l2=0.1, activity_l1=0.2))
    assert [block[-1].p for block in numbers.blocks] == [0.5] * 2 and numbers.penalties == [(0.1, 0.2)] * 2
    assert "activity_l1_reduction" not in described(layers) and Layers(**described(layers)) == layers
    assert Layers(**described(summing)) == summing


def test_a_list_of_another_length_is_one_line():
    for key in ("dropout", "l2", "activity_l1"):
        with pytest.raises(InputError, match=rf"^model.trunk.{key}: \[.* has 3 numbers for the 2 layers of hidden"):
            build_layers({"hidden": [512, 256], key: [0.1, 0.2, 0.3]}, "model.trunk")


def test_learned_head_weights_scale_the_gradients_of_their_heads():
    weigh = HeadWeights(["make", "model"])
    assert weigh.log_variances.tolist() == [0.0, 0.0]  # all weights are 1
    with torch.no_grad():
        weigh.log_variances.copy_(torch.tensor([0.0, math.log(4.0)]))
    make, model = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    total = weigh({"model": model, "make": make}, torch.tensor([True, True]))
    assert total.item() == pytest.approx(2.0 + 3.0 / 4 + math.log(4.0) / 2)
    total.backward()
    assert (make.grad.item(), model.grad.item()) == pytest.approx((1.0, 0.25))
    assert weigh.log_variances.grad.tolist() == pytest.approx([0.5 - 2.0, 0.5 - 3.0 / 4])  # 0 at log(2 * loss)
    weigh = HeadWeights(["make", "model"])  # a head without a known label moves no weight
    weigh({"make": torch.tensor(0.0), "model": torch.tensor(1.0)}, torch.tensor([False, True])).backward()
    assert weigh.log_variances.grad.tolist() == [0.0, -0.5]
