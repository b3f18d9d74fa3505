"""How far the figures of an evaluation could be off, from photos drawn anew out of those that were evaluated."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from carvision.data.table import UNKNOWN
from carvision.evaluation.areas import resampled_aucs, resampled_keras_auc, resampled_micro_auc, scores_of
from carvision.evaluation.calibration import NUM_BINS, bin_of
from carvision.evaluation.predictions import Predictions
from carvision.metrics.heads import TOP, figures_at50, figures_of, is_above_half, num_ahead
from carvision.models.decoding import decode
from carvision.portable import parents_of

Resampled = dict[str, Tensor]  # {figure: float64 (R,)}, NaN where it is not defined


def bootstrap_intervals(
    predictions: Predictions,
    labels: dict[str, dict],
    rule: str,
    losses: dict[str, Tensor],
    head_weights: dict[str, float],
    num_samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """{figure: (low, high)}: the percentile interval (Efron and Tibshirani 1993, chapter 13) of every figure of
    `resampled_figures`, over samples of as many photos, drawn with replacement.

    A sample in which a figure is not defined does not count for it.
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
    predictions: Predictions, labels: dict[str, dict], rule: str, losses: dict, head_weights: dict
) -> dict[str, float]:
    """The figures themselves, every photo once."""
    ones = torch.ones(1, int(predictions.valid.sum()))
    values = resampled_metrics(predictions, labels, rule, losses, head_weights, ones)
    return {name: float(value[0]) for name, value in values.items() if not value.isnan()[0]}


def draw_weights(num_photos: int, num_samples: int, seed: int) -> Tensor:
    """float32 (num_samples, num_photos): how often each photo is in each sample."""
    random = np.random.default_rng(seed)
    weights = torch.empty(num_samples, num_photos)
    for row in weights:
        row[:] = torch.from_numpy(np.bincount(random.integers(num_photos, size=num_photos), minlength=num_photos))
    return weights


def resampled_metrics(
    predictions: Predictions,
    labels: dict[str, dict],
    rule: str,
    losses: dict[str, Tensor],
    head_weights: dict[str, float],
    weights: Tensor,
) -> Resampled:
    """Every figure under each of R weightings of the photos; weights float32 (R, photos that could be read).

    The figures are those of EpochMetrics, but for loss_total, and further of each head with classes nll (mean negative
    log likelihood) and ece (expected calibration error, 15 bins); the same with "_calibrated" where the head has a
    temperature. The areas under the ROC curve are exact where all weights are equal, else of first order, see areas.py.
    """
    valid = predictions.valid
    logits = {head: predictions.logits[head][valid] for head in labels}
    targets = {head: predictions.targets[head][valid] for head in labels}
    heads = [head for head, label in labels.items() if "ids" in label]
    decoded = decode({head: logits[head] for head in heads}, parents_of(labels), rule)
    metrics: Resampled = {}
    loss: Tensor | None = None  # a head of which no photo's label is known has none, and no part in the sum
    for head in labels:
        known = predictions.known(head)[valid]
        given = (logits[head][known], targets[head][known], losses[head][valid][known], weights[:, known])
        if head in heads:
            of_head = _class_metrics(decoded[head][known], *given, predictions.temperature.get(head, 1.0))
        else:
            of_head = _number_metrics(*given)
        if known.any():
            loss = (0.0 if loss is None else loss) + head_weights.get(head, 1.0) * of_head["loss"]
        metrics |= {f"{head}/{name}": values for name, values in of_head.items()}
    metrics |= {} if loss is None else {"loss": loss}
    return metrics | (_joint_metrics(decoded, targets, parents_of(labels), weights) if heads else {})


