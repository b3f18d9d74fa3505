"""Exports open where carvision is not installed, and give the run's logits."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.torch import save_file

import carvision
from carvision.exports.shared import random_images
from tests.exports.conftest import RUN

HOOK = """
import sys

class Only:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        known = name.partition(".")[0] in allowed or name.startswith("_sysconfigdata")
        return self.finder.find_spec(name, path, target) if known else None

    def __getattr__(self, name):
        return getattr(self.finder, name)

allowed = {*sys.stdlib_module_names, *sys.argv.pop(1).split(",")}
sys.meta_path[:] = [Only(finder) for finder in sys.meta_path]
"""


def run_with_only(packages: list[str], code: str, folder: Path) -> None:
    """Run the code in the folder, in a new interpreter that has these packages and what they need, and no others."""
    modules = ",".join(sorted(_modules_of(packages)))
    done = subprocess.run(
        [sys.executable, "-c", HOOK + code, modules], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def _modules_of(packages: list[str]) -> set[str]:
    found, wanted = set(), list(packages)
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in found:
            continue
        try:
            needed = [Requirement(text) for text in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:  # needed on other systems only
            continue
        found.add(name)
        wanted += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    modules = metadata.packages_distributions()
    return {module for module, names in modules.items() if found.intersection(map(canonicalize_name, names))}


@pytest.fixture(scope="module")
def expected(example_folder, tmp_path_factory):
    """A folder with images, and the run's logits and features for them."""
    folder = tmp_path_factory.mktemp("expected")
    model = carvision.load(example_folder / RUN)
    images = random_images(3, 32)
    with torch.no_grad():
        expected = {"images": images, "features": model.features(images), **model(images)}
    save_file(expected, folder / "expected.safetensors")
    np.savez(folder / "expected.npz", **{name: values.numpy() for name, values in expected.items()})
    torch.save(expected, folder / "expected.pt")
    return folder


def test_torch_export_needs_torch_alone_and_timm_no_carvision(exports, expected):
    code = f"""
import torch
expected = torch.load("expected.pt")
network = torch.export.load(r"{exports / "model.pt2"}").module()
logits = network(expected["images"])
assert list(logits) == ["make", "model"], list(logits)
for name, values in logits.items():
    torch.testing.assert_close(values, expected[name], rtol=0, atol=1e-5)
assert not {{"timm", "torchvision", "carvision", "safetensors"}} & set(sys.modules)
import timm
from safetensors.torch import load_file
from importlib.util import find_spec
assert not any(map(find_spec, ["carvision", "pytorch_lightning", "hydra", "pandas", "torchmetrics", "onnx"]))
expected = load_file("expected.safetensors")
network = timm.create_model("local-dir:{exports / "timm"}", pretrained=True).eval()
with torch.no_grad():
    torch.testing.assert_close(network(expected["images"]), expected["model"], rtol=0, atol=1e-5)
    network.reset_classifier(0)
    torch.testing.assert_close(network(expected["images"]), expected["features"], rtol=0, atol=1e-5)
"""
    run_with_only(["torch", "torchvision", "timm", "safetensors"], code, expected)


def test_onnx_needs_onnxruntime_and_numpy_alone(exports, expected):
    code = f"""
import importlib.util, numpy, onnxruntime
assert importlib.util.find_spec("torch") is None
expected = numpy.load("expected.npz")
session = onnxruntime.InferenceSession(r"{exports / "model.onnx"}")
names = [output.name for output in session.get_outputs()]
assert names == ["make", "model"], names
for name, values in zip(names, session.run(None, {{"images": expected["images"]}})):
    assert abs(values - expected[name]).max() < 1e-4
"""
    run_with_only(["onnxruntime", "numpy"], code, expected)
