"""The metrics of an evaluation, and their bootstrap intervals: the same functions of the photos' weights.

A photo of weight 2 counts twice. With weights of one they give the metrics; with the number of times that each photo is
drawn, the metrics of a bootstrap sample. The formulas are those of training (metrics/heads.py, metrics/epoch.py).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from carvision.data.table import LabelDescription
from carvision.evaluation.auc import areas_of_classes, keras_auc, micro_auc, scores_of
from carvision.evaluation.calibration import NUM_BINS, bin_of
from carvision.evaluation.predict import Predictions
from carvision.inference.model_file import parents_of
from carvision.metrics.epoch import count_joint, joint_metrics
from carvision.metrics.heads import count_photos, metrics_from_sums, number_metrics
from carvision.models.decoding import RULES, decode

LEVEL = 0.95
Weighted = dict[str, Tensor]  # {metric: float64 (R,)}, a value for each of R weightings of the photos, NaN if undefined


@dataclass(frozen=True)
class Measured:
    """The metrics of an evaluation.

    values {metric: value}: those of training but loss_total, with exact areas under the ROC curve, and of heads with
    classes also nll (mean negative log likelihood) and ece (expected calibration error, 15 bins), both again with
    "_calibrated" if the head has a temperature; undefined ones are omitted. intervals {metric: (low, high)}: see
    measure; {} without samples. decodings {rule: {metric: value}}: top1 of each head, joint/top1 and joint/consistent
    with each decoding rule; {} without parents. num_samples, seed: of the bootstrap.
    """

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    decodings: dict[str, dict[str, float]]
    num_samples: int
    seed: int


def measure(
    predictions: Predictions,
    labels: dict[str, LabelDescription],
    rule: str,
    losses: dict[str, Tensor],
    head_weights: dict[str, float],
    num_samples: int = 1000,
    seed: int = 0,
) -> Measured:
    """Return the metrics of the predictions, with 95 % intervals from `num_samples` bootstrap samples.

    An interval is the percentile interval (Efron and Tibshirani 1993, chapter 13). The samples have as many photos,
    drawn with replacement; one in which a metric is undefined does not count for it. See weighted_metrics for the
    arguments.
    """
    num_photos = int(predictions.valid.sum())
    weights = draw_weights(num_photos, num_samples if num_photos else 0, seed)
    weights = torch.cat([torch.ones(1, num_photos), weights])
    metrics, decodings = weighted_metrics(predictions, labels, rule, losses, head_weights, weights)
    ends, intervals = [(1 - LEVEL) / 2, (1 + LEVEL) / 2], {}
    for name, values in metrics.items():
        samples = values[1:][~values[1:].isnan()].numpy()
        if len(samples):
            low, high = np.quantile(samples, ends)
            intervals[name] = (float(low), float(high))
    firsts = {rule: {name: float(value[0]) for name, value in each.items()} for rule, each in decodings.items()}
    return Measured({name: float(value[0]) for name, value in metrics.items()}, intervals, firsts, num_samples, seed)


def draw_weights(num_photos: int, num_samples: int, seed: int) -> Tensor:
    """Return how often each photo is in each sample, float32 (num_samples, num_photos)."""
    random = np.random.default_rng(seed)
    weights = torch.empty(num_samples, num_photos)
    for row in weights:
        row[:] = torch.from_numpy(np.bincount(random.integers(num_photos, size=num_photos), minlength=num_photos))
    return weights


def weighted_metrics(
    predictions: Predictions,
    labels: dict[str, LabelDescription],
    rule: str,
    losses: dict[str, Tensor],
    head_weights: dict[str, float],
    weights: Tensor,
) -> tuple[Weighted, dict[str, Weighted]]:
    """Return the metrics under each of R weightings of the photos, and those of each decoding rule, as in Measured.

    rule: how make and model are decoded. losses {head: float (N,)}: of each photo. head_weights: of the heads in the
    summed loss. weights: float32 (R, photos that could be read), the first of them ones; metrics that are undefined
    with these are omitted. The areas under the ROC curve are exact for equal weights, else of first order, see
    evaluation/auc.py.
    """
    valid, parents = predictions.valid, parents_of(labels)
    logits = {head: predictions.logits[head][valid] for head in labels}
    targets = {head: predictions.targets[head][valid] for head in labels}
    heads = [head for head, label in labels.items() if "ids" in label]
    class_logits = {head: logits[head] for head in heads}
    decoded = {each: decode(class_logits, parents, each) for each in (RULES if parents else (rule,)) if heads}
    metrics: Weighted = {}
    loss: Tensor | float = 0.0
    for head in labels:
        known = predictions.known(head)[valid]
        if not known.any():
            continue
        head_args = (logits[head][known], targets[head][known], losses[head][valid][known], weights[:, known])
        if head in heads:
            found = _class_metrics(decoded[rule][head][known], *head_args, predictions.temperature.get(head, 1.0))
        else:
            found = _number_metrics(*head_args)
        loss = loss + head_weights.get(head, 1.0) * found["loss"]
        metrics |= {f"{head}/{name}": values for name, values in found.items()}
    metrics = metrics if isinstance(loss, float) else {"loss": loss, **metrics}
    decodings = _joint_metrics(decoded, targets, parents, weights) if heads else {}
    metrics |= {name: values for name, values in decodings.get(rule, {}).items() if name.startswith("joint/")}
    return metrics, decodings if parents else {}


def _class_metrics(
    predicted: Tensor, logits: Tensor, targets: Tensor, losses: Tensor, weights: Tensor, temperature: float
) -> Weighted:
    """Return the metrics of a head with classes; all arguments are restricted to the photos whose label is known."""
    num_photos = weights.double().sum(dim=1)

    def mean(values: Tensor) -> Tensor:
        return weights.double() @ values.double() / num_photos

    metrics = _metrics_from_counts(predicted, logits, targets, mean(losses), weights)
    scores = scores_of(logits)
    areas = areas_of_classes(scores, targets, weights).nanmean(dim=1)
    if not areas[0].isnan():  # otherwise no class has photos of its own and of others
        micro, keras = micro_auc(scores, targets, weights), keras_auc(logits, targets, weights)
        undefined = areas.isnan()
        metrics |= {"auc": areas, "auc_micro": micro.masked_fill(undefined, torch.nan)}
        metrics["auc_keras"] = keras.masked_fill(undefined, torch.nan)
    for end, divisor in {"": 1.0, "_calibrated": temperature}.items():
        if end and divisor == 1:
            continue
        log_probs = (logits.float() / divisor).log_softmax(dim=1)
        metrics[f"nll{end}"] = mean(-log_probs.gather(1, targets[:, None])[:, 0])
        metrics[f"ece{end}"] = _calibration_errors(log_probs, targets, weights)
    return metrics


def _metrics_from_counts(predicted: Tensor, logits: Tensor, targets: Tensor, loss: Tensor, weights: Tensor) -> Weighted:
    """Return metrics_from_sums of the photos' counts under each weighting. loss: float64 (R,)."""
    classes, found, hits = count_photos(predicted, logits, targets, torch.ones_like(targets, dtype=torch.bool))
    summed_hits = weights.double() @ hits.double().t()
    names: list[str] = []
    rows = []
    for start in range(0, len(weights), 64):  # bounds the memory of the float64 counts
        part = weights[start : start + 64]
        counts = torch.stack(
            [_counts(part * which, codes, logits.shape[1]) for codes, which in zip(classes, found, strict=True)], dim=1
        )
        for i, each in enumerate(counts, start):
            values = metrics_from_sums(each, summed_hits[i], loss[i])
            names = list(values)
            rows.append(torch.stack(list(values.values())).where(each[1].sum() > 0, torch.nan))
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


