"""Compute a metric loss beside the heads' losses."""

from torch import Tensor

from carvision.data.table import UNKNOWN
from carvision.full_precision import full_precision
from carvision.metric_losses import WITH_PROXIES, create_metric_loss
from carvision.metrics.neighbours import Embedded
from carvision.models.classifier import Outputs


class MetricLearning:
    """Compute the metric loss of a batch. Each process compares the photos of its own batch only.

    label: whose classes the loss separates. weight: of the loss beside the heads' losses. name, values: see
    create_metric_loss.
    """

    def __init__(self, label: str, weight: float, name: str, **values):
        self.label, self.weight, self.takes_cosines = label, weight, name in WITH_PROXIES
        self.loss = create_metric_loss(name, **values)

    def embedded(self, outputs: Outputs, targets: dict[str, Tensor], valid: Tensor) -> Embedded:
        """Return the batch's loss with its embeddings. targets: {label: int64 (B,)}. valid: bool (B,)."""
        own = targets[self.label]
        counts = valid & (own != UNKNOWN)
        with full_precision(outputs.embeddings.device.type):  # distances of near photos lose most digits otherwise
            values = outputs.cosines if self.takes_cosines else outputs.embeddings.float()
            loss = self.loss(values, own, counts)
        return Embedded(loss, outputs.embeddings, own, counts)