def _class_metrics(
    predicted: Tensor, logits: Tensor, targets: Tensor, losses: Tensor, weights: Tensor, temperature: float
) -> Resampled:
    """Of the photos whose label is known."""
    mean = _weighted_mean(weights)
    metrics = {"loss": mean(losses)}
    metrics |= _count_metrics(predicted, logits, targets, weights)
    ahead = num_ahead(logits, targets)
    metrics |= {f"top{k}": mean(ahead < min(k, logits.shape[1])) for k in TOP}
    if not len(targets):
        return metrics
    scores = scores_of(logits)
    metrics["auc"] = resampled_aucs(scores, targets, weights).nanmean(dim=1)
    some = metrics["auc"].isnan()  # where no class has both, there is no area at all
    for name, values in {
        "auc_micro": resampled_micro_auc(scores, targets, weights),
        "auc_keras": resampled_keras_auc(logits, targets, weights),
    }.items():
        metrics[name] = values.masked_fill(some, torch.nan)
    for end, divisor in {"": 1.0, "_calibrated": temperature}.items():
        if end and divisor == 1:
            continue
        log_probs = (logits.float() / divisor).log_softmax(dim=1)
        metrics[f"nll{end}"] = mean(-log_probs.gather(1, targets[:, None])[:, 0])
        metrics[f"ece{end}"] = _calibration_errors(log_probs, targets, weights)
    return metrics


def _weighted_mean(weights: Tensor) -> Callable[[Tensor], Tensor]:
    """The mean over photos of values (N,) under each weighting; NaN where no photo has weight."""
    weights = weights.double()
    total = weights.sum(dim=1)
    return lambda values: weights @ values.double() / total


def _count_metrics(predicted: Tensor, logits: Tensor, targets: Tensor, weights: Tensor) -> Resampled:
    """Those of figures_of and figures_at50, from the counts of each weighting."""
    likeliest, above_half = logits.argmax(dim=1), is_above_half(logits)
    groups = [(targets, predicted == targets), (targets, None), (predicted, None)]
    groups += [(targets, above_half & (likeliest == targets)), (likeliest, above_half)]
    rows = []
    for part in weights.split(64):  # float64 counts of all would take much memory
        counts = torch.stack([_counts(part if which is None else part * which, classes, logits.shape[1])
                              for classes, which in groups], dim=1)  # fmt: skip
        for right, true, predicted_count, right_at50, predicted_at50 in counts:
            values = figures_of(right, true, predicted_count) | figures_at50(right_at50, true, predicted_at50)
            rows.append(torch.stack(list(values.values())).where(true.sum() > 0, torch.nan))
    names = list(values)
    return dict(zip(names, torch.stack(rows, dim=1), strict=True))


def _counts(weights: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """float64 (R, C): the weight of the photos of each class; weights (R, N), classes int64 (N,)."""
    return torch.zeros(len(weights), num_classes, dtype=torch.float64).index_add_(1, classes, weights.double())


def _calibration_errors(log_probs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """As calibration_error of each weighting: in each bin, the sum of what the confidence is above or below."""
    log_confidence, likeliest = log_probs.max(dim=1)
    confidence = log_confidence.exp()
    bins = torch.from_numpy(bin_of(confidence.numpy()))
    gaps = _counts(weights * (confidence - (likeliest == targets).float()), bins, NUM_BINS)
    return gaps.abs().sum(dim=1) / weights.sum(dim=1).double()


def _number_metrics(estimates: Tensor, targets: Tensor, losses: Tensor, weights: Tensor) -> Resampled:
    mean = _weighted_mean(weights)
    error = estimates[:, 0] - targets
    return {"loss": mean(losses), "mae": mean(error.abs()), "rmse": mean(error.square()).sqrt()}


def _joint_metrics(decoded: dict, targets: dict, parents: dict, weights: Tensor) -> Resampled:
    """All heads right, of the photos of which all classes are known; children and parents agreeing, of all photos."""
    known = torch.stack([targets[head] != UNKNOWN for head in decoded]).all(dim=0)
    right = torch.stack([decoded[head] == targets[head] for head in decoded]).all(dim=0)
    metrics = {"joint/top1": _weighted_mean(weights[:, known])(right[known])}
    if parents:
        agree = torch.stack([codes[decoded[child]] == decoded[parent] for child, (parent, codes) in parents.items()])
        metrics["joint/consistent"] = _weighted_mean(weights)(agree.all(dim=0))
    return metrics
