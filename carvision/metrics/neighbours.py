"""Figures of embeddings over an epoch: the metric loss, and whose neighbours are of the same class."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric


class Embedded(NamedTuple):
    """Of a batch: loss, a scalar; embeddings float (B, D); targets int64 (B,); counts bool (B,): a photo takes part."""

    loss: Tensor
    embeddings: Tensor
    targets: Tensor
    counts: Tensor

    def if_finite(self) -> "Embedded":
        """The same; where the loss is no number it counts no photo."""
        finite = self.loss.isfinite()
        return self._replace(loss=torch.where(finite, self.loss, 0.0), counts=self.counts & finite)


class NeighbourMetrics(Metric):
    """Of all photos of a split, each against all others: Recall@1 and MAP@R by cosine, see retrieval.figures.

    Keeps all embeddings until the epoch's end, on the device they are on: not for the steps of training.
    """

    full_state_update = False
    embeddings: list[Tensor]
    targets: list[Tensor]
    counts: list[Tensor]

    def __init__(self):
        super().__init__()
        for name in ("embeddings", "targets", "counts"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, batch: Embedded) -> None:
        self.embeddings.append(batch.embeddings.detach().float())
        self.targets.append(batch.targets)
        self.counts.append(batch.counts)

    def compute(self) -> dict[str, float]:
        """{"recall_at_1", "map_at_r"}; {} where no class has two photos."""
        from carvision.retrieval.figures import leave_one_out_metrics  # only now: few runs have a metric loss

        embeddings, targets, counts = (_joined(values) for values in (self.embeddings, self.targets, self.counts))
        figures = leave_one_out_metrics(embeddings[counts].cpu().numpy(), targets[counts].cpu().numpy())
        return {name: figures[name] for name in ("recall_at_1", "map_at_r") if name in figures}


def _joined(values: list[Tensor] | Tensor) -> Tensor:
    return torch.cat(values) if isinstance(values, list) else values  # joined already where processes were
