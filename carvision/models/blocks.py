"""What may stand between the feature map of a backbone and the trunk: the neck's blocks, and the pools."""

from dataclasses import dataclass

from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn, ones
from torch.nn.functional import relu


@dataclass(frozen=True)
class Neck:
    """Blocks on the feature map, in their order, each as often as it is named.

    blocks: of "spatial_dropout" (rate `dropout`), "attention" (C / attention_reduction units) and "se"
    (C / se_reduction units). The numbers are report R1's.
    """

    blocks: tuple[str, ...] = ()
    dropout: float = 0.2
    attention_reduction: int = 8
    se_reduction: int = 16

    def __post_init__(self):
        object.__setattr__(self, "blocks", tuple(self.blocks))


NO_NECK = Neck()


def create_neck(neck: Neck, num_channels: int) -> nn.Sequential:
    create = {
        "spatial_dropout": lambda: nn.Dropout2d(neck.dropout),  # whole channels of a photo
        "attention": lambda: ChannelGate(num_channels, neck.attention_reduction),
        "se": lambda: ChannelGate(num_channels, neck.se_reduction),
    }
    return nn.Sequential(*(create[name]() for name in neck.blocks))


class ChannelGate(nn.Module):
    """Weighs the channels of x (B, C, H, W): x * sigmoid(W2 relu(W1 mean(x) + b1) + b2), with C / reduction units.

    Squeeze-and-excitation of Hu et al. 2018 (equations 2 to 4), with biases. Both of report R1's blocks are this one:
    its "attention" with a reduction of 8, its "SE" with 16.
    """

    def __init__(self, num_channels: int, reduction: int):
        super().__init__()
        units = max(1, num_channels // reduction)
        self.reduce = nn.Linear(num_channels, units)
        self.expand = nn.Linear(units, num_channels)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.expand(relu(self.reduce(x.mean((2, 3))))).sigmoid()
        return x * weights[:, :, None, None]


class GeM(nn.Module):
    """Generalised mean of each channel, mean(x^p)^(1/p), with p learned: (B, C, H, W) -> (B, C).

    Radenovic et al. 2018 (equation 3): p = 1 is the average, p to infinity the maximum. Values below eps count as eps.
    """

    def __init__(self, channels_last: bool = False, p: float = 3.0, eps: float = 1e-6):
        super().__init__()
        self.p = nn.Parameter(ones(()) * p)
        self.eps = eps
        self.dims = (1, 2) if channels_last else (2, 3)

    def forward(self, x: Tensor) -> Tensor:
        powers = x.float().clamp(min=self.eps).pow(self.p)  # eps^3 is below what 16 bits hold
        return powers.mean(self.dims).pow(1 / self.p).to(x.dtype)


def create_pool(kind: str, channels_last: bool) -> nn.Module:
    """Feature map -> (B, F). kind: avg, max, avgmax, catavgmax, flatten, gem; see conf/model/default.yaml."""
    if kind == "flatten":
        return nn.Flatten()
    if kind == "gem":
        return GeM(channels_last)
    return SelectAdaptivePool2d(pool_type=kind, flatten=True, input_fmt="NHWC" if channels_last else "NCHW")
