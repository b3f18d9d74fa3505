"""Whatever a package does when it is imported, there is an answer."""

import subprocess

import pytest

from carvision.diagnosis import probe as probing
from carvision.diagnosis.probe import probe, probe_together
from tests.diagnosis.stubs import python_path, write_stub

NMS = "raise RuntimeError('operator torchvision::nms does not exist')"
SEGFAULT = (
    "import os, signal, sys\nprint('about to fall', file=sys.stderr, flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)"
)


@pytest.fixture
def stub(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", python_path(tmp_path))
    return lambda name, code="": write_stub(tmp_path, name, code)


def test_an_import_that_raises_or_exits_or_prints_is_told(stub):
    stub("one", NMS)
    stub("two", "raise SystemExit(3)")
    stub("three", "print('{')")
    found = probe(["import:one", "import:two", "import:three", "import:not_there"])
    assert found["import:one"]["error"] == "RuntimeError: operator torchvision::nms does not exist"
    assert "SystemExit" in found["import:two"]["error"]
    assert "error" not in found["import:three"] and found["import:three"]["seconds"] >= 0
    assert "No module named" in found["import:not_there"]["error"]


@pytest.mark.parametrize(
    "code, message",
    [
        (SEGFAULT, "the process was ended by SIGSEGV (about to fall)"),
        ("import os\nos._exit(7)", "the process ended with status 7"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGILL)", "SIGILL: the processor lacks an instruction"),
    ],
)
def test_a_crash_is_told_and_the_rest_goes_on(stub, code, message):
    stub("good")
    stub("bad", code)
    found = probe(["import:good", "import:bad", "import:json"])
    assert message in found["import:bad"]["error"]
    assert "error" not in found["import:good"] and "error" not in found["import:json"]


def test_an_import_that_hangs_is_given_up(stub):
    stub("asleep", "import time\ntime.sleep(60)")
    found = probe(["import:asleep", "import:json"], limit_s=3)
    assert found["import:asleep"]["error"] == "did not answer within 3 seconds"
    assert "error" not in found["import:json"]


@pytest.mark.parametrize("code", [NMS, SEGFAULT])
def test_what_needs_torch_is_not_tried_without_it(stub, code):
    stub("torch", code)
    steps = ["import:torch", "import:torchvision", "import:timm", "devices"]
    assert list(probe(steps)) == ["import:torch"]


def test_no_process_can_be_started(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    found = probe_together([["import:json"], ["import:torch", "devices"]])
    assert found.keys() == {"import:json", "import:torch"}
    assert all("Cannot allocate memory" in answer["error"] for answer in found.values())


def test_a_stub_torch_with_a_gpu_tells_of_it(stub):
    stub("torch", GPU)
    found = probe(["import:torch", "devices"])["devices"]
    assert found["gpus"][0] == {"name": "Fast 1", "free": 10, "total": 20, "capability": [9, 0]}
    assert found["gpus"][1]["error"] == "RuntimeError: CUDA error: unknown error".removeprefix("RuntimeError: ")
    assert found["architectures"] == ["sm_80", "sm_90"]
    stub("torch", GPU.replace("is_available = lambda: True", "is_available = lambda: False"))
    found = probe(["import:torch", "devices"])["devices"]
    assert found["gpus"] == [] and "driver on your system is too old" in found["cuda_error"]


GPU = """
from types import SimpleNamespace as Space
version = Space(cuda="12.8", hip=None)
get_num_threads = lambda: 4
backends = Space(
    cpu=Space(get_cpu_capability=lambda: "AVX2"), mps=Space(is_available=lambda: False),
    cudnn=Space(version=lambda: 9000),
)
def info(number):
    if number:
        raise RuntimeError("CUDA error: unknown error")
    return 10, 20
def init():
    raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).")
cuda = Space(
    is_available = lambda: True, init=init, get_arch_list=lambda: ["sm_80", "sm_90"], device_count=lambda: 2,
    mem_get_info=info, get_device_capability=lambda number: (9, 0), get_device_name=lambda number: f"Fast {number + 1}",
)
"""


def test_signals_have_names():
    assert probing._how_it_ended(-9).startswith("was ended by SIGKILL")
    assert probing._how_it_ended(-63) == "was ended by signal 63"
