"""The weights with which the losses of several heads are added, where they are learned."""

import torch
from torch import Tensor, nn


class HeadWeights(nn.Module):
    """Kendall, Gal and Cipolla 2018, "Multi-task learning using uncertainty to weigh losses", equations 7 and 10.

    For each head sum up exp(-s) * loss + s / 2 with s = log sigma^2, which is learned and begins with 0, so that every
    head begins with the weight 1. The form is the same for cross-entropy (equation 10) and for Huber's loss, which is
    half the squared error already (equation 7). For a loss that stays as it is, s goes to log(2 * loss).
    """

    def __init__(self, heads: list[str]):
        super().__init__()
        self.heads = list(heads)
        self.log_variances = nn.Parameter(torch.zeros(len(self.heads)))

    def forward(self, losses: dict[str, Tensor], counts: Tensor) -> Tensor:
        """{head: scalar}, bool (heads,) -> scalar, which can be below 0.

        counts: false for a head none of whose labels is known in the batch. It is left out: s / 2 alone would drive s
        down.
        """
        values = torch.stack([losses[head] for head in self.heads])
        return ((torch.exp(-self.log_variances) * values + self.log_variances / 2) * counts).sum()

    def weights(self) -> dict[str, float]:
        """{head: exp(-s)}."""
        return dict(zip(self.heads, torch.exp(-self.log_variances.detach()).tolist(), strict=True))
