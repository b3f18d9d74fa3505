"""Classifier: timm backbone -> neck -> pool -> trunk -> one head for each label, and an embedding beside the heads."""

from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor, nn

from carvision.errors import InputError, one_line
from carvision.models.backbones import create_backbone
from carvision.models.freezing import frozen_parameters, wholly_frozen
from carvision.models.parts import (
    NO_EMBEDDING,
    NO_LAYERS,
    NO_NECK,
    Dense,
    Embedding,
    EmbeddingLayers,
    Layers,
    Neck,
    Proxies,
    create_neck,
    create_pool,
    described,
    has_channels_last,
    leave_out,
    take_feature_map,
)


@dataclass(frozen=True)
class Head:
    """A label's own layers. num_outputs: its classes; 1 for a number, which is in its own unit: output * std + mean."""

    num_outputs: int
    layers: Layers = NO_LAYERS
    mean: float | None = None
    std: float | None = None


class NetworkDescription(TypedDict):
    """The arguments of a Classifier as plain values: "network" in model.json. Heads, trunk, neck and embedding are the
    fields of Head, Layers, Neck and Embedding."""

    backbone: str
    heads: dict[str, dict[str, Any]]
    size_px: int
    backbone_kwargs: NotRequired[dict[str, Any]]
    pool: NotRequired[str]
    trunk: dict[str, Any]
    neck: NotRequired[dict[str, Any]]
    embedding: NotRequired[dict[str, Any]]


class Outputs(NamedTuple):
    """The results of a forward pass in a training step.

    logits: {head: (B, C)}. penalty: scalar, the sum of all penalties on weights and activities, to add to the loss.
    embeddings: float (B, D), not normalised. cosines: float32 (B, C), of embeddings and proxies; None without proxies.
    """

    logits: dict[str, Tensor]
    penalty: Tensor
    embeddings: Tensor
    cosines: Tensor | None


