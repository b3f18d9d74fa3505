"""Predictions made up for tests: makes and models that are often confused within a make, and a number."""

from pathlib import Path

import torch

from carvision.data.table import UNKNOWN
from carvision.evaluation import metrics
from carvision.evaluation.predict import Predictions
from carvision.inference.model_file import parents_of
from carvision.metrics import EpochMetrics

CODES = [1, 0, 0, 2, 1, 2, 2]  # the make of each model
LABELS = {
    "make": {"ids": [*"xyz"], "names": ["Velmora", "Kestrano", "Ironholt"], "parent": None, "parent_codes": []},
    "model": {"ids": [*"0123456"], "names": [*"gfedcba"], "parent": "make", "parent_codes": CODES},
    "speed": {"unit": "km/h", "mean": 180.0, "std": 20.0},
}
HEAD_WEIGHTS = {"make": 0.5, "model": 2.0, "speed": 0.25}


def made(num: int = 120, seed: int = 0, temperature: dict | None = None, labels: dict = LABELS) -> Predictions:
    """A tenth of the photos could not be read, a tenth of each label is not known."""
    random = torch.Generator().manual_seed(seed)
    model = torch.randint(len(CODES), (num,), generator=random)
    targets = {"make": torch.tensor(CODES)[model], "model": model}
    targets["speed"] = 180 + 20 * torch.randn(num, generator=random)
    logits = {}
    for head, classes in (("make", 3), ("model", 7)):
        logits[head] = torch.randn(num, classes, generator=random)
        logits[head][torch.arange(num), targets[head]] += 1.5
    logits["speed"] = (targets["speed"] + 10 * torch.randn(num, generator=random))[:, None]
    for head, values in targets.items():
        unknown = torch.rand(num, generator=random) < 0.1
        values[unknown] = torch.nan if head == "speed" else UNKNOWN
    valid = torch.rand(num, generator=random) > 0.1
    paths = [f"{i}.jpg" for i in range(num)]
    kept = {name: {head: values[head] for head in labels} for name, values in (("l", logits), ("t", targets))}
    return Predictions(paths, Path("photos"), None, kept["l"], kept["t"], valid, temperature or {})


def photo_losses(predictions: Predictions, labels: dict = LABELS) -> dict[str, torch.Tensor]:
    return metrics.photo_losses(predictions, labels, {"name": "cross_entropy"})


def epoch_of(predictions: Predictions, rule: str, labels: dict = LABELS, weights=None) -> EpochMetrics:
    """The metrics of training; with weights, int (photos,), each photo so many times."""
    rows = torch.arange(len(predictions.paths))
    if weights is not None:
        rows = rows.repeat_interleave(weights)
    outputs = {head: len(label["ids"]) if "ids" in label else None for head, label in labels.items()}
    counted = EpochMetrics(outputs, HEAD_WEIGHTS, parents_of(labels), rule, compare_rules=True, with_auc=True)
    known = {head: predictions.known(head).float() for head in labels}
    values = (predictions.logits, predictions.targets, photo_losses(predictions, labels), known)
    counted.update(*({head: each[head][rows] for head in labels} for each in values), predictions.valid[rows],
                   torch.tensor(0.0))  # fmt: skip
    return counted
