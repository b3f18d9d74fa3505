"""Regularised linear problems on features: one linear layer, fitted with all photos at once. Plain tensors."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# (scores (N, C), targets (N,)) -> (N,)
Loss = Callable[[Tensor, Tensor], Tensor]

MAX_STEPS = 100
ENOUGH = 1e-4  # largest value of the gradient with which the minimum counts as found


class Layer(NamedTuple):
    """scores = features @ weight.T + bias; weight (C, F), bias (C,)."""

    weight: Tensor
    bias: Tensor


def fit_layer(
    features: Tensor,
    targets: Tensor,
    weights: Tensor,
    num_outputs: int,
    loss: Loss,
    l2: float,
    start: Layer | None = None,
    max_steps: int = MAX_STEPS,
) -> Layer:
    """The layer with the least  sum(weights * loss) / sum(weights) + l2 / 2 * sum(weight ** 2),  by L-BFGS.

    features float (N, F). targets, weights (N,), weight 0 where the target isn't known. With cross-entropy that is
    multinomial logistic regression (scikit-learn's C is 1 / (l2 * sum(weights))), with half the squared error ridge
    regression. start: from where to begin; zeros if None.
    """
    first = start or Layer(features.new_zeros(num_outputs, features.shape[1]), features.new_zeros(num_outputs))
    layer = Layer(*(values.detach().clone().requires_grad_() for values in first))
    shares = weights / weights.sum().clamp(min=1e-12)
    solver = torch.optim.LBFGS(
        list(layer),
        max_iter=max_steps,
        tolerance_grad=ENOUGH,
        tolerance_change=1e-9,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        scores = torch.nn.functional.linear(features, layer.weight, layer.bias)
        value = (shares * loss(scores, targets)).sum() + l2 / 2 * layer.weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(closure)
    return Layer(layer.weight.detach(), layer.bias.detach())


def half_squared_error(scores: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (scores[:, 0] - targets) ** 2


def standardise(features: Tensor) -> tuple[Tensor, Tensor]:
    """(mean (F,), scale ()): with which features have mean 0, and variance 1 on average.

    One scale for all of them, not one for each, which would blow up those that hardly vary.
    """
    mean = features.mean(dim=0)
    return mean, (features - mean).square().mean().sqrt().clamp(min=1e-12)


def undo(layer: Layer, mean: Tensor, scale: Tensor) -> Layer:
    """The layer for features as they are, of one for (features - mean) / scale."""
    weight = layer.weight / scale
    return Layer(weight, layer.bias - weight @ mean)
