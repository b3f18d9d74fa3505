"""carvision.predict, the function for apps and services."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import carvision
from carvision.errors import InputError
from tests.inference.tiny import save_tiny, write_photos

IMAGE = Image.new("RGB", (9, 9))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"), 7)


def test_the_values_are_those_of_the_loaded_model(run, photos):
    model = carvision.load(run)
    boxes = [(3, 4, 40, 30), *[None] * 6]
    found = carvision.predict(model, photos, boxes=boxes, top=2, batch_size=3)
    assert [row["path"] for row in found] == [str(file) for file in photos]
    for file, box, row in zip(photos, boxes, found, strict=True):
        with torch.no_grad():
            logits = model(model.transform(Image.open(file), box=box)[None])
        assert list(row) == ["path", "make", "model", "speed", "error"] and row["error"] is None
        assert row["speed"] == pytest.approx(logits["speed"].item(), rel=1e-5)
        for head, code in model.decode(logits).items():
            probs = logits[head][0].softmax(0)
            assert row[head][0]["id"] == model.class_ids[head][code] and len(row[head]) == 2
            assert row[head][0]["name"] == model.classes[head][code]
            assert row[head][0]["prob"] == pytest.approx(probs[code].item(), rel=1e-4)
            rest = [p for i, p in enumerate(probs.tolist()) if i != code.item()]
            assert row[head][1]["prob"] == pytest.approx(max(rest), rel=1e-4)
    assert len({row["model"][0]["prob"] for row in found}) == 7  # each photo its own


def test_images_and_paths_models_and_folders_give_the_same(run, photos):
    by_path = carvision.predict(run, photos, top=9)
    by_image = carvision.predict(str(run / "model.safetensors"), [Image.open(file) for file in photos], top=9)
    assert all(row.pop("path") is None for row in by_image)
    assert by_image == [{k: v for k, v in row.items() if k != "path"} for row in by_path]
    assert [len(by_path[0][head]) for head in ("make", "model")] == [2, 3]
    assert carvision.predict(run, []) == []


def test_photos_that_cant_be_used_have_their_reason(run, photos, tmp_path, monkeypatch):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "torn.jpg").write_bytes(photos[0].read_bytes()[:300])
    monkeypatch.setattr("carvision.data.images.MAX_PIXELS", 10_000)
    bomb = Image.new("1", (200, 100))
    given = [tmp_path / "none.jpg", photos[0], tmp_path / "empty.jpg", tmp_path / "torn.jpg", bomb, photos[1]]
    found = carvision.predict(run, given, boxes=[None] * 5 + [(60, 60, 70, 70)])
    assert found[0] == {"path": str(given[0]), "make": [], "model": [], "speed": None, "error": "the file is missing"}
    for row, reason in zip(found, ("missing", None, "empty", "", "bomb", "box 60 60 70 70 "), strict=True):
        assert (row["error"] is None) == (reason is None) and (reason is None or reason in row["error"])
    alone = carvision.predict(run, [photos[0]])[0]
    assert found[1]["make"][0]["prob"] == pytest.approx(alone["make"][0]["prob"], rel=1e-5)


@pytest.mark.parametrize(("photos", "options", "message"), [
    ("a.jpg", {}, "is one photo; give a list"), ([IMAGE] * 7, {"boxes": [None]}, "boxes: 1 for 7 photos"),
    ([IMAGE], {"boxes": [(1, 2)]}, r"boxes: \(1, 2\) is not left, top, right, bottom"),
    ([IMAGE, None], {}, "photos: number 2 is a NoneType, not a path or a PIL image"),
    ([np.zeros((9, 9, 3), np.uint8)], {}, "is a ndarray, .*fromarray"),
    ([IMAGE], {"top": 0}, "top and batch_size: 0 and 32"), ([IMAGE], {"device": "nowhere"}, "--device: 'nowhere'"),
    ([IMAGE], {"model": torch.nn.Linear(1, 1)}, "a Linear is not a model of carvision.load"),
])  # fmt: skip
def test_mistakes_are_named(run, photos, options, message):
    with pytest.raises(InputError, match=message):
        carvision.predict(**{"model": run, "photos": photos} | options)


# In one process, as torch's import takes seconds
CODE = """
import os, sys, carvision
assert "torch" not in sys.modules
model = carvision.load(sys.argv[1])
libraries = {"pytorch_lightning", "lightning", "hydra", "omegaconf", "torchmetrics"}
assert not libraries & set(sys.modules)
[row] = carvision.predict(sys.argv[1], [sys.argv[2]], top=2)
assert len(row["make"]) == 2 and not libraries & set(sys.modules)

# The command of the same name hides the function neither before nor after it is imported
assert callable(carvision.predict) and "carvision.predict" not in sys.modules
import carvision.predict
assert "OMP_WAIT_POLICY" not in os.environ
assert carvision.predict(model, sys.argv[2:], top=2) == [row]
from carvision import predict
assert predict(sys.argv[1], sys.argv[2:], boxes=[None], top=2) == [row]
"""


def test_a_program_of_its_own(run, photos):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    subprocess.run([sys.executable, "-c", CODE, str(run), str(photos[0])], check=True, env=environment)
