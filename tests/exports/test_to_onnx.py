"""The ONNX file: its metadata, odd networks, errors. That it runs elsewhere: test_clean_environments.py."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import carvision
from carvision.errors import InputError
from carvision.exports import graphs
from carvision.exports.graphs import export_onnx
from tests.exports.conftest import RUN
from tests.exports.saved import save_model


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


def test_the_file_is_valid_and_takes_any_batch(exports):
    network = onnx.load(exports / "model.onnx")
    onnx.checker.check_model(network, full_check=True)
    assert [(one.domain, one.version) for one in network.opset_import if not one.domain] == [("", 18)]
    (images,) = network.graph.input
    assert images.name == "images"
    batch, *rest = images.type.tensor_type.shape.dim
    assert batch.dim_param == "batch" and [one.dim_value for one in rest] == [3, 32, 32]


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
    assert "outputs make, model.name, speed" in summary and "in onnxruntime: " in summary
    about = json.loads(session.get_modelmeta().custom_metadata_map["carvision"])
    assert about["units"] == {"speed": "km/h"}


def test_a_file_that_disagrees_is_not_kept(tmp_path, monkeypatch):
    model = carvision.load(save_model(tmp_path))
    monkeypatch.setattr(graphs, "_write_onnx", lambda model, path: path.write_bytes(b"not ours"))

    def wrong(model, path):
        graphs.require_agreement(1e-3, graphs.ONNX_TOLERANCE, path.name)

    monkeypatch.setattr(graphs, "_check_onnx", wrong)
    with pytest.raises(InputError, match=r"model.onnx differs from the run's network by 1.0e-03"):
        export_onnx(model, tmp_path / "model.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_a_missing_package_and_a_head_named_as_the_input_are_errors(tmp_path, monkeypatch):
    model = carvision.load(save_model(tmp_path))
    real = graphs.importlib.util.find_spec
    monkeypatch.setattr(graphs.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name))
    with pytest.raises(InputError, match=r"onnxscript is not installed; pip install 'carvision\[onnx\]'"):
        export_onnx(model, tmp_path / "model.onnx")
    monkeypatch.undo()
    model.labels = ("make", "images")
    with pytest.raises(InputError, match="a head is called images, as the input; use --format torch-export"):
        export_onnx(model, tmp_path / "model.onnx")
