"""Every loss against its formula written out with loops, photo by photo."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from timm.loss import BinaryCrossEntropy
from torchvision.ops import sigmoid_focal_loss

from carvision.config.compose import compose_alone, plain_config
from carvision.config.schema import check_values
from carvision.data.table import UNKNOWN
from carvision.errors import InputError
from carvision.losses.classification import (
    balanced_class_weights,
    binary_cross_entropy,
    binary_of_softmax_focal,
    create_class_weights,
    create_loss,
    cross_entropy,
    effective_class_weights,
    sigmoid_focal,
    smooth_l1,
    softmax_focal,
    weighted_mean,
)

TARGETS = [0, 4, UNKNOWN, 2, 2, 1, UNKNOWN]
CLASS_LOSSES = {
    "cross_entropy": cross_entropy,
    "smoothed": lambda logits, targets: cross_entropy(logits, targets, label_smoothing=0.2),
    "softmax_focal": softmax_focal,
    "softmax_focal_half": lambda logits, targets: softmax_focal(logits, targets, gamma=0.5),
    "sigmoid_focal": sigmoid_focal,
    "sigmoid_focal_alpha": lambda logits, targets: sigmoid_focal(logits, targets, gamma=1.5, alpha=0.25),
    "sigmoid_focal_half": lambda logits, targets: sigmoid_focal(logits, targets, gamma=0.5),
    "r0_focal": binary_of_softmax_focal,
    "r0_focal_half": lambda logits, targets: binary_of_softmax_focal(logits, targets, gamma=0.5),
    "binary_cross_entropy": binary_cross_entropy,
    "binary_smoothed": lambda logits, targets: binary_cross_entropy(logits, targets, label_smoothing=0.2),
}
every_class_loss = pytest.mark.parametrize("loss", CLASS_LOSSES.values(), ids=CLASS_LOSSES)


def batch(num_classes: int = 5, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.randn(len(TARGETS), num_classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return scale * logits, torch.tensor(TARGETS)


def softmax(row: np.ndarray) -> list[float]:
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_the_formula(smoothing):
    logits, targets = batch()
    expected = []
    for row, target in zip(logits.numpy(), TARGETS, strict=True):
        weights = [(1 - smoothing) * (i == target) + smoothing / len(row) for i in range(len(row))]
        loss = -sum(w * math.log(p) for w, p in zip(weights, softmax(row), strict=True))
        expected.append(0.0 if target == UNKNOWN else loss)
    np.testing.assert_allclose(cross_entropy(logits, targets, smoothing).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mean_of_cross_entropy_is_torchs_own(smoothing):
    logits, targets = batch()
    mean = weighted_mean(cross_entropy(logits, targets, smoothing), (targets != UNKNOWN).double())
    expected = F.cross_entropy(logits, targets, ignore_index=UNKNOWN, label_smoothing=smoothing)
    torch.testing.assert_close(mean, expected)


def test_mean_of_cross_entropy_by_class_weights_is_torchs_own():
    logits, targets = batch()
    class_weights = torch.tensor([0.5, 3.0, 0.0, 1.0, 7.0], dtype=torch.float64)
    weights = class_weights[targets.clamp(min=0)] * (targets != UNKNOWN)
    expected = F.cross_entropy(logits, targets, weight=class_weights, ignore_index=UNKNOWN)
    torch.testing.assert_close(weighted_mean(cross_entropy(logits, targets), weights), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_is_the_formula(smoothing):
    logits, targets = batch()
    expected = []
    for row, target in zip(logits.numpy(), TARGETS, strict=True):
        loss = 0.0
        for i, value in enumerate(row):
            share = (1 - smoothing) * (i == target) + smoothing / len(row)
            loss -= (share * math.log(sigmoid(value)) + (1 - share) * math.log(1 - sigmoid(value))) / len(row)
        expected.append(0.0 if target == UNKNOWN else loss)
    np.testing.assert_allclose(binary_cross_entropy(logits, targets, smoothing).numpy(), expected, rtol=1e-10)


def test_binary_cross_entropy_is_timms():
    logits, targets = batch()
    known = targets != UNKNOWN
    expected = BinaryCrossEntropy(smoothing=0.1)(logits[known], targets[known])
    mean = weighted_mean(binary_cross_entropy(logits, targets, label_smoothing=0.1), known.double())
    torch.testing.assert_close(mean, expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_softmax_focal_is_the_formula(gamma):
    logits, targets = batch()
    expected = []
    for row, target in zip(logits.numpy(), TARGETS, strict=True):
        p = softmax(row)[target]
        expected.append(0.0 if target == UNKNOWN else -((1 - p) ** gamma) * math.log(p))
    np.testing.assert_allclose(softmax_focal(logits, targets, gamma).numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("alpha", [None, 0.0, 0.25, 0.9])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_sigmoid_focal_is_equation_5(gamma, alpha):
    logits, targets = batch()
    expected = []
    for row, target in zip(logits.numpy(), TARGETS, strict=True):
        loss = 0.0
        for i, value in enumerate(row):
            p = sigmoid(value)
            p_t = p if i == target else 1 - p
            alpha_t = 1.0 if alpha is None else alpha if i == target else 1 - alpha
            loss += -alpha_t * (1 - p_t) ** gamma * math.log(p_t)
        expected.append(0.0 if target == UNKNOWN else loss)
    np.testing.assert_allclose(sigmoid_focal(logits, targets, gamma, alpha).numpy(), expected, rtol=1e-10)


def test_sigmoid_focal_is_torchvisions():
    logits, targets = batch()
    known = targets != UNKNOWN
    one_hot = F.one_hot(targets[known], logits.shape[1]).double()
    expected = sigmoid_focal_loss(logits[known], one_hot, alpha=0.25, gamma=2.0).sum(1)
    torch.testing.assert_close(sigmoid_focal(logits, targets, 2.0, 0.25)[known], expected)


@every_class_loss
def test_gradients_are_those_of_the_values(loss):
    logits, targets = batch(scale=1.0)
    assert torch.autograd.gradcheck(lambda values: loss(values, targets), logits.requires_grad_())


@every_class_loss
def test_unknown_targets_give_no_loss_and_no_gradient(loss):
    logits, targets = batch()
    unknown = targets == UNKNOWN
    logits.requires_grad_()
    values = loss(logits, targets)
    values.sum().backward()
    assert (values[unknown] == 0).all()
    assert (logits.grad[unknown] == 0).all()
    assert (logits.grad[~unknown].abs().sum(1) > 0).all()
    assert (loss(logits, torch.full_like(targets, UNKNOWN)) == 0).all()


@every_class_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_are_finite_with_their_gradients(loss, dtype):
    logits = torch.tensor([[1e4, -1e4, 0], [-1e4, 1e4, 0], [200, 0, 0], [0, 0, 0], [-1e4, -1e4, -1e4]], dtype=dtype)
    logits.requires_grad_()
    values = loss(logits, torch.tensor([0, 0, 0, UNKNOWN, 1]))
    values.sum().backward()
    assert values.isfinite().all()
    assert logits.grad.isfinite().all()
    probs_only = loss in (CLASS_LOSSES["r0_focal"], CLASS_LOSSES["r0_focal_half"])
    assert values[1] > (15 if probs_only else 1000)  # sure and wrong, where Keras clips


def test_the_loss_of_a_mixture_is_the_mixture_of_losses():
    """As mixup needs it: share * loss(first) + (1 - share) * loss(second) is the loss of the soft target."""
    logits, _ = batch()
    first, second = torch.tensor([0, 1, 2, 3, 4, 0, 1]), torch.tensor([4, 1, 0, 0, 2, 2, 3])
    soft = 0.3 * F.one_hot(first, 5).double() + 0.7 * F.one_hot(second, 5).double()
    expected = F.cross_entropy(logits, soft, reduction="none")
    torch.testing.assert_close(0.3 * cross_entropy(logits, first) + 0.7 * cross_entropy(logits, second), expected)
    expected = F.binary_cross_entropy_with_logits(logits, soft, reduction="none").mean(1)
    mixed = 0.3 * binary_cross_entropy(logits, first) + 0.7 * binary_cross_entropy(logits, second)
    torch.testing.assert_close(mixed, expected)


@pytest.mark.parametrize(
    "loss", [cross_entropy, binary_cross_entropy, softmax_focal, sigmoid_focal, binary_of_softmax_focal]
)
def test_smoothing_moves_a_share_of_the_target_to_every_class(loss):
    logits, targets = batch()
    every = torch.stack([loss(logits, torch.full_like(targets, i)) for i in range(5)]).mean(0)
    expected = (0.9 * loss(logits, targets) + 0.1 * every) * (targets != UNKNOWN)
    torch.testing.assert_close(loss(logits, targets, label_smoothing=0.1), expected)


def test_smooth_l1_is_hubers_loss_of_the_scaled_error():
    estimates, targets, std = [[250.0], [180.0], [90.0], [0.0]], [240.0, math.nan, 200.0, 0.0], 20.0
    expected = []
    for (estimate,), target in zip(estimates, targets, strict=True):
        error = abs(estimate - target) / std
        expected.append(0.0 if math.isnan(target) else 0.5 * error**2 if error < 1 else error - 0.5)
    assert expected == [0.125, 0.0, 5.0, 0.0]
    given = torch.tensor(estimates, requires_grad=True)
    losses = smooth_l1(given, torch.tensor(targets), std)
    assert losses.tolist() == pytest.approx(expected)
    losses.sum().backward()
    assert given.grad[:, 0].tolist() == pytest.approx([0.5 / std, 0.0, -1 / std, 0.0])


def test_weighted_mean():
    losses, weights = torch.tensor([1.0, 5.0, 2.0]), torch.tensor([2.0, 0.0, 6.0])
    assert weighted_mean(losses, weights).item() == pytest.approx((2 * 1 + 6 * 2) / 8)
    nothing = weighted_mean(losses.requires_grad_(), torch.zeros(3))
    nothing.backward()
    assert nothing.item() == 0
    assert losses.grad.tolist() == [0, 0, 0]


def test_balanced_class_weights_are_scikit_learns():
    codes = np.repeat([0, 1, 3], [1, 7, 4])
    weights = balanced_class_weights(torch.from_numpy(np.bincount(codes, minlength=5)))
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=codes)
    assert weights[[0, 1, 3]].tolist() == pytest.approx(expected.tolist())
    assert weights[[2, 4]].tolist() == [0, 0]
    assert (weights * torch.tensor([1, 7, 0, 4, 0])).sum().item() == pytest.approx(len(codes))


def test_effective_class_weights_are_the_formula():
    counts, beta = [1, 7, 0, 4000, 90], 0.999
    raw = [0 if n == 0 else (1 - beta) / (1 - beta**n) for n in counts]
    expected = [weight * 4 / sum(raw) for weight in raw]
    assert effective_class_weights(torch.tensor(counts)).tolist() == pytest.approx(expected, rel=1e-5)
    nearly_balanced = effective_class_weights(torch.tensor(counts), beta=1 - 1e-9)
    balanced = balanced_class_weights(torch.tensor(counts))
    torch.testing.assert_close(nearly_balanced / nearly_balanced[0], balanced / balanced[0], rtol=1e-4, atol=0)
    assert effective_class_weights(torch.tensor(counts), beta=0.0).tolist() == [1, 1, 0, 1, 1]


def test_the_word_chooses_the_class_weights():
    counts = torch.tensor([1, 7, 0, 400])
    assert torch.equal(create_class_weights("balanced", counts), balanced_class_weights(counts))
    assert torch.equal(create_class_weights("effective", counts), effective_class_weights(counts))


def loss_config(preset: str) -> dict:
    return plain_config(compose_alone("train", [f"loss={preset}"]))["loss"]


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("cross_entropy", cross_entropy),
        ("binary_cross_entropy", binary_cross_entropy),
        ("focal", softmax_focal),
        ("focal_sigmoid", lambda *batch: sigmoid_focal(*batch, gamma=2.0, alpha=0.25)),
        ("r0_focal", lambda *batch: binary_of_softmax_focal(*batch, gamma=2.0, alpha=0.25)),
    ],
)
def test_the_presets(preset, expected):
    values = loss_config(preset)
    check_values({"loss": values})
    assert (values.pop("class_weights"), values.pop("head_weights")) == ("none", None)
    torch.testing.assert_close(create_loss(**values)(*batch()), expected(*batch()), rtol=0, atol=0)


@pytest.mark.parametrize("head_weights", [None, {"make": 0.5}, "learned"])
def test_head_weights_that_are_allowed(head_weights):
    check_values({"loss": {"head_weights": head_weights}})


@pytest.mark.parametrize("head_weights", ["fixed", {"make": -1}, {"make": "learned"}])
def test_head_weights_that_are_not(head_weights):
    with pytest.raises(InputError, match=r"loss\.head_weights: .* is not a mapping.* or the word learned"):
        check_values({"loss": {"head_weights": head_weights}})


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"label_smoothing": 0.3}, lambda *batch: cross_entropy(*batch, label_smoothing=0.3)),
        ({"gamma": 3.0, "alpha": 0.25}, lambda *batch: 0.25 * softmax_focal(*batch, gamma=3.0)),
        ({"form": "binary_of_softmax"}, lambda *batch: binary_of_softmax_focal(*batch, alpha=None)),
        ({"gamma": 1.0, "label_smoothing": 0.3}, lambda *batch: softmax_focal(*batch, gamma=1.0, label_smoothing=0.3)),
        ({"form": "sigmoid", "gamma": 3.0}, lambda *batch: sigmoid_focal(*batch, gamma=3.0)),
        ({"form": "sigmoid", "alpha": 0.25}, lambda *batch: sigmoid_focal(*batch, gamma=2.0, alpha=0.25)),
    ],
)
def test_the_keys_of_conf_choose_the_loss(overrides, expected):
    name = "cross_entropy" if list(overrides) == ["label_smoothing"] else "focal"
    values = loss_config(name) | overrides
    values.pop("class_weights"), values.pop("head_weights")
    torch.testing.assert_close(create_loss(**values)(*batch()), expected(*batch()), rtol=0, atol=0)
