"""A metric loss beside the heads' losses: what of a batch it takes, and what is counted of it."""

from torch import Tensor

from carvision.data.table import UNKNOWN
from carvision.full_precision import full_precision
from carvision.metric_losses import WITH_PROXIES, create_metric_loss
from carvision.metrics.neighbours import Embedded
from carvision.models.classifier import Outputs


class MetricLearning:
    """label: whose classes are to lie apart. weight: of the loss, the heads' losses having theirs. name, values: see
    create_metric_loss.

    Of several processes each compares the photos of its own batch.
    """

    def __init__(self, label: str, weight: float, name: str, **values):
        self.label, self.weight, self.takes_cosines = label, weight, name in WITH_PROXIES
        self.loss = create_metric_loss(name, **values)

    def embedded(self, outputs: Outputs, targets: dict[str, Tensor], valid: Tensor) -> Embedded:
        """The loss of a batch. targets {label: int64 (B,)}, valid bool (B,)."""
        own = targets[self.label]
        counts = valid & (own != UNKNOWN)
        with full_precision(outputs.embeddings.device.type):  # of near photos' distances else few digits are left
            values = outputs.cosines if self.takes_cosines else outputs.embeddings.float()
            loss = self.loss(values, own, counts)
        return Embedded(loss, outputs.embeddings, own, counts)
