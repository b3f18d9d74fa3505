"""Losses of classes and numbers as pure functions of logits and targets, with one value per photo; class weights.

The losses of classes take logits (B, C) of any float type, which they convert to at least float32, and targets int64
(B,), and return (B,), with 0 where the target is UNKNOWN. They are linear in the target: label_smoothing s gives the
true class 1 - s + s/C of it and every other class s/C, and the loss of a mixture of two photos' targets is the mixture
of their losses.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from carvision.data.table import UNKNOWN

KERAS_EPSILON = 1e-7


def create_loss(name: str, form: str = "softmax", **values) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss function (logits, targets) -> (B,) for the name and keys of conf/loss. form: only for focal."""
    focal = {"softmax": softmax_focal, "sigmoid": sigmoid_focal, "binary_of_softmax": binary_of_softmax_focal}
    others = {"cross_entropy": cross_entropy, "binary_cross_entropy": binary_cross_entropy}
    return partial(focal[form] if name == "focal" else others[name], **values)


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return -log p of the true class, (B,); 0 where the target is UNKNOWN."""
    logits = _precise(logits)
    return F.cross_entropy(logits, targets, ignore_index=UNKNOWN, label_smoothing=label_smoothing, reduction="none")


def binary_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean over the classes of each one's loss against the rest, by the sigmoid of its logit; (B,).

    As in timm's training script, with its smoothing (Wightman et al. 2021, "ResNet strikes back"). For the sum over
    the classes, give the head the weight C.
    """
    logits = _precise(logits)
    shares = _target_shares(logits, targets, label_smoothing)
    losses = F.binary_cross_entropy_with_logits(logits, shares, reduction="none").mean(dim=1)
    return losses * (targets != UNKNOWN)


def softmax_focal(
    logits: Tensor, targets: Tensor, gamma: float = 2.0, alpha: float | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Return -alpha (1 - p)^gamma log p, (B,), where p is the true class' softmax probability.

    With alpha 0.25 this is Keras' CategoricalFocalCrossentropy, also with smoothed labels. alpha None: 1.
    """
    log_p = _precise(logits).log_softmax(dim=1)
    # 1 - p from log p is exact also where p is near 1, where 1 - exp(log p) would cancel
    of_class = -(_above_zero(-torch.expm1(log_p)) ** gamma) * log_p
    losses = (_target_shares(log_p, targets, label_smoothing) * of_class).sum(dim=1)
    return (1.0 if alpha is None else alpha) * losses * (targets != UNKNOWN)


def sigmoid_focal(
    logits: Tensor, targets: Tensor, gamma: float = 2.0, alpha: float | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Return the binary focal loss of every class against the rest, summed over the classes; (B,).

    Lin et al. 2017, equation 5: -alpha_t (1 - p_t)^gamma log p_t with p = sigmoid(logit), where p_t and alpha_t are
    p and alpha for the true class, 1 - p and 1 - alpha for the others. alpha None: alpha_t is 1.
    """
    logits = _precise(logits)
    if_true = -(_above_zero(torch.sigmoid(-logits)) ** gamma) * F.logsigmoid(logits)
    if_other = -(_above_zero(torch.sigmoid(logits)) ** gamma) * F.logsigmoid(-logits)
    return _sum_of_binary(if_true, if_other, targets, alpha, label_smoothing)


def binary_of_softmax_focal(
    logits: Tensor, targets: Tensor, gamma: float = 2.0, alpha: float | None = 0.25, label_smoothing: float = 0.0
) -> Tensor:
    """Return sigmoid_focal with softmax probabilities for p, (B,).

    This is TensorFlow Addons' SigmoidFocalCrossEntropy(from_logits=False) on softmax outputs: log p is Keras'
    log(clip(p, 1e-7, 1 - 1e-7) + 1e-7). So the loss of one class is at most 15.4, and, as in Keras, a photo with
    p_t below 1e-7 has hardly any gradient.
    """
    probs = _precise(logits).softmax(dim=1)
    clipped = probs.clamp(KERAS_EPSILON, 1 - KERAS_EPSILON)
    if_true = -(_above_zero(1 - probs) ** gamma) * (clipped + KERAS_EPSILON).log()
    if_other = -(_above_zero(probs) ** gamma) * (1 - clipped + KERAS_EPSILON).log()
    return _sum_of_binary(if_true, if_other, targets, alpha, label_smoothing)


def _sum_of_binary(
    if_true: Tensor, if_other: Tensor, targets: Tensor, alpha: float | None, label_smoothing: float
) -> Tensor:
    """Return the sum over classes, (B,). if_true, if_other (B, C): a class' loss if it is the true one, and if not."""
    shares = _target_shares(if_true, targets, label_smoothing)
    weight, weight_other = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    losses = (weight * shares * if_true + weight_other * (1 - shares) * if_other).sum(dim=1)
    return losses * (targets != UNKNOWN)


def _target_shares(like: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Return smoothed one-hot targets, (B, C); those of an UNKNOWN target have no true class."""
    num_classes = like.shape[1]
    one_hot = (targets[:, None] == torch.arange(num_classes, device=like.device)).to(like.dtype)
    return (1 - label_smoothing) * one_hot + label_smoothing / num_classes


def _precise(logits: Tensor) -> Tensor:
    # Sums over a thousand classes lose all their digits in bfloat16
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def _above_zero(chance: Tensor) -> Tensor:
    # For gamma < 1 the slope of 0^gamma is infinite, and inf times a loss of 0 is NaN
    return chance.clamp(min=torch.finfo(chance.dtype).tiny)


def smooth_l1(estimates: Tensor, targets: Tensor, std: float) -> Tensor:
    """Return Huber's loss of (estimate - target) / std, (B,), 0 where the target is NaN.

    estimates (B, 1) and targets (B,), in the label's unit.
    """
    known = ~targets.isnan()
    error = (estimates[:, 0] - targets.nan_to_num()) / std
    return F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none") * known


def weighted_mean(losses: Tensor, weights: Tensor, total: Tensor | None = None) -> Tensor:
    """Return sum(losses * weights) / sum(weights), a scalar, 0 if all weights are 0. losses, weights (B,).

    total: scalar, to divide by instead of the sum of these weights.
    """
    return (losses * weights).sum() / (weights.sum() if total is None else total).clamp(min=1e-12)


def create_class_weights(name: str, counts: Tensor) -> Tensor:
    """Return the weights (C,) of loss.class_weights, "balanced" or "effective".

    counts: int64 (C,), the training photos of each class.
    """
    return {"balanced": balanced_class_weights, "effective": effective_class_weights}[name](counts)


def balanced_class_weights(counts: Tensor) -> Tensor:
    """Return N / (C * count), (C,), by which every class counts the same; 0 for classes without photos."""
    present = counts > 0
    return torch.where(present, counts.sum() / (present.sum() * counts.clamp(min=1)), 0.0)


def effective_class_weights(counts: Tensor, beta: float = 0.999) -> Tensor:
    """Return weights (C,) proportional to (1 - beta) / (1 - beta^count), with mean 1; 0 for classes without photos.

    Cui et al. 2019, equation 2 ("effective number of samples"): between no weights (beta 0) and balanced ones (beta 1).
    """
    present = counts > 0
    weights = torch.where(present, 1 / (1 - beta ** counts.clamp(min=1).double()), 0.0)
    return (weights * present.sum() / weights.sum()).float()
