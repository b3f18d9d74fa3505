"""Regularised linear problems on features: one linear layer, fitted with all photos at once. Plain tensors."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# (scores (N, C), targets (N,)) -> (N,)
Loss = Callable[[Tensor, Tensor], Tensor]

MAX_STEPS = 100
GRADIENT_TOLERANCE = 1e-4  # largest value of the gradient with which the minimum counts as found


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
    return 0.5 * (scores[:, 0] - targets) ** 2


class Frame(NamedTuple):
    """Coordinates in which a layer is fitted: of features x (N, F) they are (x - mean) @ matrix.T; matrix (F, F)."""

    mean: Tensor
    matrix: Tensor

    def of(self, features: Tensor) -> Tensor:
        return (features - self.mean) @ self.matrix.T

    def undo(self, layer: Layer) -> Layer:
        """The layer for features as they are."""
        weight = layer.weight @ self.matrix
        return Layer(weight, layer.bias - weight @ self.mean)


def plain_frame(features: Tensor) -> Frame:
    """Mean 0, and variance 1 on average.

    One scale for all features, not one for each, which would blow up those that hardly vary.
    """
    mean = features.mean(dim=0)
    scale = (features - mean).square().mean().sqrt().clamp(min=1e-12)
    return Frame(mean, torch.eye(features.shape[1], dtype=features.dtype, device=features.device) / scale)


def class_frame(features: Tensor, classes: Tensor, num_classes: int, shrinkage: float) -> Frame:
    """Mean 0, variance 1 on average, and a covariance within the classes that is a multiple of the unit matrix, as far
    as `shrinkage` lets it: 0 wholly, 1 not at all.

    features (N, F) of the photos whose class is known, classes (N,) their codes. An L2 penalty then costs most where
    photos of one class differ most, as in discriminant analysis with a covariance that is shrunk towards a multiple of
    the unit matrix (Friedman 1989, "Regularized discriminant analysis", J. Am. Stat. Assoc. 84, with all classes' one).
    """
    counts = torch.bincount(classes, minlength=num_classes).clamp(min=1)
    sums = features.new_zeros(num_classes, features.shape[1]).index_add_(0, classes, features)
    within = features - (sums / counts[:, None])[classes]
    covariance = within.T @ within / len(within)
    variance = covariance.diagonal().mean().clamp(min=1e-24)
    covariance *= 1 - shrinkage
    covariance.diagonal().add_(shrinkage * variance)
    # Any root of the inverse does: the penalty is the same in coordinates that are turned
    unit = torch.eye(len(covariance), dtype=features.dtype, device=features.device)
    matrix = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), unit, upper=False)
    mean = features.mean(dim=0)
    scale = ((features - mean) @ matrix.T).square().mean().sqrt().clamp(min=1e-12)
    return Frame(mean, matrix / scale)
