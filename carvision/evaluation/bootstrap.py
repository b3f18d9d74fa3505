"""Bootstrap confidence intervals of an evaluation's metrics, by resampling its photos."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from carvision.data.table import UNKNOWN, LabelDescription
from carvision.evaluation.auc import resampled_aucs, resampled_keras_auc, resampled_micro_auc, scores_of
from carvision.evaluation.calibration import NUM_BINS, bin_of
from carvision.evaluation.predict import Predictions
from carvision.inference.model_file import parents_of
from carvision.metrics.heads import TOP, is_above_half, metrics_at50, metrics_from_counts, num_ahead
from carvision.models.decoding import decode

Resampled = dict[str, Tensor]  # {metric: float64 (R,)}, NaN where undefined


def bootstrap_intervals(
    predictions: Predictions,
    labels: dict[str, LabelDescription],
    rule: str,
    losses: dict[str, Tensor],
    head_weights: dict[str, float],
    num_samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Return {metric: (low, high)}, the percentile interval (Efron and Tibshirani 1993, chapter 13) of every metric.

    The samples have as many photos, drawn with replacement. A sample in which a metric is undefined does not count for
    it. See resampled_metrics for the metrics and the arguments.
    """
    weights = draw_weights(int(predictions.valid.sum()), num_samples, seed)
    ends = [(1 - level) / 2, (1 + level) / 2]
    intervals = {}
    for name, values in resampled_metrics(predictions, labels, rule, losses, head_weights, weights).items():
        values = values[~values.isnan()].numpy()
        if len(values):
            low, high = np.quantile(values, ends)
            intervals[name] = (float(low), float(high))
    return intervals


def point_metrics(
    predictions: Predictions,
    labels: dict[str, LabelDescription],
    rule: str,
    losses: dict[str, Tensor],
    head_weights: dict[str, float],
) -> dict[str, float]:
    """Return {metric: value} with every photo counted once; undefined metrics are omitted."""
    ones = torch.ones(1, int(predictions.valid.sum()))
    values = resampled_metrics(predictions, labels, rule, losses, head_weights, ones)
    return {name: float(value[0]) for name, value in values.items() if not value.isnan()[0]}


def draw_weights(num_photos: int, num_samples: int, seed: int) -> Tensor:
    """Return how often each photo is in each sample, float32 (num_samples, num_photos)."""
    random = np.random.default_rng(seed)
    weights = torch.empty(num_samples, num_photos)
    for row in weights:
        row[:] = torch.from_numpy(np.bincount(random.integers(num_photos, size=num_photos), minlength=num_photos))
    return weights


def resampled_metrics(
    predictions: Predictions,
    labels: dict[str, LabelDescription],
    rule: str,
    losses: dict[str, Tensor],
    head_weights: dict[str, float],
    weights: Tensor,
) -> Resampled:
    """Return every metric under each of R weightings of the photos; weights float32 (R, photos that could be read).

    The metrics are those of EpochMetrics except loss_total and, for each head with classes, nll (mean negative log
    likelihood) and ece (expected calibration error, 15 bins); both again with "_calibrated" if the head has a
    temperature. The areas under the ROC curve are exact for equal weights, else of first order, see evaluation/auc.py.
    """
    valid = predictions.valid
    logits = {head: predictions.logits[head][valid] for head in labels}
    targets = {head: predictions.targets[head][valid] for head in labels}
    heads = [head for head, label in labels.items() if "ids" in label]
    decoded = decode({head: logits[head] for head in heads}, parents_of(labels), rule)
    metrics: Resampled = {}
    loss: Tensor | None = None  # heads without a known label are not part of the sum
    for head in labels:
        known = predictions.known(head)[valid]
        head_args = (logits[head][known], targets[head][known], losses[head][valid][known], weights[:, known])
        if head in heads:
            head_metrics = _class_metrics(decoded[head][known], *head_args, predictions.temperature.get(head, 1.0))
        else:
            head_metrics = _number_metrics(*head_args)
        if known.any():
            loss = (0.0 if loss is None else loss) + head_weights.get(head, 1.0) * head_metrics["loss"]
        metrics |= {f"{head}/{name}": values for name, values in head_metrics.items()}
    metrics |= {} if loss is None else {"loss": loss}
    return metrics | (_joint_metrics(decoded, targets, parents_of(labels), weights) if heads else {})


