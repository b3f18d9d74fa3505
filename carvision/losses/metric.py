"""Metric-learning losses: photos of one class are to lie near each other, those of other classes far away.

Pure functions of what a batch gives, each a scalar. Where a loss compares the photos of a batch with each other, the
batch should hold several of each class (data.sampler=per_class). Every photo and every pair of photos has its place,
with a weight of 0 where it does not count, instead of lists of those that do, whose lengths a device would have to
tell at each step. So a step waits for nothing, and XLA compiles it once.

    embeddings   float32 (B, D)
    cosines      float32 (B, C), of the embeddings and the class weights, see models.embedding.Proxies
    targets      int64 (B,), classes; UNKNOWN ones must not count
    counts       bool (B,), whether a photo counts
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, relu

# Those that take cosines in place of embeddings, and so need class weights in the model
WITH_PROXIES = ("arcface", "proxy_anchor")


def create_metric_loss(name: str, **values) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(embeddings, or cosines for WITH_PROXIES; targets; counts) -> scalar, by name and keys of conf/metric_loss."""
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
    """Mean of max(0, d(anchor, positive) - d(anchor, negative) + margin), d the Euclidean distance.

    mining "batch_hard": for each anchor its farthest positive and its nearest negative (Hermans et al. 2017, "In
    defense of the triplet loss", equation 5). "semi_hard": for each anchor and each of its positives the nearest
    negative that is farther than the positive, or else the farthest negative of all (Schroff et al. 2015, FaceNet,
    section 3.2). Anchors without a positive, or without a negative, in the batch do not count; 0 if none does.
    unit_length: of embeddings, which are normalised for it. Takes memory for B^3 numbers with "semi_hard".
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
        negative = torch.where(farther.any(dim=2), nearest, farthest)  # not by isinf: XLA makes infinity a number
        positive, used = distances, same & other.any(dim=1, keepdim=True)
    gap = torch.where(used, positive, 0.0) - torch.where(used, negative, 0.0)  # no infinity, whose slope is no number
    return _mean(relu(gap + margin), used)


def coupled_clusters(
    embeddings: Tensor, targets: Tensor, counts: Tensor, margin: float = 0.2, unit_length: bool = True
) -> Tensor:
    """Mean over photos of max(0, |x - c|^2 + margin - |n - c|^2) / 2, where c is the centre of the batch's photos of
    x's class and n the photo of another class that is nearest to c.

    Liu et al. 2016, "Deep Relative Distance Learning", equation 7; each class of the batch in turn is the positive set
    and all other photos the negative one. Photos whose class has no other photo in the batch do not count. Gradients
    pass through the centre, too, which the paper takes as fixed.
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
    """Mean over anchors of -log(exp(s_p / t) / sum over all others of exp(s_a / t)), itself the mean over the anchor's
    positives p; s are cosines. Khosla et al. 2020, "Supervised contrastive learning", equation 2 (L_out).

    Anchors without a positive in the batch do not count.
    """
    x = normalize(embeddings, dim=1)
    same, other = _pairs(targets, counts)
    scores = (x @ x.T / temperature).masked_fill(~(same | other), -math.inf)
    used = same.any(dim=1)
    # All others are left out of a photo that does not count, and the sum over none has no slope
    scores = torch.where(used[:, None], scores, 0.0)
    log_shares = torch.where(same, scores - scores.logsumexp(dim=1, keepdim=True), 0.0)
    return _mean(-log_shares.sum(dim=1) / same.sum(dim=1).clamp(min=1), used)


def arcface(cosines: Tensor, targets: Tensor, counts: Tensor, margin: float = 0.5, scale: float = 64.0) -> Tensor:
    """Cross-entropy of scale * cosines, where the angle to the photo's own class counts as `margin` radians wider.

    Deng et al. 2019, "ArcFace", equation 3; with several weights for each class (the nearest counts) sub-centre
    ArcFace, Deng et al. 2020. Where the wider angle would pass pi, cos(angle) - margin * sin(margin) takes its place,
    as in the authors' code, so that the loss still grows with the angle.
    """
    targets = targets.clamp(min=0)
    own = cosines.gather(1, targets[:, None])
    # Off 1 and -1, where the slope of acos is infinite
    angle = own.clamp(-1 + 1e-7, 1 - 1e-7).acos()
    widened = torch.where(angle <= math.pi - margin, (angle + margin).cos(), own - margin * math.sin(margin))
    logits = scale * cosines.scatter(1, targets[:, None], widened)
    return _mean(cross_entropy(logits, targets, reduction="none"), counts)


def proxy_anchor(cosines: Tensor, targets: Tensor, counts: Tensor, margin: float = 0.1, alpha: float = 32.0) -> Tensor:
    """Of each class weight as the anchor: log(1 + sum over its photos of exp(-alpha (s - margin))), mean over the
    classes of the batch, and log(1 + sum over all other photos of exp(alpha (s + margin))), mean over all classes.

    Kim et al. 2020, "Proxy anchor loss", equation 4.
    """
    own = targets[:, None] == torch.arange(cosines.shape[1], device=cosines.device)
    positive, negative = own & counts[:, None], ~own & counts[:, None]
    near = _log_of_one_and_sum(-alpha * (cosines - margin), positive)
    far = _log_of_one_and_sum(alpha * (cosines + margin), negative)
    return _mean(near, positive.any(dim=0)) + far.mean()


def _log_of_one_and_sum(values: Tensor, used: Tensor) -> Tensor:
    """(B, C) -> (C,): log(1 + sum of exp(values) where used)."""
    zeros = values.new_zeros(1, values.shape[1])
    return torch.cat([zeros, values.masked_fill(~used, -math.inf)]).logsumexp(dim=0)


def _pairs(targets: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """bool (B, B), (B, B): pairs of two photos of the same class, and of different classes, that both count."""
    both = counts[:, None] & counts[None, :]
    equal = targets[:, None] == targets[None, :]
    itself = torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    return both & equal & ~itself, both & ~equal


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(A, D), (B, D) -> (A, B)."""
    products = x @ y.T
    return (x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)[None, :] - 2 * products).clamp(min=0)


def _distances(x: Tensor) -> Tensor:
    """(B, B). Equal embeddings have a distance of 1e-6, as the slope of the root at 0 is infinite."""
    return _squared_distances(x, x).clamp(min=1e-12).sqrt()


def _mean(losses: Tensor, used: Tensor) -> Tensor:
    """Scalar: the mean of those that are used, 0 if none is."""
    return torch.where(used, losses, 0.0).sum() / used.sum().clamp(min=1)
