"""R0's focal loss against TensorFlow Addons' formula, its documentation, and its value for an even guess."""

import math

import numpy as np
import pytest
import torch

from carvision.data.table import UNKNOWN
from carvision.losses.classification import binary_of_softmax_focal

TARGETS = [0, 4, UNKNOWN, 0, 2, 1]


def addons_focal(probs: np.ndarray, target: int, gamma: float, alpha: float | None) -> float:
    """TensorFlow Addons' SigmoidFocalCrossEntropy of one photo, its lines written out in float64."""
    loss = 0.0
    for i, p in enumerate(probs):
        y = float(i == target)
        clipped = min(max(p, 1e-7), 1 - 1e-7)
        cross_entropy = -(y * math.log(clipped + 1e-7) + (1 - y) * math.log(1 - clipped + 1e-7))
        p_t = y * p + (1 - y) * (1 - p)
        alpha_factor = 1.0 if alpha is None else y * alpha + (1 - y) * (1 - alpha)
        loss += alpha_factor * (1 - p_t) ** gamma * cross_entropy
    return loss


@pytest.mark.parametrize("alpha", [None, 0.25, 0.9])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_r0_focal_is_tensorflow_addons(gamma, alpha):
    logits = 3 * torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor(TARGETS)
    logits[1] = torch.tensor([30.0, -30.0, -10.0, 0.0, 5.0])  # sure and wrong: clipped
    expected = [
        0.0 if target == UNKNOWN else addons_focal(row, target, gamma, alpha)
        for row, target in zip(logits.softmax(1).numpy(), TARGETS, strict=True)
    ]
    np.testing.assert_allclose(binary_of_softmax_focal(logits, targets, gamma, alpha).numpy(), expected, rtol=1e-9)
    np.testing.assert_allclose(
        binary_of_softmax_focal(logits.float(), targets, gamma, alpha).numpy(), expected, rtol=0.02 if gamma else 0.1
    )  # in float32, 1 - 1e-7 is 1 - 1.2e-7, in Keras too


def test_r0_focal_gives_the_numbers_of_tensorflow_addons_documentation():
    """Each a class of its own: true with 0.97 and 0.91, another with 0.03; here the two classes of one photo."""
    right_97, right_91, other_3 = 6.8532745e-06, 1.9097870e-04, 2.0559824e-05
    logits = torch.tensor([[0.97, 0.03], [0.91, 0.09]]).log()
    expected = [right_97 + other_3, right_91 * 4]  # 0.09 of the other class: the same, with 0.75 in place of 0.25
    np.testing.assert_allclose(binary_of_softmax_focal(logits, torch.tensor([0, 0])).numpy(), expected, rtol=1e-4)


def test_r0_focal_at_its_size():
    """163 makes and 1,716 models in float32 and bfloat16 against float64; at an even guess, in closed form."""
    for num_classes in (163, 1716):
        q = 1 / num_classes
        even = 0.25 * (1 - q) ** 2 * -math.log(q) + 0.75 * (num_classes - 1) * q**2 * -math.log(1 - q)
        assert binary_of_softmax_focal(torch.zeros(1, num_classes), torch.tensor([7])).item() == pytest.approx(
            even, rel=1e-4
        )
        logits = 4 * torch.randn(50, num_classes, generator=torch.Generator().manual_seed(0))
        targets = torch.arange(50)
        for dtype in (torch.float32, torch.bfloat16):
            given = logits.to(dtype, copy=True).requires_grad_()
            exact = given.detach().double().requires_grad_()
            values, expected = binary_of_softmax_focal(given, targets), binary_of_softmax_focal(exact, targets)
            values.sum().backward(), expected.sum().backward()
            np.testing.assert_allclose(values.detach().numpy(), expected.detach().numpy(), rtol=1e-4)
            error = (given.grad.double() - exact.grad).abs().max()
            assert error < (1e-5 if dtype == torch.float32 else 1e-2)
