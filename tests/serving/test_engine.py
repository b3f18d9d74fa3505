"""Other engines agree with the network, and are used only if they are faster."""

import shutil

import pytest
import torch

import carvision
from carvision.errors import InputError
from carvision.serving.model import engine
from carvision.serving.model.engine import Network, build, checked, choose_network, random_pixels
from tests.serving.conftest import CPU


@pytest.fixture(scope="module")
def model(tiny_run):
    return carvision.load(tiny_run)


def require_agreement(model, name: str) -> None:
    eager = choose_network([model], CPU, "eager")
    other = choose_network([model], CPU, name)
    assert other.engine == name
    for num in (1, 3, 32):
        images = random_pixels(eager.predictor, num)
        wanted, found = eager(images), other(images)
        for head, values in wanted.items():
            assert values.shape == found[head].shape
            torch.testing.assert_close(found[head], values, rtol=1e-4, atol=1e-4 * float(values.abs().max()))


def test_onnx_agrees(model):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    require_agreement(model, "onnx")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler, which torch.compile needs")
def test_the_compiled_network_agrees(model):
    require_agreement(model, "compile")


def test_auto_takes_another_engine_only_if_it_agrees_and_is_faster(model, monkeypatch):
    seconds = {"eager": (1.0, 10.0), "compile": (1.0, 9.0), "onnx": (1.05, 5.0)}
    wrong = set()

    def make(models, device, name):
        network = Network(choose_network(models, device, "eager").predictor, device, name)
        if name in wrong:
            right = network.predictor
            network.predictor = lambda images: {head: 1.001 * values for head, values in right(images).items()}
        return network

    monkeypatch.setattr(engine, "timings", lambda networks: [seconds[network.engine] for network in networks])
    monkeypatch.setattr(engine, "build", make)
    assert choose_network([model], CPU, "auto").engine == "onnx"
    seconds["onnx"] = (1.2, 5.0)  # slower for one photo
    assert choose_network([model], CPU, "auto").engine == "compile"
    wrong.add("compile")
    assert choose_network([model], CPU, "auto").engine == "eager"


def test_what_disagrees_or_is_missing_is_refused(model, monkeypatch):
    eager = choose_network([model], CPU, "eager")
    other = Network(eager.predictor, CPU, "onnx")
    monkeypatch.setattr(
        Network, "__call__", lambda self, images: {"make": torch.ones(2, 2) * (1.001 if self is other else 1)}
    )
    with pytest.raises(InputError, match=r"--engine onnx: differs from the network by 1.0e-03"):
        checked(other, eager)
    with pytest.raises(InputError, match="--engine onnx: runs on the CPU here"):
        build([model], torch.device("meta"), "onnx")


def test_static_batches_are_padded_to_powers_of_two(model):
    sizes = []

    class Noted(torch.nn.Module):
        def forward(self, images):
            sizes.append(len(images[0]))
            return {"sum": images[0].float().sum(dim=(1, 2, 3))}

    network = Network(Noted(), CPU)
    network.static = True
    for num in (1, 2, 3, 5, 32):
        images = [torch.full((num, 3, 4, 4), 7, dtype=torch.uint8)]
        assert network(images)["sum"].tolist() == [7 * 48] * num
    assert sizes == [1, 2, 4, 8, 32]
