"""Metric-learning losses, which draw photos of one class together and push those of different classes apart.

Pure functions of a batch, each returning a scalar. Where a loss compares the photos of a batch with each other, the
batch should hold several of each class (data.sampler=per_class). Every photo and every pair of photos is computed, with
a weight of 0 where it does not count: lists of those that count would have lengths that the host must read from the
device at each step. So no step waits for the device, and XLA compiles it once.

    embeddings   float32 (B, D)
    cosines      float32 (B, C), of the embeddings and the class weights, see models.parts.Proxies
    targets      int64 (B,), classes; UNKNOWN ones must not count
    counts       bool (B,), whether a photo counts
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, relu

# Losses that take cosines instead of embeddings, and so need class weights in the model
WITH_PROXIES = ("arcface", "proxy_anchor")


def create_metric_loss(name: str, **values) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return the loss (embeddings, or cosines for WITH_PROXIES; targets; counts) -> scalar, by the name and keys of
    conf/metric_loss."""
    losses = {
        "triplet": triplet,
        "coupled_clusters": coupled_clusters,
        "supcon": supervised_contrastive,
        "arcface": arcface,
        "proxy_anchor": proxy_anchor,
    }
    return partial(losses[name], **values)


def triplet(
    embeddings: Tensor,
    targets: Tensor,
    counts: Tensor,
    margin: float = 0.2,
    mining: str = "semi_hard",
    unit_length: bool = True,
) -> Tensor:
    """Return the mean of max(0, d(anchor, positive) - d(anchor, negative) + margin), d the Euclidean distance.

    mining "batch_hard": for each anchor its farthest positive and its nearest negative (Hermans et al. 2017, "In
    defense of the triplet loss", equation 5). "semi_hard": for each anchor and each of its positives the nearest
    negative that is farther than the positive, or else the farthest negative of all (Schroff et al. 2015, FaceNet,
    section 3.2). Anchors without a positive, or without a negative, in the batch do not count; 0 if none does.
    unit_length: normalise the embeddings first. "semi_hard" takes memory for B^3 numbers.
    """
    distances = _distances(normalize(embeddings, dim=1) if unit_length else embeddings)
    same, other = _pairs(targets, counts)
    if mining == "batch_hard":
        positive = distances.masked_fill(~same, -math.inf).amax(dim=1)
        negative = distances.masked_fill(~other, math.inf).amin(dim=1)
        used = same.any(dim=1) & other.any(dim=1)
    else:
        farther = other[:, None, :] & (distances[:, None, :] > distances[:, :, None])  # anchor, positive, negative
        nearest = distances[:, None, :].masked_fill(~farther, math.inf).amin(dim=2)
        farthest = distances.masked_fill(~other, -math.inf).amax(dim=1, keepdim=True)
        negative = torch.where(farther.any(dim=2), nearest, farthest)  # not by isinf: XLA makes inf finite
        positive, used = distances, same & other.any(dim=1, keepdim=True)
    gap = torch.where(used, positive, 0.0) - torch.where(used, negative, 0.0)  # no inf, whose slope is NaN
    return _mean(relu(gap + margin), used)


def coupled_clusters(
    embeddings: Tensor, targets: Tensor, counts: Tensor, margin: float = 0.2, unit_length: bool = True
) -> Tensor:
    """Return the mean over photos x of max(0, |x - c|^2 + margin - |n - c|^2) / 2, where c is the centre of the batch's
    photos of x's class and n the photo of another class that is nearest to c.

    Liu et al. 2016, "Deep Relative Distance Learning", equation 7; each class of the batch in turn is the positive set
    and all other photos the negative one. Photos whose class has no other photo in the batch do not count. Gradients
    also pass through the centre, which the paper takes as fixed.
    """
    x = normalize(embeddings, dim=1) if unit_length else embeddings
    same, other = _pairs(targets, counts)
    members = (same | torch.diag(counts)).to(x.dtype)
    centres = members @ x / members.sum(dim=1, keepdim=True).clamp(min=1)  # of each photo's own class, (B, D)
    squared = _squared_distances(x, centres)  # of photo i to the centre of photo j's class
    nearest = squared.masked_fill(~other, math.inf).amin(dim=0)
    used = same.any(dim=1) & other.any(dim=1)
    gap = squared.diagonal() - torch.where(used, nearest, 0.0)
    return _mean(relu(gap + margin) / 2, used)


