"""Classifier: timm backbone -> pool -> trunk -> one head for each label."""

from dataclasses import asdict, dataclass

import torch
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

from carvision.errors import InputError
from carvision.models.backbones import create_backbone
from carvision.models.freezing import frozen_parameters, wholly_frozen

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "none": nn.Identity,
}


@dataclass(frozen=True)
class Layers:
    """Fully connected layers; in each: linear, activation, batch norm, dropout. Without any, dropout alone.

    hidden: units of each layer. l2: penalty l2 * sum of squares of the weights. activity_l1: penalty
    activity_l1 * sum of absolute outputs of the activation, mean over the batch (both as Keras has them).
    """

    hidden: tuple[int, ...] = ()
    dropout: float = 0.0
    activation: str = "relu"
    batch_norm: bool = False
    bias: bool = True
    l2: float = 0.0
    activity_l1: float = 0.0


@dataclass(frozen=True)
class Head:
    """num_outputs: classes; for a number 1, which is given in the label's own unit: output * std + mean."""

    num_outputs: int
    layers: Layers = Layers()
    mean: float | None = None
    std: float | None = None


class Dense(nn.Module):
    """Layers as a module: (B, F) -> ((B, units of the last layer, or F), penalty: a scalar)."""

    def __init__(self, num_inputs: int, layers: Layers):
        super().__init__()
        self.layers = layers
        blocks = []
        for units in layers.hidden:
            block = [nn.Linear(num_inputs, units, bias=layers.bias), ACTIVATIONS[layers.activation]()]
            block += [nn.BatchNorm1d(units)] if layers.batch_norm else []
            block += [nn.Dropout(layers.dropout)] if layers.dropout else []
            blocks.append(nn.Sequential(*block))
            num_inputs = units
        if not layers.hidden and layers.dropout:
            blocks.append(nn.Dropout(layers.dropout))
        self.blocks = nn.ModuleList(blocks)
        self.num_outputs = num_inputs

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penalty = x.new_zeros(())
        for block in self.blocks:
            if isinstance(block, nn.Dropout):
                return block(x), penalty
            linear, activation, *rest = block
            x = activation(linear(x))
            if self.layers.l2:
                penalty = penalty + self.layers.l2 * linear.weight.square().sum()
            if self.layers.activity_l1:
                penalty = penalty + self.layers.activity_l1 * x.abs().sum() / len(x)
            for layer in rest:
                x = layer(x)
        return x, penalty


class Classifier(nn.Module):
    """model(images) -> {head: logits}: images float (B, 3, size_px, size_px), normalised; logits (B, classes), or
    (B, 1) in its own unit for a head that estimates a number.

    pool: "default" as the backbone does it; "avg", "max", "avgmax", "catavgmax" or "flatten" of its feature map.
    Raises InputError where the backbone can't be built, or gives no feature map to pool.
    """

    def __init__(
        self,
        backbone: str,
        heads: dict[str, Head],
        size_px: int,
        backbone_kwargs: dict | None = None,
        pool: str = "default",
        trunk: Layers = Layers(),
        train_layers: str | int = "all",
        pretrained: bool = False,
    ):
        super().__init__()
        self.description = {
            "backbone": backbone,
            "heads": {name: asdict(head) for name, head in heads.items()},
            "size_px": size_px,
            "backbone_kwargs": backbone_kwargs or {},
            "pool": pool,
            "trunk": asdict(trunk),
        }
        self.backbone = create_backbone(backbone, backbone_kwargs, pretrained, size_px)
        self.pool_kind = pool
        if pool in ("default", "flatten"):
            self.pool = nn.Flatten()
        else:
            channels_last = getattr(self.backbone, "output_fmt", "NCHW")  # Swin's feature maps are NHWC
            self.pool = SelectAdaptivePool2d(pool_type=pool, flatten=True, input_fmt=channels_last)
        self.trunk = Dense(self._num_features(size_px), trunk)
        self.labels = tuple(heads)
        for name, head in heads.items():
            layers = Dense(self.trunk.num_outputs, head.layers)
            output = nn.Linear(layers.num_outputs, head.num_outputs)
            self.add_module(_head(name), nn.ModuleDict({"layers": layers, "output": output}))
        self.units = {name: (head.mean, head.std) for name, head in heads.items() if head.mean is not None}
        self.frozen_parameters = []
        self.set_trained(train_layers)

    def set_trained(self, train_layers: str | int) -> None:
        """Which layers of the backbone train; trunk and heads always do. Words as in model.train_layers."""
        for parameter in self.frozen_parameters:  # by an earlier call
            parameter.requires_grad_(True)
        frozen = frozen_parameters(self.backbone, train_layers)
        self.frozen = wholly_frozen(self.backbone, frozen)
        self.frozen_parameters = [parameter for parameter in frozen if parameter.requires_grad]
        for parameter in self.frozen_parameters:
            parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        for module in self.frozen if hasattr(self, "frozen") else ():
            module.eval()  # frozen batch norm keeps its statistics, frozen dropout stays off
        return self

    def features(self, images: Tensor) -> Tensor:
        """Pooled features (B, F) of the backbone."""
        if self.pool_kind == "default":
            return self.backbone(images)
        return self.pool(self.backbone.forward_features(images))

    def forward_with_penalty(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The logits, and the sum of all penalties on weights and activities: a scalar to add to the loss."""
        x, penalty = self.trunk(self.features(images))
        logits = {}
        for name in self.labels:
            head = self.get_submodule(_head(name))
            hidden, more = head["layers"](x)
            logits[name] = head["output"](hidden)
            penalty = penalty + more
        for name, (mean, std) in self.units.items():
            logits[name] = logits[name].float() * std + mean  # 16 bits end at 65,504, and a price does not
        return logits, penalty

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.forward_with_penalty(images)[0]

    @torch.no_grad()
    def _num_features(self, size_px: int) -> int:
        name = self.description["backbone"]
        was_training = self.backbone.training
        self.backbone.eval()
        try:
            images = torch.zeros(1, 3, size_px, size_px)
            if self.pool_kind != "default" and self.backbone.forward_features(images).ndim != 4:
                raise InputError(
                    f"model.pool: {self.pool_kind!r} needs a feature map, and {name} gives tokens; use default"
                )
            return self.features(images).shape[1]
        except (RuntimeError, AssertionError) as error:
            brief = " ".join(str(error).split())[:160]
            raise InputError(f"data.image_px: {name} does not take images of {size_px} px ({brief})") from None
        finally:
            self.backbone.train(was_training)


def _head(label: str) -> str:
    """The module that holds a label's head, "." written as "%2E", which a module's name can't hold.

    Not a ModuleDict, which can't hold a label named "type".
    """
    return f"head_{label.replace('%', '%25').replace('.', '%2E')}"


def classifier_from(description: dict) -> Classifier:
    """The Classifier that `description` (of an earlier one, read from a file) describes, with random weights."""
    heads = {
        name: Head(**{**head, "layers": _layers_from(head["layers"])}) for name, head in description["heads"].items()
    }
    return Classifier(**{**description, "heads": heads, "trunk": _layers_from(description["trunk"])})


def _layers_from(values: dict) -> Layers:
    return Layers(**{**values, "hidden": tuple(values["hidden"])})
