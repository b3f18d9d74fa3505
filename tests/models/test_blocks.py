"""The neck's blocks and the pools, recomputed photo by photo and channel by channel."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from carvision.models.parts import ChannelGate, GeM, Neck, create_neck


def feature_map(*shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_channel_gate_is_its_formula():
    torch.manual_seed(0)
    gate = ChannelGate(6, reduction=2).double()
    assert [tuple(p.shape) for p in gate.parameters()] == [(3, 6), (3,), (6, 3), (6,)]
    w1, b1, w2, b2 = (p.detach().numpy() for p in gate.parameters())
    x = feature_map(2, 6, 3, 5).numpy()
    expected = np.empty_like(x)
    for photo in range(2):
        mean = [x[photo, c].sum() / 15 for c in range(6)]
        hidden = [max(0.0, sum(w1[u, c] * mean[c] for c in range(6)) + b1[u]) for u in range(3)]
        for c in range(6):
            z = sum(w2[c, u] * hidden[u] for u in range(3)) + b2[c]
            expected[photo, c] = x[photo, c] / (1 + math.exp(-z))
    np.testing.assert_allclose(gate(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-12)


def test_attention_and_se_have_c8_and_c16_units_and_biases():
    """Report R1; the parameters at 512 channels are those of its VGG16, where attention and SE stand twice."""
    attention, se = create_neck(Neck(("attention", "se")), 512)
    assert (attention.reduce.out_features, se.reduce.out_features) == (64, 32)
    assert [sum(p.numel() for p in block.parameters()) for block in (attention, se)] == [66_112, 33_312]
    others = create_neck(Neck(("se", "attention"), attention_reduction=4, se_reduction=1000), 512)
    assert [block.reduce.out_features for block in others] == [1, 128]


def test_blocks_stand_in_their_order_as_often_as_named():
    torch.manual_seed(0)
    neck = create_neck(Neck(("se", "spatial_dropout", "attention", "se"), dropout=0.4), 32)
    assert [type(block) for block in neck] == [ChannelGate, nn.Dropout2d, ChannelGate, ChannelGate]
    assert [block.reduce.out_features for block in neck if isinstance(block, ChannelGate)] == [2, 4, 2]
    assert neck[1].p == 0.4
    x = feature_map(2, 32, 3, 3, dtype=torch.float32)
    torch.testing.assert_close(neck.eval()(x), neck[3](neck[2](neck[0](x))))
    assert not torch.allclose(neck(x), neck[0](neck[2](neck[2](x))))  # the two SE blocks are not one
    assert len(create_neck(Neck(), 32)) == 0


def test_spatial_dropout_drops_whole_channels_of_single_photos():
    torch.manual_seed(0)
    neck = create_neck(Neck(("spatial_dropout",), dropout=0.2), 100)
    out = neck(torch.ones(20, 100, 4, 4))
    kept = out[:, :, 0, 0] != 0
    assert torch.equal(out, kept[:, :, None, None].expand(-1, -1, 4, 4) / 0.8)
    assert 0.15 < 1 - kept.float().mean() < 0.25
    assert not torch.equal(kept[0], kept[1])


@pytest.mark.parametrize("channels_last", [False, True])
def test_gem_is_its_formula_and_learns_its_power(channels_last):
    pool = GeM(channels_last).double()
    assert pool.p.item() == 3 and pool.eps == 1e-6
    x = feature_map(2, 3, 4, 5)

    def naive(p: float) -> np.ndarray:
        clamped = np.maximum(x.numpy().astype(np.float32).astype(np.float64), 1e-6)
        return np.array([[(sum(v**p for v in channel.flat) / 20) ** (1 / p) for channel in photo] for photo in clamped])

    pooled = pool(x.permute(0, 2, 3, 1) if channels_last else x)
    assert pooled.shape == (2, 3)
    np.testing.assert_allclose(pooled.detach().numpy(), naive(3.0), rtol=1e-5)
    pooled.sum().backward()
    slope = (naive(3.0 + 1e-4).sum() - naive(3.0 - 1e-4).sum()) / 2e-4
    assert slope > 0.1
    assert pool.p.grad.item() == pytest.approx(slope, rel=1e-4)


def test_gem_reaches_from_the_average_to_the_maximum():
    x = feature_map(2, 3, 4, 5, dtype=torch.float32).abs() + 0.1
    pool = GeM()
    with torch.no_grad():
        pool.p.fill_(1.0)
        torch.testing.assert_close(pool(x), x.mean((2, 3)))
        pool.p.fill_(60.0)
        assert ((pool(x) / x.amax((2, 3)) - 1).abs() < 0.06).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gem_of_dark_channels_in_half_precision(dtype):
    """eps^3 = 1e-18 would be 0 in 16 bits, and the gradient of its root not a number."""
    x = torch.zeros(1, 2, 3, 3, dtype=dtype, requires_grad=True)
    pool = GeM()
    pooled = pool(x)
    pooled.sum().backward()
    assert pooled.dtype == dtype
    assert torch.isfinite(pooled).all() and torch.isfinite(x.grad).all() and torch.isfinite(pool.p.grad)
