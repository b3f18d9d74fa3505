"""Steps that crash, hang or print in a child process still get an answer."""

import os
import subprocess
from pathlib import Path
from unittest import mock

import pytest

from carvision.diagnosis.probe import probe, probe_together

NMS = "raise RuntimeError('operator torchvision::nms does not exist')"
SEGFAULT = "import os, sys\nprint('about to fall', file=sys.stderr, flush=True)\nos.kill(os.getpid(), 11)"
# A torch with a good and a broken GPU
GPU = """
from types import SimpleNamespace as Space
version, get_num_threads = Space(cuda="12.8", hip=None), lambda: 4
backends = Space(cpu=Space(get_cpu_capability=lambda: "AVX2"), mps=Space(is_available=lambda: False))
backends.cudnn = Space(version=lambda: 9000)
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


def python_path(stubs: Path) -> str:
    """Return a PYTHONPATH on which the stubs come first."""
    return os.pathsep.join([str(stubs), *filter(None, [os.environ.get("PYTHONPATH")])])


def write_stub(folder: Path, name: str, code: str = "") -> None:
    """Write a package that does nothing but run the code."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "__init__.py").write_text(code)


@pytest.fixture
def stub(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", python_path(tmp_path))
    return lambda name, code="": write_stub(tmp_path, name, code)


def test_imports_that_raise_exit_print_or_crash(stub):
    codes = {"one": NMS, "two": "raise SystemExit(3)", "three": SEGFAULT, "four": "print('{')"}
    codes |= {"five": "import os\nos._exit(7)", "six": "import os, signal\nos.kill(os.getpid(), signal.SIGILL)"}
    for name, code in codes.items():
        stub(name, code)
    found = probe([f"import:{name}" for name in (*codes, "not_there", "json")])
    errors = {step.partition(":")[2]: answer.get("error") for step, answer in found.items()}
    assert errors.pop("one") == "RuntimeError: operator torchvision::nms does not exist"
    assert "SystemExit" in errors.pop("two") and "No module named" in errors.pop("not_there")
    assert errors.pop("three") == "the process was killed by SIGSEGV (about to fall)"
    assert errors.pop("five") == "the process ended with status 7 ({)"
    assert "SIGILL (the processor lacks an instruction" in errors.pop("six")
    assert errors == {"four": None, "json": None} and found["import:json"]["seconds"] >= 0


def test_an_import_that_hangs(stub):
    stub("asleep", "import time\ntime.sleep(60)")
    found = probe(["import:asleep", "import:json"], limit_s=3)
    assert found["import:asleep"]["error"] == "did not answer within 3 seconds"
    assert "error" not in found["import:json"]


@pytest.mark.parametrize("code", [NMS, SEGFAULT])
def test_what_needs_torch_is_not_tried_without_it(stub, code):
    stub("torch", code)
    assert list(probe(["import:torch", "import:torchvision", "import:timm", "devices"])) == ["import:torch"]


def test_no_process_can_be_started(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", mock.Mock(side_effect=OSError(12, "Cannot allocate memory")))
    found = probe_together([["import:json"], ["import:torch", "devices"]])
    assert found.keys() == {"import:json", "import:torch"}
    assert all("Cannot allocate memory" in answer["error"] for answer in found.values())


def test_the_gpus_that_torch_finds(stub):
    stub("torch", GPU)
    found = probe(["import:torch", "devices"])["devices"]
    assert found["gpus"][0] == {"name": "Fast 1", "free": 10, "total": 20, "capability": [9, 0]}
    assert found["gpus"][1]["error"] == "CUDA error: unknown error" and found["architectures"] == ["sm_80", "sm_90"]
    stub("torch", GPU.replace("is_available = lambda: True", "is_available = lambda: False"))
    found = probe(["import:torch", "devices"])["devices"]
    assert found["gpus"] == [] and "driver on your system is too old" in found["cuda_error"]
