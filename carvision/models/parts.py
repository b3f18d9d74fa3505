"""The parts of a Classifier above its backbone, in the order of the data: feature map, neck, pool, fully connected
layers, embedding, proxies; and the learned weights of the heads' losses."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn
from torch.nn.functional import normalize, relu

from carvision.errors import InputError
from carvision.models.backbones import Backbone

log = logging.getLogger(__name__)


@torch.no_grad()
def take_feature_map(backbone: Backbone, size_px: int) -> tuple[Tensor, list[str]]:
    """Return the feature map of one empty image, and the names of the modules that took no part in it.

    The map is (1, C, H, W) or, where `has_channels_last`, (1, H, W, C). The names are those of the largest modules with
    parameters. The backbone must be in eval mode.
    """
    called = set()
    hooks = [module.register_forward_hook(lambda module, *_: called.add(module)) for module in backbone.modules()]
    try:
        feature_map = backbone.forward_features(torch.zeros(1, 3, size_px, size_px))
    finally:
        for hook in hooks:
            hook.remove()
    return feature_map, _uncalled(backbone, called)


def _uncalled(module: nn.Module, called: set[nn.Module], prefix: str = "") -> list[str]:
    """Return the names of the largest modules with parameters that were not called. All within a called module counts
    as used: some modules read a layer's weights without calling it."""
    found = []
    for name, child in module.named_children():
        if child in called or not any(True for _ in child.parameters()):
            continue
        within = called.intersection(child.modules())
        found += _uncalled(child, called, f"{prefix}{name}.") if within else [f"{prefix}{name}"]
    return found


def leave_out(backbone: Backbone, names: list[str], why: str) -> None:
    """Replace unused modules by the identity, so that they are not counted, trained or saved.

    Their names go to backbone.left_out; weights for them, be they timm's or an earlier run's, are ignored on loading.
    """
    for name in names:
        parent, _, last = name.rpartition(".")
        setattr(backbone.get_submodule(parent), last, nn.Identity())
    backbone.left_out = tuple(names)
    if names:
        backbone.register_load_state_dict_pre_hook(_drop_left_out)
        log.info("%s: the backbone's layers after its feature map are left out: %s", why, ", ".join(names))


def _drop_left_out(backbone: Backbone, tensors: dict[str, Tensor], prefix: str, *_) -> None:
    for key in [key for key in tensors if key.startswith(tuple(f"{prefix}{name}." for name in backbone.left_out))]:
        del tensors[key]


def has_channels_last(backbone: nn.Module) -> bool:
    """Return whether the backbone's feature maps are (B, H, W, C), as Swin's are."""
    return getattr(backbone, "output_fmt", "NCHW") == "NHWC"


@dataclass(frozen=True)
class Neck:
    """Blocks on the feature map, in their order, each as often as it is named.

    blocks: of "spatial_dropout" (rate `dropout`), "attention" (C / attention_reduction units) and "se"
    (C / se_reduction units). The defaults are report R1's.
    """

    blocks: tuple[str, ...] = ()
    dropout: float = 0.2
    attention_reduction: int = 8
    se_reduction: int = 16

    def __post_init__(self):
        object.__setattr__(self, "blocks", tuple(self.blocks))


NO_NECK = Neck()


def create_neck(neck: Neck, num_channels: int) -> nn.Sequential:
    """Create the neck's blocks for feature maps (B, num_channels, H, W)."""
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


def create_pool(kind: str, channels_last: bool) -> nn.Module:
    """Create a module from feature maps to (B, F). kind: avg, max, avgmax, catavgmax, flatten or gem, as in
    conf/model/default.yaml."""
    if kind == "flatten":
        return nn.Flatten()
    if kind == "gem":
        return GeM(channels_last)
    return SelectAdaptivePool2d(pool_type=kind, flatten=True, input_fmt="NHWC" if channels_last else "NCHW")


class GeM(nn.Module):
    """Generalised mean of each channel, mean(x^p)^(1/p), with p learned: (B, C, H, W) -> (B, C).

    Radenovic et al. 2018 (equation 3): p = 1 is the average, p to infinity the maximum. Values below eps count as eps.
    """

    def __init__(self, channels_last: bool = False, p: float = 3.0, eps: float = 1e-6):
        super().__init__()
        self.p = nn.Parameter(torch.ones(()) * p)
        self.eps = eps
        self.dims = (1, 2) if channels_last else (2, 3)

    def forward(self, x: Tensor) -> Tensor:
        powers = x.float().clamp(min=self.eps).pow(self.p)  # eps^3 underflows in 16 bits
        return powers.mean(self.dims).pow(1 / self.p).to(x.dtype)


ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU,
    "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "none": nn.Identity,
}  # fmt: skip
BATCH_NORMS: dict[bool | str, dict[str, Any]] = {
    True: {},
    "keras": {"eps": 1e-3, "momentum": 0.01},  # PyTorch's momentum is 1 - Keras' 0.99
}


