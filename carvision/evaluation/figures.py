"""The metrics of training's metrics.json, computed from the logits of all photos."""

import torch
from torch import Tensor

from carvision.allowed import check_values
from carvision.errors import InputError
from carvision.evaluation.predictions import Predictions
from carvision.losses import create_loss, smooth_l1
from carvision.metrics import EpochMetrics
from carvision.portable import parents_of

CHUNK = 4096  # photos at a time, as metrics need several times the memory of the logits


def evaluation_loss(about: dict, averages: bool) -> dict:
    """Return the run's own loss, the keys of conf/loss; cross-entropy if the model does not record it.

    Averaged probabilities are measured by cross-entropy, too, as a sigmoid loss would apply to logits that no network
    gave. Raises InputError for an unknown loss.
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
    """Return the loss of each photo, {head: float (N,)}; 0 if the label is unknown."""
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
    """Return each head's weight in the summed loss; learned weights apply in training only, here each is 1."""
    weights = loss.get("head_weights") or {}
    return dict.fromkeys(labels, 1.0) | ({} if weights == "learned" else weights)


def compute_metrics(
    predictions: Predictions,
    labels: dict[str, dict],
    losses: dict[str, Tensor],
    head_weights: dict[str, float],
    rule: str,
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return the metrics and those of each decoding rule, as EpochMetrics computes them, with AUC.

    Penalties on weights are not included.
    """
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
