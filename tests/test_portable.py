"""The model that travels: the same figures after loading, and a clear refusal of what is no model."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import carvision
from carvision import portable
from carvision.data.images import Preprocessing, to_square
from carvision.errors import InputError
from carvision.models.classifier import Classifier, Head, Layers

LABELS = {
    "make": {"ids": ["3", "7"], "names": ["Audi", "BMW"], "parent": None, "parent_codes": []},
    "model": {"ids": ["1", "2", "9"], "names": ["A4", "X5", "X5"], "parent": "make", "parent_codes": [0, 1, 1]},
    "speed": {"unit": "km/h", "mean": 180.0, "std": 20.0},
}
PREPROCESSING = Preprocessing(32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    heads = {"make": Head(2, Layers((8,), dropout=0.5)), "model": Head(3), "speed": Head(1, Layers(), 180.0, 20.0)}
    return Classifier("test_resnet", heads, 32, trunk=Layers((16,), batch_norm=True)).eval()


@pytest.fixture
def saved(model, tmp_path):
    portable.save(model, tmp_path, LABELS, PREPROCESSING, "joint", {"test": {"make/top1": 0.9}}, {"seed": 0})
    return tmp_path


def test_the_loaded_model_gives_the_same_logits(model, saved):
    images = torch.randn(5, 3, 32, 32)
    for path in (saved, saved / "model.safetensors", str(saved)):
        loaded = carvision.load(path)
        assert not loaded.training
        with torch.no_grad():
            ours, theirs = model(images), loaded(images)
        assert all(torch.equal(ours[name], theirs[name]) for name in LABELS)
    assert loaded.classes == {"make": ["Audi", "BMW"], "model": ["A4", "X5", "X5"]}
    assert loaded.class_ids == {"make": ["3", "7"], "model": ["1", "2", "9"]}


def test_transform_is_the_training_preprocessing(saved):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    ours = carvision.load(saved).transform(image)
    pixels = to_square(image, PREPROCESSING) / 255
    mean, std = np.array(PREPROCESSING.mean)[:, None, None], np.array(PREPROCESSING.std)[:, None, None]
    np.testing.assert_allclose(ours.numpy(), (pixels - mean) / std, atol=1e-5)


def test_decode_uses_the_stored_rule(saved):
    logits = {"make": torch.tensor([[2.0, 0.0]]), "model": torch.tensor([[0.0, 1.0, 0.5]]), "speed": torch.ones(1, 1)}
    # joint: A4 of Audi has 2 + 0, X5 of BMW 0 + 1
    assert {k: v.item() for k, v in carvision.load(saved).decode(logits).items()} == {"make": 0, "model": 0}


def test_loading_imports_neither_lightning_nor_hydra(saved):
    code = (
        "import sys, carvision; assert 'torch' not in sys.modules; carvision.load(sys.argv[1]);"
        "found = {'pytorch_lightning', 'lightning', 'hydra', 'omegaconf', 'torchmetrics'} & set(sys.modules);"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code, str(saved)], check=True)


def _rewrite(folder, **changes):
    file = folder / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_refusals(saved, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(InputError, match="no model there"):
        carvision.load(empty)
    _rewrite(saved, format=portable.FORMAT + 1)
    with pytest.raises(InputError, match="is newer than"):
        carvision.load(saved)
    _rewrite(saved, format=portable.FORMAT, sha256="0" * 64)
    with pytest.raises(InputError, match="sha256 differs"):
        carvision.load(saved)
    (saved / "model.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        carvision.load(saved)


def test_weights_of_another_shape_are_refused(saved):
    described = json.loads((saved / "model.json").read_text())
    described["network"]["heads"]["make"]["num_outputs"] = 5
    (saved / "model.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match="damaged"):
        carvision.load(saved)
