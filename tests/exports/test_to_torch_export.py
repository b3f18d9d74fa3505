"""The .pt2 file: odd heads and networks, the description in it, nothing of the owner's machine."""

import json
import zipfile

import pytest
import torch

import carvision
from carvision.exports.graphs import export_torch
from tests.conftest import ROOT
from tests.exports.saved import save_model


@pytest.mark.parametrize(
    "network", [{"backbone": "test_vit", "size_px": 64}, {"backbone": "vgg11", "size_px": 32, "pool": "flatten"}]
)
@torch.no_grad()
def test_the_same_logits_for_any_batch(network, tmp_path):
    model = carvision.load(save_model(tmp_path, **network))
    export_torch(model, tmp_path / "model.pt2")
    files = {"model.json": ""}
    loaded = torch.export.load(tmp_path / "model.pt2", extra_files=files).module()
    for num in (1, 2, 5):
        images = torch.randn(num, 3, network["size_px"], network["size_px"])
        ours, theirs = model(images), loaded(images)
        assert list(theirs) == ["make", "model.name", "speed"]
        for name in ours:
            torch.testing.assert_close(theirs[name], ours[name], rtol=1e-5, atol=1e-5)
    assert json.loads(files["model.json"])["labels"] == model.about["labels"]
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        everything = b"".join(archive.read(name) for name in archive.namelist())
    for private in (str(ROOT), str(tmp_path), "secret", "site-packages"):
        assert private.encode() not in everything
