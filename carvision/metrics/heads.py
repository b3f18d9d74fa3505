"""Counters of one head. They are sums per class, without the predictions and without the confusion matrix, which no
figure of an epoch needs: 69 kB instead of 24 MB at 1,716 classes."""

import torch
from torch import Tensor
from torchmetrics import Metric

TOP = (3, 5)


class HeadMetrics(Metric):
    """Of a head with classes: mean loss, top-k, and per class the photos that are right, true and predicted.

    The counts are made twice: of the predicted class, and "at 50" as Keras' Precision() and Recall() make them, where
    a class counts as predicted if its softmax probability is above 0.5. So a photo may have no predicted class there.
    """

    full_state_update = False
    first_places: Tensor
    counts: Tensor
    hits: Tensor
    loss_sum: Tensor
    weight_sum: Tensor

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("first_places", torch.arange(5)[:, None] * num_classes, persistent=False)  # of the rows
        # Five rows, one after the other: right, true, predicted, right at 50, predicted at 50.
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
        """predicted, targets int64 (B,); logits (B, C); losses, weights (B,): a photo with weight 0 does not count.

        Photos whose target is UNKNOWN must have weight 0. likeliest: the most probable classes, where known already.
        """
        # In place: assigning to a state costs as much as a small operation, of which these are many
        counted = weights > 0
        true_class = targets.clamp(min=0)
        likeliest = logits.argmax(dim=1) if likeliest is None else likeliest
        sure = is_above_half(logits) & counted
        classes = torch.stack([true_class, true_class, predicted, true_class, likeliest])
        right, right_at50 = (predicted == true_class) & counted, (likeliest == true_class) & sure
        found = torch.stack([right, counted, counted, right_at50, sure]).long()
        self.counts.index_add_(0, (classes + self.first_places).reshape(-1), found.reshape(-1))
        ahead = num_ahead(logits, true_class)
        hits = torch.stack([ahead < min(k, self.num_classes) for k in TOP])
        self.hits.add_((hits & counted).sum(dim=1))
        self.loss_sum.add_((losses * weights).sum())
        self.weight_sum.add_(weights.sum())

    def compute(self) -> dict[str, float]:
        """The figures by name; empty if no photo counted."""
        right, true, predicted, right_at50, predicted_at50 = self.counts.cpu().double().view(5, -1)
        total = true.sum()
        if total == 0:
            return {}
        hits = self.hits.cpu()  # at once, rather than figure by figure
        figures = {"loss": self.loss_sum.cpu() / self.weight_sum.cpu(), **metrics_from_counts(right, true, predicted)}
        figures |= {f"top{k}": hits[i] / total for i, k in enumerate(TOP)}
        figures |= metrics_at50(right_at50, true, predicted_at50)
        return {name: float(value) for name, value in figures.items()}


def is_above_half(logits: Tensor) -> Tensor:
    """bool (B,): has a class, the most probable one, a softmax probability above 0.5? Of two equal logits none has."""
    return logits.float().softmax(dim=1).amax(dim=1) > 0.5


def num_ahead(logits: Tensor, true_class: Tensor) -> Tensor:
    """int64 (B,): how many classes come before the true one, by larger logits.

    Of equal logits the first class comes first, as in argmax, so a network that says the same of all classes is right
    by chance only. Where a logit is NaN, its class comes before the true one.
    """
    of_true = logits.gather(1, true_class[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < true_class[:, None]
    behind = (logits < of_true) | ((logits == of_true) & ~earlier)
    return (~behind).sum(dim=1)


def metrics_from_counts(right: Tensor, true: Tensor, predicted: Tensor) -> dict[str, Tensor]:
    """Figures of the predicted class, from the photos that are right, true and predicted, each float64 (C,).

    top1; balanced_accuracy: mean recall of the classes that occur; of rates() the mean over classes, "_micro" of all
    photos together, and for precision, recall and f1 "_weighted" by the number of photos of the class. As scikit-learn
    defines them, so of one predicted class a photo, precision_micro, recall_micro and f1_micro are the accuracy.
    """
    share = true / true.sum()
    values = rates(right, true, predicted, true.sum())
    figures = {"top1": right.sum() / true.sum(), "balanced_accuracy": (right / true.clamp(min=1))[true > 0].mean()}
    figures |= macro(values)
    figures |= {f"{name}_micro": value for name, value in micro(right, true, predicted).items()}
    return figures | {f"{name}_weighted": (values[name][0] * share).sum() for name in ("precision", "recall", "f1")}


def metrics_at50(right: Tensor, true: Tensor, predicted: Tensor) -> dict[str, Tensor]:
    """The same where a class is predicted if its probability is above 0.5.

    "_at50" is of all pairs of a photo and a class together, as Keras' metrics are; "_at50_macro" the mean over classes.
    """
    figures = {f"{name}_at50": value for name, value in micro(right, true, predicted).items()}
    values = rates(right, true, predicted, true.sum())
    return figures | {f"{name}_at50_macro": value for name, value in macro(values).items()}


def rates(right: Tensor, true: Tensor, predicted: Tensor, total: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """{name: (value of each class, bool: does the class count in the mean)}. Each class is held against the rest.

    total: the photos, or pairs of photo and class, from which `true` are the positives. precision, recall and f1 count
    every class that occurs or is predicted, as scikit-learn does, and are 0 where they are 0 / 0; the rates of true
    and false positives and negatives count the classes for which they are defined.
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
    return {name: value[counts].mean() for name, (value, counts) in values.items()}


def micro(right: Tensor, true: Tensor, predicted: Tensor) -> dict[str, Tensor]:
    pairs = true.sum() * len(true)
    return {name: value for name, (value, _) in rates(right.sum(), true.sum(), predicted.sum(), pairs).items()}


class NumberMetrics(Metric):
    """Of a head that estimates a number: mean loss, mean absolute and root mean squared error in the label's unit."""

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
        """estimates (B, 1); targets, losses, weights (B,); NaN targets must have weight 0."""
        error = (estimates[:, 0] - targets.nan_to_num()) * (weights > 0)
        self.count += (weights > 0).sum()
        self.loss_sum += (losses * weights).sum()
        self.absolute_sum += error.abs().sum()
        self.square_sum += error.square().sum()

    def compute(self) -> dict[str, float]:
        count = self.count.cpu()
        if count == 0:
            return {}
        figures = {
            "loss": self.loss_sum.cpu() / count,
            "mae": self.absolute_sum.cpu() / count,
            "rmse": (self.square_sum.cpu() / count).sqrt(),
        }
        return {name: float(value) for name, value in figures.items()}
