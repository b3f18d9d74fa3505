"""Embedder: a network from pixels to embeddings."""

import torch
from torch import Tensor, nn

from carvision.data.images import Preprocessing
from carvision.data.transforms import Normalise, to_float
from carvision.errors import InputError
from carvision.models.classifier import Classifier


class Embedder(nn.Module):
    """Maps images to embeddings; a drop-in replacement for Predictor in inference.reading.predict_items.

    layer: as in Classifier.embed. unit_length: normalise embeddings to length 1, so that their product is the cosine.
    Raises InputError for a layer that the network lacks.
    """

    def __init__(self, model: Classifier, preprocessing: Preprocessing, layer: str = "auto", unit_length: bool = True):
        super().__init__()
        available = ["pooled", "trunk", *(["embedding"] if model.embedding.num_layers else [])]
        self.layer = model.last_layer if layer == "auto" else layer
        if self.layer not in available:
            raise InputError(f"--layer: the network has no {layer} layers; use one of {', '.join(available)}")
        self.model, self.geometries, self.unit_length = model, [preprocessing], unit_length
        self.normalise = Normalise(preprocessing)
        self.eval()

    def forward(self, images: list[Tensor]) -> dict[str, Tensor]:
        """Map [uint8 (B, 3, size_px, size_px)] to {"embeddings": float32 (B, D)}."""
        # torch-xla has no inference mode
        with torch.no_grad() if images[0].device.type == "xla" else torch.inference_mode():
            values = self.model.embed(self.normalise(to_float(images[0])), self.layer).float()
            return {"embeddings": nn.functional.normalize(values, dim=1) if self.unit_length else values}
