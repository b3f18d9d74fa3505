"""Every loss against its formula written out with loops, photo by photo."""

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from carvision.config.compose import compose_alone, plain_config
from carvision.config.schema import check_values
from carvision.data.table import UNKNOWN
from carvision.losses import classification as ours

TARGETS = [0, 4, UNKNOWN, 2, 2, 1, UNKNOWN]
CLASS_LOSSES = [
    (ours.cross_entropy, {}), (ours.cross_entropy, {"label_smoothing": 0.2}),
    (ours.binary_cross_entropy, {}), (ours.binary_cross_entropy, {"label_smoothing": 0.2}),
    (ours.softmax_focal, {}), (ours.softmax_focal, {"gamma": 0.5}),
    (ours.sigmoid_focal, {}), (ours.sigmoid_focal, {"gamma": 0.5, "alpha": 0.25}),
    (ours.binary_of_softmax_focal, {}), (ours.binary_of_softmax_focal, {"gamma": 0.5}),
]  # fmt: skip
every_class_loss = pytest.mark.parametrize(("loss", "values"), CLASS_LOSSES)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.randn(len(TARGETS), 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return 3 * logits, torch.tensor(TARGETS)


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def naive_cross_entropy(row: list[float], target: int, smoothing: float) -> float:
    shares = [(1 - smoothing) * (i == target) + smoothing / len(row) for i in range(len(row))]
    return -sum(share * math.log(p) for share, p in zip(shares, softmax(row), strict=True))


def naive_binary_cross_entropy(row: list[float], target: int, smoothing: float) -> float:
    loss = 0.0
    for i, value in enumerate(row):
        share = (1 - smoothing) * (i == target) + smoothing / len(row)
        loss -= (share * math.log(sigmoid(value)) + (1 - share) * math.log(1 - sigmoid(value))) / len(row)
    return loss


def naive_softmax_focal(row: list[float], target: int, gamma: float, alpha: float = 1.0) -> float:
    p = softmax(row)[target]
    return -alpha * (1 - p) ** gamma * math.log(p)


def naive_sigmoid_focal(row: list[float], target: int, gamma: float, alpha: float | None) -> float:
    """Equation 5 of Lin et al. 2017, summed over the classes."""
    loss = 0.0
    for i, value in enumerate(row):
        p_t = sigmoid(value) if i == target else 1 - sigmoid(value)
        alpha_t = 1.0 if alpha is None else alpha if i == target else 1 - alpha
        loss += -alpha_t * (1 - p_t) ** gamma * math.log(p_t)
    return loss


def addons_focal(row: list[float], target: int, gamma: float, alpha: float | None) -> float:
    """TensorFlow Addons' SigmoidFocalCrossEntropy of one photo's softmax, its lines written out."""
    loss = 0.0
    for i, p in enumerate(softmax(row)):
        y = float(i == target)
        clipped = min(max(p, 1e-7), 1 - 1e-7)
        cross_entropy = -(y * math.log(clipped + 1e-7) + (1 - y) * math.log(1 - clipped + 1e-7))
        p_t = y * p + (1 - y) * (1 - p)
        alpha_factor = 1.0 if alpha is None else y * alpha + (1 - y) * (1 - alpha)
        loss += alpha_factor * (1 - p_t) ** gamma * cross_entropy
    return loss


@pytest.mark.parametrize(("loss", "naive", "values"), [
    *((ours.cross_entropy, naive_cross_entropy, (smoothing,)) for smoothing in (0.0, 0.1, 1.0)),
    *((ours.binary_cross_entropy, naive_binary_cross_entropy, (smoothing,)) for smoothing in (0.0, 0.1)),
    *((ours.softmax_focal, naive_softmax_focal, (gamma,)) for gamma in (0.0, 0.5, 1.0, 2.0, 5.0)),
    (ours.softmax_focal, naive_softmax_focal, (3.0, 0.25)),
    *((ours.sigmoid_focal, naive_sigmoid_focal, (g, a)) for g in (0.0, 0.5, 2.0) for a in (None, 0.0, 0.25, 0.9)),
    *((ours.binary_of_softmax_focal, addons_focal, (g, a)) for g in (0.0, 0.5, 2.0) for a in (None, 0.25, 0.9)),
])  # fmt: skip
def test_every_loss_is_its_formula(loss, naive, values):
    logits, targets = batch()
    if loss is ours.binary_of_softmax_focal:
        logits[1] = torch.tensor([30.0, -30.0, -10.0, 0.0, 5.0])  # sure and wrong: clipped
    rows = zip(logits.tolist(), TARGETS, strict=True)
    expected = [0.0 if target == UNKNOWN else naive(row, target, *values) for row, target in rows]
    np.testing.assert_allclose(loss(logits, targets, *values).numpy(), expected, rtol=1e-9)
    if loss is ours.binary_of_softmax_focal:  # in float32, 1 - 1e-7 is 1 - 1.2e-7, also in Keras
        found = loss(logits.float(), targets, *values).numpy()
        np.testing.assert_allclose(found, expected, rtol=0.02 if values[0] else 0.1)


@every_class_loss
def test_unknown_targets_give_no_loss_and_no_gradient(loss, values):
    logits, targets = batch()
    unknown = targets == UNKNOWN
    logits.requires_grad_()
    losses = loss(logits, targets, **values)
    losses.sum().backward()
    assert (losses[unknown] == 0).all() and (logits.grad[unknown] == 0).all()
    assert (logits.grad[~unknown].abs().sum(1) > 0).all()
    assert (loss(logits, torch.full_like(targets, UNKNOWN), **values) == 0).all()


@every_class_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_are_finite_with_their_gradients(loss, values, dtype):
    logits = torch.tensor([[1e4, -1e4, 0], [-1e4, 1e4, 0], [200, 0, 0], [0, 0, 0], [-1e4, -1e4, -1e4]], dtype=dtype)
    logits.requires_grad_()
    losses = loss(logits, torch.tensor([0, 0, 0, UNKNOWN, 1]), **values)
    losses.sum().backward()
    assert losses.isfinite().all() and logits.grad.isfinite().all()
    assert losses[1] > (15 if loss is ours.binary_of_softmax_focal else 1000)  # sure and wrong, where Keras clips


@pytest.mark.parametrize("loss", dict.fromkeys(loss for loss, _ in CLASS_LOSSES))
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
    losses = ours.smooth_l1(given, torch.tensor(targets), std)
    assert losses.tolist() == pytest.approx(expected)
    losses.sum().backward()
    assert given.grad[:, 0].tolist() == pytest.approx([0.5 / std, 0.0, -1 / std, 0.0])


def test_weighted_mean():
    losses, weights = torch.tensor([1.0, 5.0, 2.0]), torch.tensor([2.0, 0.0, 6.0])
    assert ours.weighted_mean(losses, weights).item() == pytest.approx((2 * 1 + 6 * 2) / 8)
    nothing = ours.weighted_mean(losses.requires_grad_(), torch.zeros(3))
    nothing.backward()
    assert nothing.item() == 0 and losses.grad.tolist() == [0, 0, 0]


def test_class_weights_are_scikit_learns_or_their_formula():
    codes = np.repeat([0, 1, 3], [1, 7, 4])
    weights = ours.create_class_weights("balanced", torch.from_numpy(np.bincount(codes, minlength=5)))
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=codes)
    assert weights.tolist() == pytest.approx([expected[0], expected[1], 0, expected[2], 0])
    counts, beta = torch.tensor([1, 7, 0, 4000, 90]), 0.999
    raw = [0 if n == 0 else (1 - beta) / (1 - beta**n) for n in counts.tolist()]
    expected = [weight * 4 / sum(raw) for weight in raw]
    assert ours.create_class_weights("effective", counts).tolist() == pytest.approx(expected, rel=1e-5)
    assert ours.effective_class_weights(counts, beta=0.0).tolist() == [1, 1, 0, 1, 1]


