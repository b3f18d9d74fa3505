"""The embedding of a network: what a metric loss shapes, and the class weights (proxies) that some of them learn."""

from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from carvision.models.dense import NO_LAYERS, Dense, Layers, LayersDescription, layers_from


@dataclass(frozen=True)
class Embedding:
    """layers: of the embedding itself, on what the trunk gives; none: it is what the trunk gives.

    difference: a branch beside the trunk, on the same pooled features; the embedding's layers then take both, joined.
    That is the mixed difference network of DRDL (Liu et al. 2016), on any backbone: the trunk with its heads learns the
    model, the other branch what differs between photos of one model.
    proxies_per_class: class weights that a metric loss learns (ArcFace: 1, sub-centre ArcFace: several); 0: none.
    num_classes: of them.
    """

    layers: Layers = NO_LAYERS
    difference: Layers = NO_LAYERS
    proxies_per_class: int = 0
    num_classes: int = 0


NO_EMBEDDING = Embedding()


class EmbeddingDescription(TypedDict, total=False):
    """An Embedding as plain values, as in model.json."""

    layers: LayersDescription
    difference: LayersDescription
    proxies_per_class: int
    num_classes: int


def embedding_from(description: EmbeddingDescription) -> Embedding:
    """Return the Embedding that plain values describe."""
    values: dict[str, Any] = {**description}
    values |= {key: layers_from(values[key]) for key in ("layers", "difference") if key in values}
    return Embedding(**values)


class EmbeddingLayers(nn.Module):
    """(what the trunk gives (B, T), pooled features (B, P)) -> ((B, D), penalty: a scalar), see Embedding."""

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
        """(B, D) -> float32 (B, C): the cosine to the nearest of a class' proxies (Deng et al. 2020)."""
        with torch.autocast(embeddings.device.type, enabled=False):  # a margin is lost in the steps of bfloat16
            proxies = normalize(self.weight.float(), dim=2).flatten(0, 1)
            cosines = normalize(embeddings.float(), dim=1) @ proxies.T
        return cosines.view(len(embeddings), *self.weight.shape[:2]).amax(dim=2)
