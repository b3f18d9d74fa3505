"""Fully connected layers: what trunk and heads are made of."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict, cast

from torch import Tensor, nn

from carvision.errors import InputError

ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "none": nn.Identity,
}
BATCH_NORMS: dict[bool | str, dict[str, Any]] = {
    True: {},
    "keras": {"eps": 1e-3, "momentum": 0.01},  # PyTorch's momentum is 1 - Keras' 0.99
}


@dataclass(frozen=True)
class Layers:
    """Fully connected layers; in each: linear, activation, batch norm, dropout. Without any, dropout alone.

    hidden: units of each layer. l2: penalty l2 * sum of squares of the weights (as Keras has it). activity_l1: penalty
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

    def of_each(self, name: str) -> tuple[float, ...]:
        """`name` (dropout, l2, activity_l1) of each layer."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * len(self.hidden)


NO_LAYERS = Layers()


class LayersDescription(TypedDict, total=False):
    """Layers as plain values, as in model.json."""

    hidden: Sequence[int]
    dropout: float | Sequence[float]
    activation: str
    batch_norm: bool | str
    bias: bool
    l2: float | Sequence[float]
    activity_l1: float | Sequence[float]
    activity_l1_reduction: str
    activation_slope: float


def layers_from(description: LayersDescription) -> Layers:
    """Return the Layers that plain values describe. Raises InputError as Layers does."""
    return Layers(**cast("dict[str, Any]", description))  # which makes tuples of its lists


def described(part) -> dict[str, Any]:
    """Write a dataclass of layers as plain values. The default of activity_l1_reduction is left out, so that earlier
    versions can read the description."""
    default = ("activity_l1_reduction", "mean")
    return asdict(part, dict_factory=lambda pairs: dict(pair for pair in pairs if pair != default))


class Dense(nn.Module):
    """Layers as a module: (B, F) -> ((B, units of the last layer, or F), penalty: a scalar).

    shares: (B,), of each photo in the mean of the penalties on activities; None: 1 / B. Where they are summed, every
    photo with a share counts once: of several processes each sums over its own batch.
    """

    def __init__(self, num_inputs: int, layers: Layers):
        super().__init__()
        self.layers = layers
        slope = (layers.activation_slope,) if layers.activation == "leaky_relu" else ()
        blocks: list[nn.Module] = []
        for units, dropout in zip(layers.hidden, layers.of_each("dropout"), strict=True):
            block: list[nn.Module] = [nn.Linear(num_inputs, units, bias=layers.bias)]
            block += [ACTIVATIONS[layers.activation](*slope)]
            block += [nn.BatchNorm1d(units, **BATCH_NORMS[layers.batch_norm])] if layers.batch_norm else []
            block += [nn.Dropout(dropout)] if dropout else []
            blocks.append(nn.Sequential(*block))
            num_inputs = units
        if not layers.hidden and isinstance(layers.dropout, int | float) and layers.dropout:
            blocks.append(nn.Dropout(layers.dropout))
        self.blocks = cast(Sequence[Any], nn.ModuleList(blocks))  # an nn.Sequential each; without layers a dropout
        self.penalties = list(zip(layers.of_each("l2"), layers.of_each("activity_l1"), strict=True))
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
    """Scalar: the sum of a photo's absolute values (B, F); over the photos their mean by shares (B,), or their sum."""
    if shares is None:
        return x.abs().sum() / (1 if reduction == "sum" else len(x))
    weights = (shares > 0).to(x) if reduction == "sum" else shares
    return (x.abs() * weights[:, None]).sum()
