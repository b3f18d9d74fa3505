"""Models saved and loaded: the same outputs after loading, and a clear refusal of anything else."""

import hashlib
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import carvision
from carvision.data.decode import decode_part
from carvision.data.images import INTERPOLATIONS
from carvision.errors import InputError
from carvision.inference import model_file
from carvision.models.backbones import read_weights
from carvision.models.classifier import Classifier, Head, Layers
from tests.inference.tiny import LABELS, PREPROCESSING, change, refusal, rewrite


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    heads = {"make": Head(2, Layers((8,), dropout=0.5)), "model": Head(3), "speed": Head(1, Layers(), 180.0, 20.0)}
    return Classifier("test_resnet", heads, 32, trunk=Layers((16,), batch_norm=True)).eval()


@pytest.fixture(scope="module")
def original(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    model_file.save(model, folder, LABELS, PREPROCESSING, "joint", {"test": {"make/top1": 0.9}}, {"seed": 0})
    return folder


@pytest.fixture
def saved(original, tmp_path):
    """Copy a saved model: saving waits for the disk."""
    return shutil.copytree(original, tmp_path / "run")


def test_the_loaded_model_gives_the_same_logits_and_its_description(model, saved):
    images = torch.randn(5, 3, 32, 32)
    for path in (str(saved), saved / "model.safetensors"):
        loaded = carvision.load(path)
        with torch.no_grad():
            ours, theirs = model(images), loaded(images)
        assert not loaded.training and all(torch.equal(ours[name], theirs[name]) for name in LABELS)
    assert loaded.classes == {"make": ["Audi", "BMW"], "model": ["A4", "X5", "X5"]}
    assert loaded.class_ids == {"make": ["3", "7"], "model": ["1", "2", "9"]}
    assert loaded.about["metrics"] == {"test": {"make/top1": 0.9}} and loaded.about["config"] == {"seed": 0}
    assert set(loaded.about["versions"]) == {"carvision", "torch", "timm"}
    child, (parent, codes) = next(iter(loaded.parents.items()))
    assert (child, parent, codes.tolist()) == ("model", "make", [0, 1, 1])
    model_file.save(model, saved, LABELS, PREPROCESSING, "joint", {}, {}, crop_to_box=True, averaged=True, epoch=7)
    loaded = carvision.load(saved)
    assert loaded.about["weights"] == {"file": "model.safetensors", "kind": "averaged", "epoch": 7}
    assert loaded.crop_to_box


def test_transform_is_the_training_preprocessing(saved):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    ours = carvision.load(saved).transform(image)
    size, kind = (PREPROCESSING.size_px,) * 2, INTERPOLATIONS[PREPROCESSING.interpolation]
    pixels = np.asarray(decode_part(image, PREPROCESSING).resize(size, kind)).transpose(2, 0, 1) / 255
    mean, std = np.array(PREPROCESSING.mean)[:, None, None], np.array(PREPROCESSING.std)[:, None, None]
    # torch and Pillow round otherwise when they resize: by one of 255
    np.testing.assert_allclose(ours.numpy(), (pixels - mean) / std, atol=1.01 / 255 / min(PREPROCESSING.std))


def test_the_stored_temperature_and_decoding_are_used(saved):
    rewrite(saved, temperature={"make": 2.0})
    loaded = carvision.load(saved)
    logits = {"make": torch.tensor([[2.0, 0.0]]), "model": torch.tensor([[0.0, 1.0, 0.5]]), "speed": torch.ones(1, 1)}
    # joint: A4 of Audi has 2 + 0, X5 of BMW 0 + 1
    assert {k: v.item() for k, v in loaded.decode(logits).items()} == {"make": 0, "model": 0}
    probs = loaded.probs(logits)
    assert set(probs) == {"make", "model"}
    np.testing.assert_allclose(probs["make"][0].numpy(), np.exp([1, 0]) / np.exp([1, 0]).sum(), rtol=1e-6)


def test_a_model_file_of_the_first_format_still_opens(saved):
    """It holds some values twice, no weights or temperature, and crop_to_box in its configuration alone."""
    described = json.loads((saved / "model.json").read_text())
    network, labels = described["network"], described["labels"]
    assert described["format"] == 3 and "size_px" not in network and set(network["heads"]["speed"]) == {"layers"}
    network["size_px"] = 32
    for name, head in network["heads"].items():
        head |= {"num_outputs": len(labels[name].get("ids", [0])), "mean": labels[name].get("mean")}
        head["std"] = labels[name].get("std")
    earlier = {key: value for key, value in described.items() if key not in ("weights", "crop_to_box")}
    earlier |= {"format": 1, "config": {"data": {"crop_to_box": True}}}
    (saved / "model.json").write_text(json.dumps(earlier))
    loaded = carvision.load(saved)
    assert loaded.crop_to_box and loaded.temperature["make"] == 1.0 and loaded.units == {"speed": (180.0, 20.0)}
    assert loaded.about["format"] == 3 and "size_px" not in loaded.about["network"]


def test_refusals(saved, tmp_path_factory):
    for hidden, words in (([9], "has the shape"), ([], "is no part of its network"), ([8, 8], "is not in its weights")):
        change(saved, "network.heads.make.layers.hidden", hidden)
        assert words in refusal(saved)
    change(saved, "network.heads.make.layers.hidden", [8])
    empty = tmp_path_factory.mktemp("empty")
    assert "no model there" in refusal(empty) and "no model there" in refusal(empty / "nowhere")
    groups = ("data", "loss", "augment", "optimizer", "schedule", "trainer", "callbacks")
    config = {**{group: {} for group in groups}, "model": {"backbone": "resnet50"}, "run": {"dir": None}}
    (empty / "config.yaml").write_text(yaml.safe_dump(config))
    assert f"its run is not finished; carvision train with the same words and run.dir={empty} resumes" in refusal(empty)
    rewrite(saved, format=model_file.FORMAT + 1)
    assert "is newer than" in refusal(saved)
    rewrite(saved, format=model_file.FORMAT, sha256="0" * 64)
    assert "sha256 differs" in refusal(saved)
    (saved / "model.safetensors").unlink()
    assert "model.safetensors does not exist" in refusal(saved)
    for text in ("{", "null", '{"format": "1"}', "[" * 100_000):
        (saved / "model.json").write_text(text)
        assert str(saved / "model.json") in refusal(saved)


class Bomb:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


@pytest.mark.parametrize("name", ["model.safetensors", "last.ckpt", "weights.pth"])
def test_a_pickle_that_poses_as_a_model_runs_nothing(saved, name, tmp_path):
    trace = tmp_path / "executed"
    file, content = saved / name, {"state_dict": Bomb(trace)}
    torch.save(content, file) if file.suffix == ".pth" else file.write_bytes(pickle.dumps(content, protocol=2))
    rewrite(saved, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    message = refusal(saved if name == "model.safetensors" else file)
    assert "damaged" in message or "not a model file" in message
    with pytest.raises(InputError, match=r"model\.weights"):
        read_weights(file)
    assert not trace.exists()
    pickle.loads(pickle.dumps(content))["state_dict"].close()  # the bomb works
    assert trace.exists()
