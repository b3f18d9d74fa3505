"""Small untrained models, saved as a run leaves them."""

from pathlib import Path

import torch

from carvision.data.images import Preprocessing
from carvision.inference import model_file
from carvision.models.classifier import Classifier, Head
from carvision.models.parts import NO_LAYERS, Layers

LABELS = {
    "make": {"ids": ["3", "7"], "names": ["Audi", "BMW"], "parent": None, "parent_codes": []},
    "model.name": {"ids": ["1", "2", "9"], "names": ["A4", "X5", "X5"], "parent": "make", "parent_codes": [0, 1, 1]},
    "speed": {"unit": "km/h", "mean": 180.0, "std": 20.0},
}
CONFIG = {
    "data": {"name": "manifest", "root": "/home/owner/secret/cars", "file": "secret/table.csv"},
    "run": {"dir": "secret/runs/mine"},
    "model": {"weights": "C:\\secret\\runs\\first", "backbone": "test_resnet"},
    "more": [{"anything": "/home/owner/secret/else"}],
}
METRICS = {
    "val": {"loss": 1.0, "make/top1": 0.75, "model.name/top1": 0.5, "speed/mae": 12.0, "joint/top1": 0.4},
    "test": {"loss": 1.1, "make/top1": 0.7, "model.name/top1": 0.45, "model.name/auc": float("nan"), "speed/mae": 13.0},
}


def save_model(
    folder: Path, backbone: str = "test_resnet", size_px: int = 64, head_layers: Layers = NO_LAYERS, **network
) -> Path:
    """A Classifier with the heads of LABELS and random weights, in `folder`. head_layers: of "make"."""
    torch.manual_seed(0)
    heads = {"make": Head(2, head_layers), "model.name": Head(3), "speed": Head(1, NO_LAYERS, 180.0, 20.0)}
    model = Classifier(backbone, heads, size_px, **network)
    for buffer_name, buffer in model.named_buffers():  # as training leaves them, so that a mix-up would show
        if buffer_name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    folder.mkdir(parents=True, exist_ok=True)
    preprocessing = Preprocessing(size_px, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), "bicubic", "squash")
    model_file.save(model, folder, LABELS, preprocessing, "joint", METRICS, CONFIG)
    return folder
