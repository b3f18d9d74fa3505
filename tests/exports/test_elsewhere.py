"""Exports open where carvision is not installed, and give the run's logits; docs/export.md's examples run."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import carvision
from carvision.exports.shared import random_images
from tests.conftest import ROOT
from tests.exports.conftest import RUN

OURS = (
    "carvision pytorch_lightning lightning_fabric torchmetrics hydra omegaconf optuna pandas pyarrow scipy sklearn "
    "matplotlib rich onnx onnxscript"
)


def run_without(packages: str, code: str, folder: Path) -> None:
    """Run the code in the folder, in a new interpreter that can't import these packages."""
    code = f"import sys\nsys.modules.update(dict.fromkeys({packages.split()}))\n{code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_torch_export_needs_torch_alone_onnx_onnxruntime_and_timm_no_carvision(example_folder, exports, tmp_path):
    model = carvision.load(example_folder / RUN)
    images = random_images(3, 32)
    with torch.no_grad():
        expected = {"images": images, "features": model.features(images), **model(images)}
    np.savez(tmp_path / "expected.npz", **{name: values.numpy() for name, values in expected.items()})
    torch.save(expected, tmp_path / "expected.pt")
    code = f"""
import torch
expected = torch.load("expected.pt")
network = torch.export.load(r"{exports / "model.pt2"}").module()
logits = network(expected["images"])
assert list(logits) == ["make", "model"], list(logits)
for name, values in logits.items():
    torch.testing.assert_close(values, expected[name], rtol=0, atol=1e-5)
assert not {{"timm", "torchvision", "safetensors"}} & set(sys.modules)
import timm
network = timm.create_model("local-dir:{exports / "timm"}", pretrained=True).eval()
with torch.no_grad():
    torch.testing.assert_close(network(expected["images"]), expected["model"], rtol=0, atol=1e-5)
    network.reset_classifier(0)
    torch.testing.assert_close(network(expected["images"]), expected["features"], rtol=0, atol=1e-5)
"""
    run_without(OURS, code, tmp_path)
    code = f"""
import numpy, onnxruntime
expected = numpy.load("expected.npz")
session = onnxruntime.InferenceSession(r"{exports / "model.onnx"}")
names = [output.name for output in session.get_outputs()]
assert names == ["make", "model"], names
for name, values in zip(names, session.run(None, {{"images": expected["images"]}})):
    assert abs(values - expected[name]).max() < 1e-4
"""
    run_without(f"{OURS} torch torchvision timm safetensors PIL", code, tmp_path)


# The first line of each example.
MARKERS = ["plain PyTorch: fine-tune", "plain PyTorch: features", "timm", "Lightning", "ONNX", "torch.export", "hub"]


@pytest.mark.parametrize("marker", MARKERS)
def test_the_example_runs(marker, example_folder, monkeypatch):
    monkeypatch.chdir(example_folder)
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    found = [block for block in blocks if block.startswith(f"# {marker}\n")]
    assert len(found) == 1, f"docs/export.md has {len(found)} examples that begin with # {marker}"
    assert len(found[0].splitlines()) <= 12
    exec(compile(found[0], f"docs/export.md, {marker}", "exec"), {"__name__": "__main__"})
