"""Areas under the ROC curve, exact with every photo once, and for weighted photos.

The area of a class is the fraction of pairs (a photo of the class, one of another class) in which the former scores
higher. It is therefore a mean over photos in two ways, DeLong's structural components: V10 of a photo of the class
is the fraction of the others that score lower, V01 of another photo the fraction of the class' photos that score
higher; ties count one half. With weights w of the photos the area is, to first order (Hajek's projection of a two-
sample U-statistic), sum w V10 / sum w + sum w V01 / sum w - area, summed over the class' photos and over the others
(DeLong, DeLong and Clarke-Pearson 1988; van der Vaart 1998, section 12.2).
"""

import numpy as np
import torch
from torch import Tensor

from carvision.metrics.auc import KERAS_THRESHOLDS, log_odds

BLOCK = 1 << 22  # scores processed at a time


def scores_of(logits: Tensor) -> Tensor:
    """Return log p / (1 - p), float32 (N, C), which stays distinct for p near 1; NaN ranks below all others."""
    return log_odds(logits).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def areas_of_classes(scores: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the area of each class against the rest under each of R weightings of the photos, float64 (R, C).

    scores (N, C); targets int64 (N,), all known; weights float32 (R, N). NaN if a class or its rest has no photo. The
    sums are of the weights' differences from 1, so that rounding leaves equal weights exact.
    """
    num_photos, num_classes = scores.shape
    areas = torch.full((len(weights), num_classes), torch.nan, dtype=torch.float64)
    of_class = [torch.nonzero(targets == code)[:, 0] for code in range(num_classes)]
    step = max(1, BLOCK // max(1, num_photos))
    total, changes = weights.sum(dim=1).double(), weights - 1
    for first in range(0, num_classes, step):
        own_photos = of_class[first : first + step]
        columns = scores[:, first : first + step].t().contiguous()
        above, sums = torch.zeros(columns.shape), {}  # V01
        for row, own in enumerate(own_photos):
            if 0 < len(own) < num_photos:
                below, above[row] = _placement_values(columns[row], own)
                weight = weights[:, own].double().sum(dim=1)
                sums[row] = weight, (below.sum() + changes[:, own].double() @ below) / weight
        of_others = (changes @ above.t()).double()
        for row, (weight, from_own) in sums.items():
            whole, num_others = above[row].double().sum(), num_photos - len(own_photos[row])
            from_others = (whole + of_others[:, row]) / (total - weight)
            areas[:, first + row] = (from_own + (from_others - whole / num_others)).clamp(0, 1)
    return areas


def _placement_values(scores: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Return V10 of the class' photos `own`, float64 (n,), and V01 of all photos, float32 (N,), 0 for `own`."""
    class_scores = scores[own]
    all_sorted, class_sorted = scores.sort().values, class_scores.sort().values
    num_others = len(scores) - len(own)
    below = (_rank(all_sorted, class_scores) - _rank(class_sorted, class_scores)) / num_others
    above = 1 - _rank(class_sorted, scores) / len(own)
    above[own] = 0
    return below, above.float()


def _rank(ordered: Tensor, scores: Tensor) -> Tensor:
    """Return, as float64, how many of the ordered scores are lower; an equal one counts as half."""
    return (torch.searchsorted(ordered, scores) + torch.searchsorted(ordered, scores, right=True)).double() / 2


def micro_auc(scores: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the micro-averaged area under each weighting, float64 (R,).

    It pools all pairs of a photo and a class, two classes or more: each photo's own class is a positive, every other
    class a negative.
    """
    num_photos, num_classes = scores.shape
    own_scores = scores.gather(1, targets[:, None])[:, 0]
    ordered, order = own_scores.sort()
    lower, not_higher = torch.zeros(2, num_photos + 1, dtype=torch.int64)
    above = torch.zeros(num_photos, dtype=torch.float64)
    step = max(1, BLOCK // num_classes)
    for first in range(0, num_photos, step):
        rows = slice(first, first + step)
        others = scores[rows][targets[rows, None] != torch.arange(num_classes)]
        fewer = torch.searchsorted(ordered, others)  # positives that are lower
        as_many = torch.searchsorted(ordered, others, right=True)  # positives that are not higher
        not_higher += torch.bincount(fewer, minlength=num_photos + 1)
        lower += torch.bincount(as_many, minlength=num_photos + 1)
        ranks = (fewer + as_many).view(-1, num_classes - 1).double()
        above[rows] = 1 - ranks.mean(dim=1) / (2 * num_photos)
    below = torch.zeros(num_photos, dtype=torch.float64)
    # a negative is lower than the k-th positive (from 0) if at most k positives are not higher than it
    below[order] = (lower + not_higher).cumsum(0)[:-1].double() / (2 * num_photos * (num_classes - 1))
    mean = weights.double() @ (below + above) / weights.sum(dim=1).double()
    return (mean - above.mean()).clamp(0, 1)


def keras_auc(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the micro area as Keras' AUC() estimates it from 200 thresholds, for each weighting, float64 (R,)."""
    num_photos, num_classes = logits.shape
    thresholds = torch.arange(1, KERAS_THRESHOLDS - 1) / (KERAS_THRESHOLDS - 1)
    size = len(thresholds) + 1
    positives, negatives = (torch.zeros(num_photos, size) for _ in range(2))
    step = max(1, BLOCK // num_classes)
    for first in range(0, num_photos, step):
        rows = slice(first, first + step)
        bins = torch.searchsorted(thresholds, logits[rows].float().softmax(dim=1))  # number of thresholds below
        own = bins.gather(1, targets[rows, None])
        positives[rows] = positives[rows].scatter_add(1, own, torch.ones(own.shape))
        negatives[rows] = negatives[rows].scatter_add(1, bins, torch.ones(bins.shape)) - positives[rows]
    rates = []
    for counts in (positives, negatives):
        found = (weights @ counts).double()
        above = found.flip(1).cumsum(1).flip(1) / found.sum(dim=1, keepdim=True)  # the first value is 1
        rates.append(np.pad(above.numpy(), ((0, 0), (0, 1))))  # nothing lies above a threshold of 1
    return torch.from_numpy(-np.trapezoid(rates[0], rates[1], axis=1))