def supervised_contrastive(embeddings: Tensor, targets: Tensor, counts: Tensor, temperature: float = 0.1) -> Tensor:
    """Return the mean over anchors, and over each anchor's positives p, of -log(exp(s_p / t) / sum over all others a of
    exp(s_a / t)); s are cosines. Khosla et al. 2020, "Supervised contrastive learning", equation 2 (L_out).

    Anchors without a positive in the batch do not count.
    """
    x = normalize(embeddings, dim=1)
    same, other = _pairs(targets, counts)
    scores = (x @ x.T / temperature).masked_fill(~(same | other), -math.inf)
    used = same.any(dim=1)
    # A photo that does not count has no others, and logsumexp over nothing has no slope
    scores = torch.where(used[:, None], scores, 0.0)
    log_shares = torch.where(same, scores - scores.logsumexp(dim=1, keepdim=True), 0.0)
    return _mean(-log_shares.sum(dim=1) / same.sum(dim=1).clamp(min=1), used)


def arcface(cosines: Tensor, targets: Tensor, counts: Tensor, margin: float = 0.5, scale: float = 64.0) -> Tensor:
    """Return the cross-entropy of scale * cosines, with `margin` radians added to the angle to the photo's own class.

    Deng et al. 2019, "ArcFace", equation 3; with several weights for each class (the nearest counts) sub-centre
    ArcFace, Deng et al. 2020. Where the wider angle would exceed pi, cos(angle) - margin * sin(margin) is used instead,
    as in the authors' code, so that the loss still grows with the angle.
    """
    targets = targets.clamp(min=0)
    own = cosines.gather(1, targets[:, None])
    # The slope of acos is infinite at 1 and -1
    angle = own.clamp(-1 + 1e-7, 1 - 1e-7).acos()
    widened = torch.where(angle <= math.pi - margin, (angle + margin).cos(), own - margin * math.sin(margin))
    logits = scale * cosines.scatter(1, targets[:, None], widened)
    return _mean(cross_entropy(logits, targets, reduction="none"), counts)


def proxy_anchor(cosines: Tensor, targets: Tensor, counts: Tensor, margin: float = 0.1, alpha: float = 32.0) -> Tensor:
    """Return the sum of two means, with each class weight as an anchor, s the cosines:

    of log(1 + sum over its photos of exp(-alpha (s - margin))) over the classes of the batch, and of
    log(1 + sum over all other photos of exp(alpha (s + margin))) over all classes.
    Kim et al. 2020, "Proxy anchor loss", equation 4.
    """
    own = targets[:, None] == torch.arange(cosines.shape[1], device=cosines.device)
    positive, negative = own & counts[:, None], ~own & counts[:, None]
    near = _log_of_one_and_sum(-alpha * (cosines - margin), positive)
    far = _log_of_one_and_sum(alpha * (cosines + margin), negative)
    return _mean(near, positive.any(dim=0)) + far.mean()


def _log_of_one_and_sum(values: Tensor, used: Tensor) -> Tensor:
    """Return log(1 + sum of exp(values) where used): (B, C) -> (C,)."""
    zeros = values.new_zeros(1, values.shape[1])
    return torch.cat([zeros, values.masked_fill(~used, -math.inf)]).logsumexp(dim=0)


def _pairs(targets: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pairs of two photos that count, of the same class and of different classes: bool (B, B), (B, B)."""
    both = counts[:, None] & counts[None, :]
    equal = targets[:, None] == targets[None, :]
    itself = torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    return both & equal & ~itself, both & ~equal


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return |x_i - y_j|^2: (A, D), (B, D) -> (A, B)."""
    products = x @ y.T
    return (x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)[None, :] - 2 * products).clamp(min=0)


def _distances(x: Tensor) -> Tensor:
    """Return |x_i - x_j|, (B, B), at least 1e-6, as the slope of the square root is infinite at 0."""
    return _squared_distances(x, x).clamp(min=1e-12).sqrt()


def _mean(losses: Tensor, used: Tensor) -> Tensor:
    """Return the mean of the losses that are used, a scalar, 0 if none is."""
    return torch.where(used, losses, 0.0).sum() / used.sum().clamp(min=1)
