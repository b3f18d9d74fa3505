"""Losses as pure functions of logits and targets, one value a photo."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from carvision.data.table import UNKNOWN


def create_loss(name: str, form: str = "softmax", **values) -> Callable[[Tensor, Tensor], Tensor]:
    """(logits, targets) -> (B,), by the name and keys of conf/loss."""
    if name == "cross_entropy":
        return partial(cross_entropy, **values)
    if form == "softmax":
        values.pop("alpha", None)  # a weight of positives against negatives, which only the binary form has
        return partial(softmax_focal, **values)
    return partial(sigmoid_focal, **values)


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """(B,): -log p of the true class, 0 where the target is UNKNOWN. logits (B, C), targets int64 (B,).

    label_smoothing s: the true class has the weight 1 - s + s/C in the target, every other s/C.
    """
    return F.cross_entropy(logits, targets, ignore_index=UNKNOWN, label_smoothing=label_smoothing, reduction="none")


def softmax_focal(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """(B,): -(1 - p)^gamma log p of the true class' softmax probability, 0 where the target is UNKNOWN."""
    known = targets != UNKNOWN
    log_p = logits.log_softmax(dim=1).gather(1, targets.clamp(min=0)[:, None])[:, 0]
    # 1 - p from log p: exact where p is near 1, where 1 - exp(log p) would cancel
    return -(_above_zero(-torch.expm1(log_p)) ** gamma) * log_p * known


def sigmoid_focal(logits: Tensor, targets: Tensor, gamma: float = 2.0, alpha: float | None = None) -> Tensor:
    """(B,): binary focal loss of every class against the rest, summed over the classes; 0 where UNKNOWN.

    Lin et al. 2017, equation 5: -alpha_t (1 - p_t)^gamma log p_t with p = sigmoid(logit), where p_t and alpha_t are
    p and alpha for the true class, 1 - p and 1 - alpha for the others. alpha None: no such weight.
    """
    known = targets != UNKNOWN
    one_hot = F.one_hot(targets.clamp(min=0), logits.shape[1]).to(logits.dtype)
    signed = logits * (2 * one_hot - 1)  # p_t = sigmoid(signed)
    loss = -(_above_zero(torch.sigmoid(-signed)) ** gamma) * F.logsigmoid(signed)
    if alpha is not None:
        loss = loss * (alpha * one_hot + (1 - alpha) * (1 - one_hot))
    return loss.sum(dim=1) * known


def _above_zero(chance: Tensor) -> Tensor:
    # The slope of 0^gamma is infinite for gamma < 1, and infinity times a loss of 0 is no number.
    return chance.clamp(min=torch.finfo(chance.dtype).tiny)


def smooth_l1(estimates: Tensor, targets: Tensor, std: float) -> Tensor:
    """(B,): Huber's loss of (estimate - target) / std, 0 where the target is NaN. estimates (B, 1), targets (B,)."""
    known = ~targets.isnan()
    error = (estimates[:, 0] - targets.nan_to_num()) / std
    return F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none") * known


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Scalar: sum(losses * weights) / sum(weights), and 0 where all weights are 0. Both (B,)."""
    return (losses * weights).sum() / weights.sum().clamp(min=1e-12)


def balanced_class_weights(counts: Tensor) -> Tensor:
    """(C,): N / (C * count), the weights with which every class counts the same; classes without photos get 0."""
    present = counts > 0
    return torch.where(present, counts.sum() / (present.sum() * counts.clamp(min=1)), 0.0)
