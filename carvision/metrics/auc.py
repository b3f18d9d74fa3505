"""Area under the ROC curve from histograms of the scores, without keeping the score of any photo."""

import math

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

NUM_BINS = 512
# Log-odds distance from chance below which bins are about equally wide; further out, their width is 4 % of the distance
CENTRE = 0.01
REACH = math.log1p(100 / CENTRE)
KERAS_THRESHOLDS = 200
AREAS = ("auc", "auc_micro", "auc_keras")


class ScoreHistograms(Metric):
    """Histograms of a head with classes: for each class, the scores of its photos and of all photos.

    Scores are log p / (1 - p) of the softmax probability p. Bins are finest at the score of an even guess, p = 1 / C,
    and grow with the distance, so that they suit confident networks and those that have hardly learned. Two photos in
    one bin count as a tie, so an AUC is wrong by at most half the share of pairs (a photo of the class, one of another)
    that lie in one bin. That is below 0.01, and as the errors of bins and classes cancel, auc and auc_micro are within
    0.0005 in the tests, with 2 to 1,716 classes; the AUC of one class with few photos can be off by 0.01.

    7 MB at 1,716 classes, and as much in torchmetrics' defaults, for any number of photos. A batch takes 2.5 ms
    of a processor core with 64 photos and 1,716 classes, 0.15 ms with 16 and 12.
    """

    full_state_update = False
    positives: Tensor
    photos: Tensor

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        for name in ("positives", "photos"):
            zeros = torch.zeros(num_classes * NUM_BINS, dtype=torch.int32)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Count a batch: logits (B, C); targets int64 (B,); weights (B,), 0 for photos that do not count."""
        bins = self._bin_positions(log_odds(logits)).nan_to_num().clamp(0, NUM_BINS - 1).int()
        bins += torch.arange(self.num_classes, dtype=torch.int32, device=bins.device) * NUM_BINS
        counted = (weights > 0).int()
        self.photos.index_add_(0, bins.reshape(-1), counted[:, None].expand_as(bins).reshape(-1))
        self.positives.index_add_(0, bins.gather(1, targets.clamp(min=0)[:, None])[:, 0], counted)

    def _bin_positions(self, score: Tensor) -> Tensor:
        """Map log p / (1 - p) to its position among the bins: bin 3 extends from 3 to 4."""
        even = -math.log(max(self.num_classes - 1, 1))
        distance = score - even
        # Not copysign, for which torch-xla falls back on the CPU
        signed_log = torch.sign(distance) * torch.log1p(distance.abs() / CENTRE)
        return (signed_log + REACH) * (NUM_BINS / (2 * REACH))

    def compute(self) -> dict[str, float]:
        """Return "auc", "auc_micro" and "auc_keras"; {} if no class has both photos of its own and of others.

        auc: mean over the classes that have both, each against the rest. auc_micro: over all pairs of a photo and a
        class. auc_keras: auc_micro as Keras' AUC() estimates it from 200 probabilities in equal steps; it treats all
        below 1/199 as one tie, so it is far below auc_micro with many classes.
        """
        positives, photos = (state.cpu().view(self.num_classes, NUM_BINS) for state in (self.positives, self.photos))
        parts = zip(positives.split(64), photos.split(64), strict=True)  # all at once would take much memory
        areas = torch.cat([area_under_curve(own.double(), (both - own).double()) for own, both in parts])
        areas = areas[~areas.isnan()]
        if len(areas) == 0:
            return {}
        positives, photos = positives.sum(0).double(), photos.sum(0).double()
        return {
            "auc": float(areas.mean()),
            "auc_micro": float(area_under_curve(positives, photos - positives)),
            "auc_keras": self._as_keras(positives.numpy(), (photos - positives).numpy()),
        }

    def _as_keras(self, positives: np.ndarray, negatives: np.ndarray) -> float:
        """Return the area of the trapezoids between thresholds i / 199, with counts spread evenly within a bin."""
        thresholds = torch.arange(1, KERAS_THRESHOLDS - 1, dtype=torch.float64) / (KERAS_THRESHOLDS - 1)
        positions = self._bin_positions(thresholds.logit()).numpy()
        above = []
        for counts in (positives, negatives):
            below = np.interp(positions, np.arange(NUM_BINS + 1), np.concatenate([[0], counts.cumsum()]))
            above.append(np.concatenate([[1], 1 - below / counts.sum(), [0]]))  # the ends: all above, and none
        return float(-np.trapezoid(above[0], above[1]))


def log_odds(logits: Tensor) -> Tensor:
    """Return log p / (1 - p) of each class' softmax probability p, float32 (B, C); exact also where p is almost 1."""
    largest, likeliest = logits.float().max(dim=1, keepdim=True)
    shares = (logits.float() - largest).exp()
    rest = shares.sum(dim=1, keepdim=True) - shares  # at least 1, except for the likeliest class, where it would cancel
    rest.scatter_(1, likeliest, shares.scatter(1, likeliest, 0).sum(dim=1, keepdim=True))
    return logits.float() - largest - rest.clamp(min=torch.finfo(torch.float32).tiny).log()


def area_under_curve(positives: Tensor, negatives: Tensor) -> Tensor:
    """Return the share of pairs (a positive, a negative) where the positive scores higher; ties count one half.

    positives, negatives (..., bins): counts by rising score. Returns (...), NaN where there are none of one kind.
    """
    below = negatives.cumsum(-1) - negatives / 2
    return (positives * below).sum(-1) / (positives.sum(-1) * negatives.sum(-1))
