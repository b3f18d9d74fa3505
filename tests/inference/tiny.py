"""A tiny model with confident predictions, photos for it, and its model.json changed by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import carvision
from carvision.data.images import Preprocessing
from carvision.errors import InputError
from carvision.inference import model_file
from carvision.models.classifier import Classifier, Head, Layers

LABELS = {
    "make": {"ids": ["3", "7"], "names": ["Audi", "BMW"], "parent": None, "parent_codes": []},
    "model": {"ids": ["1", "2", "9"], "names": ["A4", "X5", "X5"], "parent": "make", "parent_codes": [0, 1, 1]},
    "speed": {"unit": "km/h", "mean": 180.0, "std": 20.0},
}
NETWORK = ("test_resnet", {})  # backbone, its arguments
PREPROCESSING = Preprocessing(32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def save_tiny(
    folder: Path, seed=0, crop_to_box=False, preprocessing=PREPROCESSING, labels=LABELS, network=NETWORK
) -> Path:
    """Save a model with two heads with classes and one number, decoded jointly; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    heads = {name: Head(len(label.get("ids", [0]))) for name, label in labels.items()}
    heads["speed"] = Head(1, Layers(), 180.0, 20.0)
    backbone, options = network
    model = Classifier(backbone, heads, preprocessing.size_px, options).eval()
    with torch.no_grad():  # larger weights, for predictions that differ from photo to photo
        for name in ("make", "model"):
            model.get_submodule(f"head_{name}").output.weight.mul_(40)
    model_file.save(model, folder, labels, preprocessing, "joint", {}, {}, crop_to_box=crop_to_box)
    return folder


def write_photos(folder: Path, num: int, seed: int = 0) -> list[Path]:
    """Write small coloured JPEGs 000.jpg, 001.jpg, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    files = [folder / f"{i:03d}.jpg" for i in range(num)]
    for file in files:
        blocks = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((50, 40), Image.Resampling.NEAREST).save(file)
    return files


def change(folder: Path, key: str, value) -> None:
    """Set the value of a dotted key of model.json."""
    file = folder / "model.json"
    described = inner = json.loads(file.read_text())
    *parents, last = key.split(".")
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    file.write_text(json.dumps(described))


def rewrite(folder: Path, **changes) -> None:
    for key, value in changes.items():
        change(folder, key, value)


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        carvision.load(path)
    assert "\n" not in str(error.value)
    return str(error.value)
