"""The figures of training's metrics.json, from the logits of all photos."""

import torch
from torch import Tensor

from carvision.allowed import check_values
from carvision.errors import InputError
from carvision.evaluation.predictions import Predictions
from carvision.losses import create_loss, smooth_l1
from carvision.metrics import EpochMetrics
from carvision.portable import parents_of

CHUNK = 4096  # photos at a time, as metrics take several times the memory of the logits


def evaluation_loss(about: dict, averages: bool) -> dict:
    """The run's own loss, the keys of conf/loss; cross-entropy where the model does not tell it.

    So it is where probabilities were averaged: a loss of sigmoids would be one of logits that no network gave.
    Raises InputError for a loss that there is not.
    """
    loss = about.get("config", {}).get("loss")
    if averages or not loss:
        return {"name": "cross_entropy"}
    check_values({"loss": loss})
    try:
        _create(loss)
    except (KeyError, TypeError) as error:
        raise InputError(f"model.json: its loss can't be built ({error}); it was changed by hand") from None
    return loss


def _create(loss: dict):
    return create_loss(**{key: value for key, value in loss.items() if key not in ("class_weights", "head_weights")})


def photo_losses(predictions: Predictions, labels: dict[str, dict], loss: dict) -> dict[str, Tensor]:
    """{head: float (N,)}, 0 where the label is not known."""
    class_loss = _create(loss)
    losses = {}
    for name, label in labels.items():
        logits, targets = predictions.logits[name], predictions.targets[name]
        parts = zip(logits.split(CHUNK), targets.split(CHUNK), strict=True)
        losses[name] = torch.cat(
            [class_loss(*part) if "ids" in label else smooth_l1(*part, label["std"]) for part in parts]
        )
    return losses


def head_weights_of(labels: dict[str, dict], loss: dict) -> dict[str, float]:
    """What each head counts in the sum; learned weights count in training alone."""
    given = loss.get("head_weights") or {}
    return dict.fromkeys(labels, 1.0) | ({} if given == "learned" else given)


def compute_metrics(
    predictions: Predictions,
    labels: dict[str, dict],
    losses: dict[str, Tensor],
    head_weights: dict[str, float],
    rule: str,
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The figures, and what each decoding rule gives: EpochMetrics, with AUC. Penalties on weights are not counted."""
    outputs = {name: len(label["ids"]) if "ids" in label else None for name, label in labels.items()}
    epoch_metrics = EpochMetrics(outputs, head_weights, parents_of(labels), rule, compare_rules=True, with_auc=True)
    num_photos = len(predictions.paths)
    for start in range(0, num_photos, CHUNK):
        part = slice(start, start + CHUNK)
        epoch_metrics.update(
            {name: predictions.logits[name][part] for name in labels},
            {name: predictions.targets[name][part] for name in labels},
            {name: losses[name][part] for name in labels},
            {name: predictions.known(name)[part].float() for name in labels},
            predictions.valid[part],
            torch.zeros(()),
        )
    metrics = epoch_metrics.compute()
    metrics.pop("loss_total", None)
    return metrics, epoch_metrics.compute_rules() if len(epoch_metrics.rules) > 1 else {}
