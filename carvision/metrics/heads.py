"""Counters of one head, and the metrics computed from them.

They are sums per class, without predictions or a confusion matrix, which no metric of an epoch needs: 69 kB instead of
24 MB at 1,716 classes.
"""

import torch
from torch import Tensor
from torchmetrics import Metric

TOP = (3, 5)


class HeadMetrics(Metric):
    """Counts of a head with classes: its loss, top-k hits, and per class the photos that are right, true and predicted.

    Photos are counted twice: by the predicted class, and "at 50" as in Keras' Precision() and Recall(), where a class
    is predicted if its softmax probability is above 0.5, so that a photo may have no predicted class.
    """

    full_state_update = False
    row_starts: Tensor
    counts: Tensor
    hits: Tensor
    loss_sum: Tensor
    weight_sum: Tensor

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        # Five rows, one after the other: right, true, predicted, right at 50, predicted at 50
        self.register_buffer("row_starts", torch.arange(5)[:, None] * num_classes, persistent=False)
        self.add_state("counts", torch.zeros(5 * num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("hits", torch.zeros(len(TOP), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("loss_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        predicted: Tensor,
        logits: Tensor,
        targets: Tensor,
        losses: Tensor,
        weights: Tensor,
        likeliest: Tensor | None = None,
    ) -> None:
        """Count a batch: predicted, targets int64 (B,); logits (B, C); losses, weights (B,).

        A photo with weight 0 does not count; one whose target is UNKNOWN must have it. likeliest: the most probable
        classes, int64 (B,), if already computed.
        """
        # In-place operations, as assigning to a state costs as much as one of these many small operations
        classes, found, hits = count_photos(predicted, logits, targets, weights > 0, likeliest)
        self.counts.index_add_(0, (classes + self.row_starts).reshape(-1), found.long().reshape(-1))
        self.hits.add_(hits.sum(dim=1))
        self.loss_sum.add_((losses * weights).sum())
        self.weight_sum.add_(weights.sum())

    def compute(self) -> dict[str, float]:
        """Return {name: value}, as metrics_from_sums describes; {} if no photo counted."""
        counts = self.counts.cpu().double().view(5, -1)
        if counts[1].sum() == 0:
            return {}
        metrics = metrics_from_sums(counts, self.hits.cpu(), self.loss_sum.cpu() / self.weight_sum.cpu())
        return {name: float(value) for name, value in metrics.items()}


def count_photos(
    predicted: Tensor, logits: Tensor, targets: Tensor, counted: Tensor, likeliest: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what each photo adds to a head's sums: classes int64 (5, B), found bool (5, B), hits bool (len(TOP), B).

    A photo counts for the class classes[i] in the row i of the counts if found[i]; the rows are right, true, predicted,
    right at 50, predicted at 50. hits: whether the true class is among the first k of TOP. counted bool (B,): False for
    photos that add nothing; the others are as in HeadMetrics.update.
    """
    true_class = targets.clamp(min=0)
    likeliest = logits.argmax(dim=1) if likeliest is None else likeliest
    sure = (logits.float().softmax(dim=1).amax(dim=1) > 0.5) & counted
    classes = torch.stack([true_class, true_class, predicted, true_class, likeliest])
    right, right_at50 = (predicted == true_class) & counted, (likeliest == true_class) & sure
    found = torch.stack([right, counted, counted, right_at50, sure])
    ahead = num_ahead(logits, true_class)
    hits = torch.stack([ahead < min(k, logits.shape[1]) for k in TOP])
    return classes, found, hits & counted


def metrics_from_sums(counts: Tensor, hits: Tensor, loss: Tensor) -> dict[str, Tensor]:
    """Return all metrics of a head with classes, from sums over photos of what count_photos returns.

    counts float64 (5, C), with at least one photo; hits (len(TOP),); loss: the mean over photos. Returns "loss", those
    of metrics_from_counts and metrics_at50, "top3" and "top5".
    """
    right, true, predicted, right_at50, predicted_at50 = counts
    metrics = {"loss": loss, **metrics_from_counts(right, true, predicted)}
    metrics |= {f"top{k}": hits[i] / true.sum() for i, k in enumerate(TOP)}
    return metrics | metrics_at50(right_at50, true, predicted_at50)


def num_ahead(logits: Tensor, true_class: Tensor) -> Tensor:
    """Return how many classes rank before the true one, by larger logits: (B, C), int64 (B,) -> int64 (B,).

    Equal logits rank in class order, as in argmax, so a network with the same output for all classes is right only by
    chance. A class whose logit is NaN ranks before the true one.
    """
    of_true = logits.gather(1, true_class[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < true_class[:, None]
    behind = (logits < of_true) | ((logits == of_true) & ~earlier)
    return (~behind).sum(dim=1)


def metrics_from_counts(right: Tensor, true: Tensor, predicted: Tensor) -> dict[str, Tensor]:
    """Return the metrics of the predicted class, from the counts of right, true and predicted photos, float64 (C,).

    top1; balanced_accuracy: mean recall of the classes that occur; each of rates() as a mean over classes, as "_micro"
    over all photos together, and precision, recall and f1 as "_weighted" by the class' number of photos. As defined by
    scikit-learn, so with one predicted class per photo precision_micro, recall_micro and f1_micro equal the accuracy.
    """
    share = true / true.sum()
    values = rates(right, true, predicted, true.sum())
    metrics = {"top1": right.sum() / true.sum(), "balanced_accuracy": (right / true.clamp(min=1))[true > 0].mean()}
    metrics |= macro(values)
    metrics |= {f"{name}_micro": value for name, value in micro(right, true, predicted).items()}
    return metrics | {f"{name}_weighted": (values[name][0] * share).sum() for name in ("precision", "recall", "f1")}


def metrics_at50(right: Tensor, true: Tensor, predicted: Tensor) -> dict[str, Tensor]:
    """Return the rates() from counts (C,) where a class is predicted if its probability is above 0.5.

    "_at50" is over all pairs of a photo and a class, as in Keras; "_at50_macro" is the mean over classes.
    """
    metrics = {f"{name}_at50": value for name, value in micro(right, true, predicted).items()}
    values = rates(right, true, predicted, true.sum())
    return metrics | {f"{name}_at50_macro": value for name, value in macro(values).items()}


def rates(right: Tensor, true: Tensor, predicted: Tensor, total: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return {name: (value of each class against the rest, whether the class counts in the mean)}.

    total: number of photos, or of pairs of photo and class, of which `true` are the positives. precision, recall and f1
    count every class that occurs or is predicted, as scikit-learn does, and are 0 where they are 0 / 0; the rates of
    true and false positives and negatives count the classes for which they are defined.
    """
    negatives = total - true
    recall = right / true.clamp(min=1)
    false_positives = (predicted - right) / negatives.clamp(min=1)
    seen, occurs, has_rest = (true + predicted) > 0, true > 0, negatives > 0
    return {
        "precision": (right / predicted.clamp(min=1), seen),
        "recall": (recall, seen),
        "f1": (2 * right / (true + predicted).clamp(min=1), seen),
        "tpr": (recall, occurs),
        "tnr": (1 - false_positives, has_rest),
        "fpr": (false_positives, has_rest),
        "fnr": (1 - recall, occurs),
    }


def macro(values: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return the means over classes of rates()."""
    return {name: value[counts].mean() for name, (value, counts) in values.items()}


def micro(right: Tensor, true: Tensor, predicted: Tensor) -> dict[str, Tensor]:
    """Return the rates() over all pairs of a photo and a class."""
    pairs = true.sum() * len(true)
    return {name: value for name, (value, _) in rates(right.sum(), true.sum(), predicted.sum(), pairs).items()}


class NumberMetrics(Metric):
    """Counts of a head that estimates a number: its loss, and errors in the label's unit."""

    full_state_update = False
    count: Tensor
    loss_sum: Tensor
    absolute_sum: Tensor
    square_sum: Tensor

    def __init__(self):
        super().__init__()
        for name in ("count", "loss_sum", "absolute_sum", "square_sum"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, estimates: Tensor, targets: Tensor, losses: Tensor, weights: Tensor) -> None:
        """Count a batch: estimates (B, 1); targets, losses, weights (B,). NaN targets must have weight 0."""
        error = (estimates[:, 0] - targets.nan_to_num()) * (weights > 0)
        self.count += (weights > 0).sum()
        self.loss_sum += (losses * weights).sum()
        self.absolute_sum += error.abs().sum()
        self.square_sum += error.square().sum()

    def compute(self) -> dict[str, float]:
        """Return the means "loss" and "mae", and the root mean square "rmse"; {} if no photo counted."""
        count, *sums = (getattr(self, name).cpu() for name in ("count", "loss_sum", "absolute_sum", "square_sum"))
        if count == 0:
            return {}
        return {name: float(value) for name, value in number_metrics(count, *sums).items()}


def number_metrics(count: Tensor, loss_sum: Tensor, absolute_sum: Tensor, square_sum: Tensor) -> dict[str, Tensor]:
    """Return the metrics of a head that estimates a number, from sums of any shape over its `count` photos."""
    return {"loss": loss_sum / count, "mae": absolute_sum / count, "rmse": (square_sum / count).sqrt()}
