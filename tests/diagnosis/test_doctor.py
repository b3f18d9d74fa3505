"""The doctor on this machine and where packages are broken; steps that crash, hang or print still get an answer."""

import ast
import json
import os
import subprocess
from unittest import mock

import pytest

import carvision.doctor
from carvision.diagnosis import examine as examining
from carvision.diagnosis import packages
from carvision.diagnosis.examine import examine
from carvision.diagnosis.findings import SEVERITIES, Finding
from carvision.diagnosis.probe import probe
from carvision.system.versions import requirements
from tests.conftest import ROOT

NMS = "raise RuntimeError('operator torchvision::nms does not exist')"
SEGFAULT = "import os, sys\nprint('about to fall', file=sys.stderr, flush=True)\nos.kill(os.getpid(), 11)"
# A torch with a good and a broken GPU
GPU = """
from types import SimpleNamespace as Space
version, get_num_threads = Space(cuda="12.8", hip=None), lambda: 4
backends = Space(mps=Space(is_available=lambda: False))
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


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A function that puts a package that does nothing but run its code before all others."""
    others = filter(None, [os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "stubs"), *others]))

    def write(name: str, code: str = "") -> None:
        (tmp_path / "stubs" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "stubs" / name / "__init__.py").write_text(code)

    return write


@pytest.mark.slow
def test_this_machine(run_module, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no photo")
    done = run_module("carvision.doctor", "--data", tmp_path)
    assert done.returncode == 1 and not done.stderr, done.stderr
    for word in ("carvision", "Python", "processor", "torch 2", "disk", "decoding", "photos a second", "1 of 1 photos"):
        assert word in flat(done.stdout), word


def test_a_torch_that_kills_its_process_as_json(run_module, stub):
    stub("torch", SEGFAULT)
    done = run_module("carvision.doctor", "--json", "--data", "photos")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr, done.stderr
    found = json.loads(done.stdout)
    assert {"carvision", "Python", "processor", "packages", "disk"} <= set(dict(found["machine"]))
    assert all({"severity", "subject", "what", "mend"} == set(finding) for finding in found["findings"])
    assert found["findings"][0]["subject"] == "torch" and found["findings"][0]["severity"] == "breaks"
    assert "can't be imported: the process was killed by SIGSEGV (about to fall)" in found["findings"][0]["what"]
    assert "decoding" in {finding["subject"] for finding in found["findings"]}  # which could not be measured


def test_missing_packages_a_part_that_fails_and_the_worst_come_first(monkeypatch, capsys):
    findings = [Finding("note", "c", "x"), Finding("slow", "b", "x"), Finding("breaks", "a", "x", "do it")]
    monkeypatch.setattr(examining, "read_versions", lambda: dict.fromkeys(map(packages.name_of, requirements())))
    monkeypatch.setattr(examining, "probe", lambda steps: {})
    monkeypatch.setattr(examining.hardware, "read_gpus", mock.Mock(side_effect=ZeroDivisionError("odd machine")))
    monkeypatch.setattr(examining.packages, "examine_variables", lambda *_: iter(findings))
    found = examine(None, "runs", lambda text: None).findings
    ranks = [SEVERITIES.index(finding.severity) for finding in found]
    assert ranks == sorted(ranks)
    assert Finding("breaks", "torch", "is not installed", "pip install 'torch>=2.6'") in found
    what = "this part of the machine could not be examined (ZeroDivisionError: odd machine)"
    assert Finding("note", "GPUs", what) in found
    assert carvision.doctor.doctor(["--out", __file__]) == 1
    text = flat(capsys.readouterr().out)
    assert "breaks a: x fix: do it" in text and "is a file, not a folder" in text


def test_an_older_python_can_read_the_doctor():
    own = ROOT / "carvision"
    diagnosis = [file for file in (own / "diagnosis").glob("*.py") if file.name != "__init__.py"]
    for file in (own / "doctor.py", own / "system/versions.py", own / "system/machine.py", *diagnosis):
        source = file.read_text(encoding="utf-8")
        ast.parse(source, feature_version=(3, 9))
        assert "from __future__ import annotations" in source, file


def test_imports_that_raise_exit_print_crash_or_hang(stub):
    codes = {"one": NMS, "two": "raise SystemExit(3)", "three": "print('{')"}
    for name, code in codes.items():
        stub(name, code)
    found = probe([f"import:{name}" for name in (*codes, "not_there", "json")])
    errors = [answer.get("error") for answer in found.values()]
    assert errors[0] == "RuntimeError: operator torchvision::nms does not exist" and "SystemExit" in errors[1]
    assert errors[2] is errors[4] is None and "No module named" in errors[3]
    assert found["import:json"]["seconds"] >= 0
    for code, error in (
        (SEGFAULT, "the process was killed by SIGSEGV (about to fall)"),
        ("import os\nos._exit(7)", "the process ended with status 7"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGILL)", "SIGILL (the processor lacks an instruction"),
        ("import time\ntime.sleep(60)", "did not answer within 3 seconds"),
    ):
        stub("falls", code)
        found = probe(["import:json", "import:falls", "import:re"], limit_s=3)
        assert list(found) == ["import:json", "import:falls"] and error in found["import:falls"]["error"]


def test_what_needs_torch_is_not_tried_without_it_nor_anything_without_a_process(stub, monkeypatch):
    stub("torch", NMS)
    assert list(probe(["import:torch", "import:torchvision", "devices"])) == ["import:torch"]
    monkeypatch.setattr(subprocess, "run", mock.Mock(side_effect=OSError(12, "Cannot allocate memory")))
    assert "Cannot allocate memory" in probe(["import:json", "devices"])["import:json"]["error"]


def test_the_gpus_that_torch_finds(stub):
    stub("torch", GPU)
    found = probe(["import:torch", "devices"])["devices"]
    assert found["gpus"][0] == {"name": "Fast 1", "free": 10, "total": 20, "capability": [9, 0]}
    assert found["gpus"][1]["error"] == "CUDA error: unknown error" and found["architectures"] == ["sm_80", "sm_90"]
    stub("torch", GPU.replace("is_available = lambda: True", "is_available = lambda: False"))
    found = probe(["import:torch", "devices"])["devices"]
    assert found["gpus"] == [] and "driver on your system is too old" in found["cuda_error"]