@pytest.mark.parametrize(("preset", "overrides", "loss", "values"), [
    ("cross_entropy", {"label_smoothing": 0.3}, ours.cross_entropy, {"label_smoothing": 0.3}),
    ("binary_cross_entropy", {}, ours.binary_cross_entropy, {}), ("focal", {}, ours.softmax_focal, {}),
    ("focal", {"gamma": 1.0, "alpha": 0.25, "label_smoothing": 0.3}, ours.softmax_focal, None),
    ("focal_sigmoid", {}, ours.sigmoid_focal, {"gamma": 2.0, "alpha": 0.25}),
    ("r0_focal", {}, ours.binary_of_softmax_focal, {"gamma": 2.0, "alpha": 0.25}),
    ("r0_focal", {"gamma": 3.0, "alpha": None}, ours.binary_of_softmax_focal, None),
])  # fmt: skip
def test_presets_and_their_keys_choose_the_loss(preset, overrides, loss, values):
    values = overrides if values is None else values
    keys = plain_config(compose_alone("train", [f"loss={preset}"]))["loss"] | overrides
    check_values({"loss": keys})
    assert (keys.pop("class_weights"), keys.pop("head_weights")) == ("none", None)
    torch.testing.assert_close(ours.create_loss(**keys)(*batch()), loss(*batch(), **values), rtol=0, atol=0)
