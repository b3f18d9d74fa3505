"""Small untrained models as a run leaves them, and a tiny trained run, exported in every format once for all tests."""

import shutil
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from carvision.config.compose import conf_dir, plain_config
from carvision.data.images import Preprocessing
from carvision.inference import model_file
from carvision.models.classifier import Classifier, Head
from carvision.models.parts import NO_LAYERS, Layers
from tests.inference.tiny import LABELS as TINY_LABELS

RUN = Path("runs/demo/2026-01-31_12-00-00")  # as the examples of docs/export.md name it
LABELS = {name.replace("model", "model.name"): label for name, label in TINY_LABELS.items()}
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


def save_model(folder: Path, backbone="test_resnet", size_px=64, head_layers: Layers = NO_LAYERS, **network) -> Path:
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


@pytest.fixture(scope="session")
def example_folder(demo_photos, tmp_path_factory) -> Path:  # once: tracing and ONNX take seconds each
    """A folder in which the examples of docs/export.md run: the run RUN with its exports, a.jpg and b.jpg."""
    from carvision.exports.write import write
    from carvision.training.run.start import train

    folder = tmp_path_factory.mktemp("example_folder")
    overrides = [f"run.dir={folder / RUN}", f"data.root={demo_photos}", "data.images_per_model=20", "data.image_px=32"]
    overrides += ["data.num_workers=0", "trainer.max_epochs=1", "callbacks.progress_bar=false"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        train(plain_config(compose("train", overrides=overrides)), "demo")
    write(folder / RUN, dict.fromkeys(("onnx", "torch-export", "timm", "hub")), None)
    for name, photo in zip(("a.jpg", "b.jpg"), sorted(demo_photos.rglob("*.jpg")), strict=False):
        shutil.copy(photo, folder / name)
    return folder


@pytest.fixture(scope="session")
def exports(example_folder) -> Path:
    """The folder of the exports of RUN: model.onnx, model.pt2, timm, hub."""
    return example_folder / RUN / "export"
