"""The .pt2 and .onnx files: odd networks, descriptions, errors. They run elsewhere: test_elsewhere.py."""

import json
import zipfile

import numpy as np
import onnxruntime
import pytest
import torch

import carvision
from carvision.errors import InputError
from carvision.exports import graphs
from carvision.exports.graphs import export_onnx, export_torch
from tests.conftest import ROOT
from tests.exports.conftest import RUN, save_model


@pytest.mark.parametrize("network", [("test_vit", 64), ("vgg11", 32)])
@torch.no_grad()
def test_the_same_logits_for_any_batch(network, tmp_path):
    model = carvision.load(save_model(tmp_path, *network, pool="flatten" if network[0] == "vgg11" else "default"))
    export_torch(model, tmp_path / "model.pt2")
    files = {"model.json": ""}
    loaded = torch.export.load(tmp_path / "model.pt2", extra_files=files).module()
    for num in (1, 2, 5):
        images = torch.randn(num, 3, network[1], network[1])
        ours, theirs = model(images), loaded(images)
        assert list(theirs) == ["make", "model.name", "speed"]
        for name in ours:
            torch.testing.assert_close(theirs[name], ours[name], rtol=1e-5, atol=1e-5)
    assert json.loads(files["model.json"])["labels"] == model.about["labels"]
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        everything = b"".join(archive.read(name) for name in archive.namelist())
    for private in (str(ROOT), str(tmp_path), "secret", "site-packages"):
        assert private.encode() not in everything


def test_the_metadata_describe_input_and_output(example_folder, exports):
    session = onnxruntime.InferenceSession(exports / "model.onnx")
    about = json.loads(session.get_modelmeta().custom_metadata_map["carvision"])
    model = carvision.load(example_folder / RUN)
    assert about["classes"] == model.classes and about["class_ids"] == model.class_ids
    assert about["size_px"] == 32 and tuple(about["mean"]) == model.preprocessing.mean
    assert (about["resize"], about["interpolation"]) == (model.preprocessing.resize, model.preprocessing.interpolation)
    assert about["parents"]["model"] == ["make", model.parents["model"][1].tolist()]
    assert about["decoding"] == "independent" and about["temperature"] == {"make": 1.0, "model": 1.0}
    assert about["crop_to_box"] is True
    assert [(one.name, one.shape) for one in session.get_inputs()] == [("images", ["batch", 3, 32, 32])]


def test_odd_heads_and_weights_in_a_second_file(tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "LARGEST_FILE_MB", 0)
    model = carvision.load(save_model(tmp_path))
    summary = export_onnx(model, tmp_path / "new" / "model.onnx")
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["model.onnx", "model.onnx.data"]
    images = torch.randn(4, 3, 64, 64)
    session = onnxruntime.InferenceSession(tmp_path / "new" / "model.onnx")
    with torch.no_grad():
        expected = model(images)
    outputs = session.run(["make", "model.name", "speed"], {"images": images.numpy()})
    for name, values in zip(expected, outputs, strict=True):
        np.testing.assert_allclose(values, expected[name].numpy(), rtol=1e-4, atol=1e-4)
    assert "outputs make, model.name, speed" in summary
    about = json.loads(session.get_modelmeta().custom_metadata_map["carvision"])
    assert about["units"] == {"speed": "km/h"}


def test_a_file_that_disagrees_a_missing_package_and_a_head_named_as_the_input_are_errors(tmp_path, monkeypatch):
    model = carvision.load(save_model(tmp_path))
    monkeypatch.setattr(graphs, "_write_onnx", lambda model, path: path.write_bytes(b"not ours"))
    monkeypatch.setattr(graphs, "_check_onnx", lambda *_: graphs.require_agreement(1e-3, graphs.ONNX_TOLERANCE, "it"))
    with pytest.raises(InputError, match=r"it differs from the run's network by 1.0e-03"):
        export_onnx(model, tmp_path / "model.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    monkeypatch.setattr(graphs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"onnx and onnxscript is not installed; pip install 'carvision\[onnx\]'"):
        export_onnx(model, tmp_path / "model.onnx")
    monkeypatch.undo()
    model.labels = ("make", "images")
    with pytest.raises(InputError, match="a head is called images, as the input; use --format torch-export"):
        export_onnx(model, tmp_path / "model.onnx")
