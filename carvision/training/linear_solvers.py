"""Fit one linear layer on the features of all photos at once, with L2 regularisation. Plain tensors."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# (scores (N, C), targets (N,)) -> (N,)
Loss = Callable[[Tensor, Tensor], Tensor]

MAX_STEPS = 100
GRADIENT_TOLERANCE = 1e-4  # largest gradient component at an accepted minimum


class Layer(NamedTuple):
    """Hold a linear layer: scores = features @ weight.T + bias; weight (C, F), bias (C,)."""

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
    """Return the layer that minimises  sum(weights * loss) / sum(weights) + l2 / 2 * sum(weight ** 2)  by L-BFGS.

    features: float (N, F). targets, weights: (N,), weight 0 for an unknown target. start: initial layer; None: zeros.
    With cross-entropy this is multinomial logistic regression (scikit-learn's C is 1 / (l2 * sum(weights))), with half
    the squared error ridge regression.
    """
    first = start or Layer(features.new_zeros(num_outputs, features.shape[1]), features.new_zeros(num_outputs))
    layer = Layer(*(values.detach().clone().requires_grad_() for values in first))
    shares = weights / weights.sum().clamp(min=1e-12)
    solver = torch.optim.LBFGS(
        list(layer),
        max_iter=max_steps,
        tolerance_grad=GRADIENT_TOLERANCE,
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
    """Return (N,) losses of scores (N, 1) and targets (N,)."""
    return 0.5 * (scores[:, 0] - targets) ** 2


class Frame(NamedTuple):
    """Hold affine coordinates in which a layer is fitted: features x (N, F) become (x - mean) @ matrix.T; matrix (F,
    F)."""

    mean: Tensor
    matrix: Tensor

    def apply(self, features: Tensor) -> Tensor:
        return (features - self.mean) @ self.matrix.T

    def undo(self, layer: Layer) -> Layer:
        """Return the layer for the original features."""
        weight = layer.weight @ self.matrix
        return Layer(weight, layer.bias - weight @ self.mean)


def plain_frame(features: Tensor) -> Frame:
    """Return the frame with mean 0 and variance 1 on average over all features.

    One scale for all features: one for each would amplify those that hardly vary.
    """
    mean = features.mean(dim=0)
    scale = (features - mean).square().mean().sqrt().clamp(min=1e-12)
    return Frame(mean, torch.eye(features.shape[1], dtype=features.dtype, device=features.device) / scale)


def class_frame(features: Tensor, classes: Tensor, num_classes: int, shrinkage: float) -> Frame:
    """Return the frame with mean 0, variance 1 on average, and a within-class covariance that `shrinkage` moves towards
    a multiple of the unit matrix: 0 entirely, 1 not at all.

    features: (N, F) of the photos whose class is known. classes: int64 (N,). An L2 penalty in this frame costs most
    where photos of one class differ most, as in discriminant analysis with a pooled covariance shrunk towards a
    multiple of the unit matrix (Friedman 1989, "Regularized discriminant analysis", J. Am. Stat. Assoc. 84).
    """
    counts = torch.bincount(classes, minlength=num_classes).clamp(min=1)
    sums = features.new_zeros(num_classes, features.shape[1]).index_add_(0, classes, features)
    within = features - (sums / counts[:, None])[classes]
    covariance = within.T @ within / len(within)
    variance = covariance.diagonal().mean().clamp(min=1e-24)
    covariance *= 1 - shrinkage
    covariance.diagonal().add_(shrinkage * variance)
    # Any root of the inverse will do: the penalty is invariant under rotation
    unit = torch.eye(len(covariance), dtype=features.dtype, device=features.device)
    matrix = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), unit, upper=False)
    mean = features.mean(dim=0)
    scale = ((features - mean) @ matrix.T).square().mean().sqrt().clamp(min=1e-12)
    return Frame(mean, matrix / scale)