@dataclass(frozen=True)
class Layers:
    """Fully connected layers, each of linear, activation, batch norm, dropout; without any layer, dropout alone.

    hidden: units of each layer. l2: penalty l2 * sum of squares of the weights (as in Keras). activity_l1: penalty
    activity_l1 * sum of absolute outputs of the activation, over the batch by activity_l1_reduction: "mean" as in
    tf.keras, or "sum" as in stand-alone Keras (2019). dropout, l2 and activity_l1 are each one number for all
    layers, or one for each.
    activation_slope: of leaky_relu, below zero. batch_norm: "keras" is one with Keras' epsilon and momentum.
    Raises InputError where a list does not have one number for each layer.
    """

    hidden: tuple[int, ...] = ()
    dropout: float | tuple[float, ...] = 0.0
    activation: str = "relu"
    batch_norm: bool | str = False
    bias: bool = True
    l2: float | tuple[float, ...] = 0.0
    activity_l1: float | tuple[float, ...] = 0.0
    activity_l1_reduction: str = "mean"
    activation_slope: float = 0.01

    def __post_init__(self):
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for name in ("dropout", "l2", "activity_l1"):
            value = getattr(self, name)
            if isinstance(value, int | float):
                continue
            if len(value) != len(self.hidden):
                raise InputError(
                    f"{name}: {list(value)} has {len(value)} numbers for the {len(self.hidden)} layers of "
                    f"hidden: {list(self.hidden)}; give one number for all, or one for each"
                )
            object.__setattr__(self, name, tuple(value))

    def per_layer(self, name: str) -> tuple[float, ...]:
        """Return the value of `name` (dropout, l2 or activity_l1) for each layer."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * len(self.hidden)


NO_LAYERS = Layers()


def described(part) -> dict[str, Any]:
    """Return Layers, or a dataclass that holds some, as plain values for model.json.

    activity_l1_reduction is omitted where it has its default, so that earlier versions can read the description.
    """
    default = ("activity_l1_reduction", "mean")
    return asdict(part, dict_factory=lambda pairs: dict(pair for pair in pairs if pair != default))


class Dense(nn.Module):
    """Layers as a module: (B, F) -> ((B, units of the last layer, or F), penalty: a scalar).

    shares: (B,), each photo's weight in the mean of the penalties on activities; None: 1 / B. Where the penalties are
    summed, every photo with a share counts once, and each of several processes sums over its own batch.
    """

    def __init__(self, num_inputs: int, layers: Layers):
        super().__init__()
        self.layers = layers
        slope = (layers.activation_slope,) if layers.activation == "leaky_relu" else ()
        blocks: list[nn.Module] = []
        for units, dropout in zip(layers.hidden, layers.per_layer("dropout"), strict=True):
            block: list[nn.Module] = [nn.Linear(num_inputs, units, bias=layers.bias)]
            block += [ACTIVATIONS[layers.activation](*slope)]
            block += [nn.BatchNorm1d(units, **BATCH_NORMS[layers.batch_norm])] if layers.batch_norm else []
            block += [nn.Dropout(dropout)] if dropout else []
            blocks.append(nn.Sequential(*block))
            num_inputs = units
        if not layers.hidden and isinstance(layers.dropout, int | float) and layers.dropout:
            blocks.append(nn.Dropout(layers.dropout))
        self.blocks = cast(Sequence[Any], nn.ModuleList(blocks))  # an nn.Sequential each; without layers a dropout
        self.penalties = list(zip(layers.per_layer("l2"), layers.per_layer("activity_l1"), strict=True))
        self.num_outputs = num_inputs

    def forward(self, x: Tensor, shares: Tensor | None = None) -> tuple[Tensor, Tensor]:
        penalty = x.new_zeros(())
        if not self.penalties:  # no layers: at most dropout
            for block in self.blocks:
                x = block(x)
            return x, penalty
        for block, (l2, activity_l1) in zip(self.blocks, self.penalties, strict=True):
            linear, activation, *rest = block
            x = activation(linear(x))
            if l2:
                penalty = penalty + l2 * linear.weight.square().sum()
            if activity_l1:
                penalty = penalty + activity_l1 * _activity(x, shares, self.layers.activity_l1_reduction)
            for layer in rest:
                x = layer(x)
        return x, penalty


def _activity(x: Tensor, shares: Tensor | None, reduction: str) -> Tensor:
    """Return the sum of each photo's absolute values (B, F), averaged by shares (B,) or summed over the photos."""
    if shares is None:
        return x.abs().sum() / (1 if reduction == "sum" else len(x))
    weights = (shares > 0).to(x) if reduction == "sum" else shares
    return (x.abs() * weights[:, None]).sum()