def _number_metrics(estimates: Tensor, targets: Tensor, losses: Tensor, weights: Tensor) -> Weighted:
    """Return the metrics of a head that estimates a number; estimates (N, 1), in the label's unit like the targets."""
    error = (estimates[:, 0] - targets).double()
    sums = weights.double() @ torch.stack([losses.double(), error.abs(), error.square()], dim=1)
    return number_metrics(weights.double().sum(dim=1), *sums.unbind(dim=1))


def _joint_metrics(
    decoded: dict[str, dict[str, Tensor]],
    targets: dict[str, Tensor],
    parents: dict[str, tuple[str, Tensor]],
    weights: Tensor,
) -> dict[str, Weighted]:
    guesses = list(decoded.values())
    heads = list(guesses[0])
    valid = torch.ones(weights.shape[1], dtype=torch.bool)
    known, right, agreeing = (values.double() for values in count_joint(guesses, targets, parents, valid))
    weights = weights.double()
    count, seen = known @ weights.t(), weights.sum(dim=1)
    metrics = {}
    for i, rule in enumerate(decoded):
        agree = agreeing[i] @ weights.t() if parents else None
        found = joint_metrics(heads, right[i] @ weights.t(), count, agree, seen)
        metrics[rule] = {name: values for name, values in found.items() if not values[0].isnan()}
    return metrics