def _class_metrics(
    predicted: Tensor, logits: Tensor, targets: Tensor, losses: Tensor, weights: Tensor, temperature: float
) -> Resampled:
    """Return the metrics of a head with classes; all arguments are restricted to the photos whose label is known."""
    mean = _weighted_mean(weights)
    metrics = {"loss": mean(losses)}
    metrics |= _count_metrics(predicted, logits, targets, weights)
    ahead = num_ahead(logits, targets)
    metrics |= {f"top{k}": mean(ahead < min(k, logits.shape[1])) for k in TOP}
    if not len(targets):
        return metrics
    scores = scores_of(logits)
    metrics["auc"] = resampled_aucs(scores, targets, weights).nanmean(dim=1)
    undefined = metrics["auc"].isnan()  # without a class that has both, no area is defined
    for name, values in {
        "auc_micro": resampled_micro_auc(scores, targets, weights),
        "auc_keras": resampled_keras_auc(logits, targets, weights),
    }.items():
        metrics[name] = values.masked_fill(undefined, torch.nan)
    for end, divisor in {"": 1.0, "_calibrated": temperature}.items():
        if end and divisor == 1:
            continue
        log_probs = (logits.float() / divisor).log_softmax(dim=1)
        metrics[f"nll{end}"] = mean(-log_probs.gather(1, targets[:, None])[:, 0])
        metrics[f"ece{end}"] = _calibration_errors(log_probs, targets, weights)
    return metrics


def _weighted_mean(weights: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that averages values (N,) over the photos for each weighting; NaN without any weight."""
    weights = weights.double()
    total = weights.sum(dim=1)
    return lambda values: weights @ values.double() / total


def _count_metrics(predicted: Tensor, logits: Tensor, targets: Tensor, weights: Tensor) -> Resampled:
    """Return the metrics of metrics_from_counts and metrics_at50, computed from the counts of each weighting."""
    likeliest, above_half = logits.argmax(dim=1), is_above_half(logits)
    groups = [(targets, predicted == targets), (targets, None), (predicted, None)]
    groups += [(targets, above_half & (likeliest == targets)), (likeliest, above_half)]
    names: list[str] = []
    rows = []
    for part in weights.split(64):  # bounds the memory of the float64 counts
        counts = torch.stack([_counts(part if which is None else part * which, classes, logits.shape[1])
                              for classes, which in groups], dim=1)  # fmt: skip
        for right, true, predicted_count, right_at50, predicted_at50 in counts:
            values = metrics_from_counts(right, true, predicted_count) | metrics_at50(right_at50, true, predicted_at50)
            names = list(values)
            rows.append(torch.stack(list(values.values())).where(true.sum() > 0, torch.nan))
    return dict(zip(names, torch.stack(rows, dim=1), strict=True))


def _counts(weights: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Return the total weight of the photos of each class, float64 (R, C); weights (R, N), classes int64 (N,)."""
    return torch.zeros(len(weights), num_classes, dtype=torch.float64).index_add_(1, classes, weights.double())


def _calibration_errors(log_probs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return calibration_error for each weighting: confidence minus accuracy, summed within each bin."""
    log_confidence, likeliest = log_probs.max(dim=1)
    confidence = log_confidence.exp()
    bins = torch.from_numpy(bin_of(confidence.numpy()))
    gaps = _counts(weights * (confidence - (likeliest == targets).float()), bins, NUM_BINS)
    return gaps.abs().sum(dim=1) / weights.sum(dim=1).double()


def _number_metrics(estimates: Tensor, targets: Tensor, losses: Tensor, weights: Tensor) -> Resampled:
    """Return the metrics of a head that estimates a number; estimates (N, 1), in the label's unit like the targets."""
    mean = _weighted_mean(weights)
    error = estimates[:, 0] - targets
    return {"loss": mean(losses), "mae": mean(error.abs()), "rmse": mean(error.square()).sqrt()}


def _joint_metrics(
    decoded: dict[str, Tensor], targets: dict[str, Tensor], parents: dict[str, tuple[str, Tensor]], weights: Tensor
) -> Resampled:
    """Return "joint/top1" and, for heads with parents, "joint/consistent".

    joint/top1: all heads right, over photos with all classes known. joint/consistent: children agree with their
    parents, over all photos.
    """
    known = torch.stack([targets[head] != UNKNOWN for head in decoded]).all(dim=0)
    right = torch.stack([decoded[head] == targets[head] for head in decoded]).all(dim=0)
    metrics = {"joint/top1": _weighted_mean(weights[:, known])(right[known])}
    if parents:
        agree = torch.stack([codes[decoded[child]] == decoded[parent] for child, (parent, codes) in parents.items()])
        metrics["joint/consistent"] = _weighted_mean(weights)(agree.all(dim=0))
    return metrics