class Classifier(nn.Module):
    """A backbone with heads: model(images) -> {head: logits}.

    images: float (B, 3, size_px, size_px), normalised. logits: (B, classes), or (B, 1) in its own unit for a head that
    estimates a number.

    neck: blocks on the backbone's feature map. pool: "default" is the backbone's own, with all its layers after the
    feature map; "avg", "max", "avgmax", "catavgmax", "flatten" and "gem" pool the feature map and leave those layers
    out of the backbone (the dense ones of VGG, as Keras' include_top=False does).
    train_layers: of the backbone, see freezing.frozen_parameters. pretrained: load timm's weights.
    embedding: what a metric loss shapes, and the class weights that it learns.
    Raises InputError where the backbone can't be built, or gives no feature map for the neck or the pool.
    """

    heads_are_trained = False  # true where their weights were loaded with the backbone's
    heads_are_probes = False  # true: trunk and backbone learn nothing from the heads' losses
    freeze_statistics = False  # true: the backbone's batch norms keep their means and variances, also in training

    def __init__(
        self,
        backbone: str,
        heads: dict[str, Head],
        size_px: int,
        backbone_kwargs: dict | None = None,
        pool: str = "default",
        trunk: Layers = NO_LAYERS,
        train_layers: str | int = "all",
        pretrained: bool = False,
        neck: Neck = NO_NECK,
        embedding: Embedding = NO_EMBEDDING,
    ):
        super().__init__()
        self.description: NetworkDescription = {
            "backbone": backbone,
            "heads": {name: described(head) for name, head in heads.items()},
            "size_px": size_px,
            "backbone_kwargs": backbone_kwargs or {},
            "pool": pool,
            "trunk": described(trunk),
            "neck": asdict(neck),
        }
        if embedding != NO_EMBEDDING:  # so that other networks are described as by earlier versions
            self.description["embedding"] = described(embedding)
        self.backbone = create_backbone(backbone, backbone_kwargs, pretrained, size_px)
        num_pooled = self._create_neck_and_pool(neck, pool, size_px)
        self.trunk = Dense(num_pooled, trunk)
        learned_pool = self.pool is not None and any(True for _ in self.pool.parameters())
        self.learns_from_map = bool(neck.blocks) or learned_pool  # something below the trunk trains or is random
        self.labels = tuple(heads)
        for name, head in heads.items():
            layers = Dense(self.trunk.num_outputs, head.layers)
            output = nn.Linear(layers.num_outputs, head.num_outputs)
            self.add_module(head_module(name), nn.ModuleDict({"layers": layers, "output": output}))
        self.embedding = EmbeddingLayers(self.trunk.num_outputs, num_pooled, embedding)
        self.proxies = Proxies(embedding, self.embedding.num_outputs) if embedding.proxies_per_class else None
        self.units = {name: (head.mean, head.std) for name, head in heads.items() if head.mean is not None}
        self.frozen_parameters: list[nn.Parameter] = []
        self.set_trained(train_layers)

    def set_trained(self, train_layers: str | int) -> None:
        """Choose the layers of the backbone that train, as in model.train_layers; trunk and heads always train."""
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
        for module in self.backbone.modules() if self.freeze_statistics else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """Return the pooled features (B, F) of the backbone."""
        if self.pool is None and not self.neck:
            return self.backbone(images)
        return self._pooled(self.backbone.forward_features(images))

    def _pooled(self, feature_map: Tensor) -> Tensor:
        if self.neck and has_channels_last(self.backbone):
            feature_map = self.neck(feature_map.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        elif self.neck:
            feature_map = self.neck(feature_map)
        return self.backbone.forward_head(feature_map) if self.pool is None else self.pool(feature_map)

    def below(self, images: Tensor) -> Tensor:
        """Return the input of the first layer that trains with a frozen backbone, or is random: the pooled features
        (B, F); with a neck, or a pool that learns, the backbone's feature map."""
        if self.learns_from_map:
            return self.backbone.forward_features(images)
        return self.features(images)

    def outputs(self, images: Tensor, shares: Tensor | None = None) -> Outputs:
        """Return logits, embedding and penalties for a training step. shares: (B,), each photo's weight in the mean of
        the penalties on activities; None: 1 / B."""
        return self.above(self.below(images), shares)

    def above(self, x: Tensor, shares: Tensor | None = None) -> Outputs:
        """Return `outputs` of what `below` returned."""
        pooled = self._pooled(x) if self.learns_from_map else x
        trunk, penalty = self.trunk(pooled, shares)
        embeddings, more = self.embedding(trunk, pooled, shares)
        logits, of_heads = self._logits(trunk.detach() if self.heads_are_probes else trunk, shares)
        cosines = self.proxies(embeddings) if self.proxies is not None else None
        return Outputs(logits, penalty + more + of_heads, embeddings, cosines)

    def _logits(self, x: Tensor, shares: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        """Return the logits for the trunk's output, and the penalty of the heads."""
        logits, penalty = {}, x.new_zeros(())
        for name in self.labels:
            head: Any = self.get_submodule(head_module(name))  # an nn.ModuleDict
            hidden, more = head["layers"](x, shares)
            logits[name] = head["output"](hidden)
            penalty = penalty + more
        for name, (mean, std) in self.units.items():
            logits[name] = logits[name].float() * std + mean  # 16 bits end at 65,504, and a price does not
        return logits, penalty

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self._logits_of_pooled(self.features(images))

    def logits_of(self, feature_map: Tensor) -> dict[str, Tensor]:
        """Return the logits that follow from what backbone.forward_features returned; `forward` cut in two."""
        return self._logits_of_pooled(self._pooled(feature_map))

    def _logits_of_pooled(self, pooled: Tensor) -> dict[str, Tensor]:
        trunk, _ = self.trunk(pooled)
        return self._logits(trunk, None)[0]

    def embed(self, images: Tensor, layer: str = "auto") -> Tensor:
        """Return embeddings (B, D), not normalised.

        layer: "pooled", the backbone's features; "trunk", its output; "embedding", which a metric loss has shaped;
        "auto", the last of these that has layers of its own.
        """
        pooled = self.features(images)
        layer = self.last_layer if layer == "auto" else layer
        if layer == "pooled":
            return pooled
        trunk, _ = self.trunk(pooled)
        return trunk if layer == "trunk" else self.embedding(trunk, pooled)[0]

    @property
    def last_layer(self) -> str:
        """The last of "pooled", "trunk" and "embedding" that has layers of its own."""
        if self.embedding.num_layers:
            return "embedding"
        return "trunk" if self.trunk.layers.hidden else "pooled"

    @torch.no_grad()
    def _create_neck_and_pool(self, neck: Neck, pool: str, size_px: int) -> int:
        """Return the number of features after the pool."""
        name = self.description["backbone"]
        self.neck, self.pool = nn.Sequential(), None
        was_training = self.backbone.training
        self.backbone.eval()
        try:
            if pool == "default" and not neck.blocks:
                return self.backbone(torch.zeros(1, 3, size_px, size_px)).shape[1]
            feature_map, left_over = take_feature_map(self.backbone, size_px)
            if getattr(feature_map, "ndim", None) != 4:  # tokens, or the feature maps of several sizes
                value, fix = (f"pool: {pool!r}", "default") if pool != "default" else ("neck: it", "model.neck=[]")
                raise InputError(f"model.{value} needs a feature map, and {name} gives tokens; use {fix}")
            channels_last = has_channels_last(self.backbone)
            self.neck = create_neck(neck, feature_map.shape[-1 if channels_last else 1])
            if pool == "default":
                return self.backbone.forward_head(feature_map).shape[1]
            leave_out(self.backbone, left_over, f"model.pool={pool}")
            self.pool = create_pool(pool, channels_last)
            return self.pool(feature_map).shape[1]
        except (RuntimeError, AssertionError) as error:
            brief = one_line(error, 160)
            raise InputError(f"data.image_px: {name} does not take images of {size_px} px ({brief})") from None
        finally:
            self.backbone.train(was_training)


def head_module(label: str) -> str:
    """Return the name of the module that holds a label's head, with "." written as "%2E", as names can't hold dots.

    Heads are not in one ModuleDict, which can't hold a label named "type".
    """
    return f"head_{label.replace('%', '%25').replace('.', '%2E')}"


def classifier_from(description: NetworkDescription, kind: type[Classifier] = Classifier) -> Classifier:
    """Create the Classifier that a description, possibly read from a file, describes; with random weights.

    kind: the class to create, a subclass without arguments of its own.
    """
    arguments: dict[str, Any] = {**description}
    heads, embedding = description["heads"], description.get("embedding", {})
    arguments["heads"] = {n: replace(Head(**head), layers=Layers(**head["layers"])) for n, head in heads.items()}
    arguments["trunk"] = Layers(**description["trunk"])
    arguments["neck"] = Neck(**description.get("neck", {}))
    layers: dict[str, Any] = {key: Layers(**embedding[key]) for key in ("layers", "difference") if key in embedding}
    arguments["embedding"] = replace(Embedding(**embedding), **layers)
    return kind(**arguments)
