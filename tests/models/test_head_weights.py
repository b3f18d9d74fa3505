"""Learned weights of heads: the optimum in closed form, and the gradients."""

import math

import pytest
import torch

from carvision.models.parts import HeadWeights

BOTH = torch.tensor([True, True])


def test_learned_head_weights_find_their_optimum():
    weigh = HeadWeights(["make", "top speed"])
    losses = {"make": torch.tensor(0.8), "top speed": torch.tensor(3.0)}
    assert weigh(losses, BOTH).item() == pytest.approx(3.8)
    assert weigh.weights() == {"make": 1.0, "top speed": 1.0}
    weigh(losses, BOTH).backward()
    assert weigh.log_variances.grad.tolist() == pytest.approx([0.5 - 0.8, 0.5 - 3.0])
    optimizer = torch.optim.SGD(weigh.parameters(), lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        weigh(losses, BOTH).backward()
        optimizer.step()
    assert weigh.log_variances.tolist() == pytest.approx([math.log(2 * 0.8), math.log(2 * 3.0)], abs=1e-4)
    assert weigh.weights() == pytest.approx({"make": 1 / 1.6, "top speed": 1 / 6}, rel=1e-3)


def test_learned_head_weights_scale_the_gradients_of_their_heads():
    weigh = HeadWeights(["make", "model"])
    with torch.no_grad():
        weigh.log_variances.copy_(torch.tensor([0.0, math.log(4.0)]))
    make, model = torch.tensor(2.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    total = weigh({"model": model, "make": make}, BOTH)
    assert total.item() == pytest.approx(2.0 + 2.0 / 4 + math.log(4.0) / 2)
    total.backward()
    assert (make.grad.item(), model.grad.item()) == pytest.approx((1.0, 0.25))


def test_a_head_without_a_known_label_moves_no_weight():
    weigh = HeadWeights(["make", "model"])
    weigh({"make": torch.tensor(0.0), "model": torch.tensor(1.0)}, torch.tensor([False, True])).backward()
    assert weigh.log_variances.grad.tolist() == [0.0, -0.5]