@dataclass(frozen=True)
class Embedding:
    """The embedding that a metric loss shapes, and the class weights (proxies) that some metric losses learn.

    layers: of the embedding, on the trunk's output; without any, it is the trunk's output.
    difference: a branch beside the trunk, on the same pooled features; the embedding's layers then take both, joined.
    That is the mixed difference network of DRDL (Liu et al. 2016), on any backbone: the trunk with its heads learns the
    model, the other branch what differs between photos of one model.
    proxies_per_class: 1 for ArcFace, several for sub-centre ArcFace; 0: none. num_classes: of the proxies.
    """

    layers: Layers = NO_LAYERS
    difference: Layers = NO_LAYERS
    proxies_per_class: int = 0
    num_classes: int = 0


NO_EMBEDDING = Embedding()


class EmbeddingLayers(nn.Module):
    """(trunk's output (B, T), pooled features (B, P)) -> ((B, D), penalty: a scalar), see Embedding."""

    def __init__(self, num_trunk: int, num_pooled: int, embedding: Embedding):
        super().__init__()
        self.is_mixed = bool(embedding.difference.hidden)
        self.difference = Dense(num_pooled, embedding.difference)
        joined = num_trunk + (self.difference.num_outputs if self.is_mixed else 0)
        self.layers = Dense(joined, embedding.layers)
        self.num_layers = len(embedding.layers.hidden) + len(embedding.difference.hidden)
        self.num_outputs = self.layers.num_outputs

    def forward(self, trunk: Tensor, pooled: Tensor, shares: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """shares: see Dense."""
        if not self.is_mixed:
            return self.layers(trunk, shares)
        difference, penalty = self.difference(pooled, shares)
        joined, more = self.layers(torch.cat([trunk, difference], dim=1), shares)
        return joined, penalty + more


class Proxies(nn.Module):
    """weight (C, K, D): K directions for each of C classes, compared by their angle with an embedding.

    They are a part of the model, so that they are saved, resumed and moved with it.
    """

    def __init__(self, embedding: Embedding, num_features: int):
        super().__init__()
        shape = (embedding.num_classes, embedding.proxies_per_class, num_features)
        self.weight = nn.Parameter(torch.randn(shape) / num_features**0.5)  # about unit length

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the cosine to the nearest of each class' proxies (Deng et al. 2020): (B, D) -> float32 (B, C)."""
        with torch.autocast(embeddings.device.type, enabled=False):  # bfloat16 is too coarse for a margin
            proxies = normalize(self.weight.float(), dim=2).flatten(0, 1)
            cosines = normalize(embeddings.float(), dim=1) @ proxies.T
        return cosines.view(len(embeddings), *self.weight.shape[:2]).amax(dim=2)


class HeadWeights(nn.Module):
    """Learned weights for the sum of several heads' losses.

    Kendall, Gal and Cipolla 2018, "Multi-task learning using uncertainty to weigh losses", equations 7 and 10: the sum
    over heads of exp(-s) * loss + s / 2, where s = log sigma^2 is learned and starts at 0, so that every head starts
    with the weight 1. The form is the same for cross-entropy (equation 10) and for Huber's loss, which is half the
    squared error already (equation 7). For a constant loss, s converges to log(2 * loss).
    """

    def __init__(self, heads: list[str]):
        super().__init__()
        self.heads = list(heads)
        self.log_variances = nn.Parameter(torch.zeros(len(self.heads)))

    def forward(self, losses: dict[str, Tensor], counts: Tensor) -> Tensor:
        """Return the weighted sum, a scalar that can be negative. losses: {head: scalar}.

        counts: bool (heads,), false for a head none of whose labels is known in the batch. That head is left out, as
        s / 2 alone would drive s down.
        """
        values = torch.stack([losses[head] for head in self.heads])
        return ((torch.exp(-self.log_variances) * values + self.log_variances / 2) * counts).sum()
