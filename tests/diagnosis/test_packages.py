"""Versions, builds, imports, environment variables and compilers, judged from facts."""

import sys
import tomllib
from types import SimpleNamespace

import pytest

from carvision.diagnosis import packages
from carvision.system.versions import read_versions, requirements
from tests.conftest import ROOT
from tests.diagnosis.test_probe import write_stub

NMS = {"import:torchvision": {"error": "RuntimeError: operator torchvision::nms does not exist"}}


def test_the_oldest_python_is_that_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={'.'.join(map(str, packages.OLDEST_PYTHON))}"
    assert packages.judge_python((3, 11, 0)) == []
    [finding] = packages.judge_python((3, 9, 7))
    assert finding.severity == "breaks" and "is 3.9.7; carvision needs 3.11" in finding.what


def test_what_is_installed_here_is_in_order():
    assert packages.judge_versions(requirements(), read_versions()) == []
    for version in ("2.6.0+cpu", "2.15.0+cu132", "2.16.0.dev20261101+cu132", "2.9.0a0+git123"):
        assert packages.judge_versions(["torch>=2.6"], {"torch": version}) == []
    assert packages.judge_builds(read_versions(), {}) == packages.judge_shadowed_modules(read_versions(), {}) == []


def test_a_missing_or_wrong_version():
    for version, what, fix in (
        (None, "is not installed", "pip install 'timm>=1.0.15,<2'"),
        ("0.9.2", "is 0.9.2; carvision needs <2,>=1.0.15", "pip install 'timm<2,>=1.0.15'"),
        ("no version", "is no version; carvision needs", "pip install"),
    ):
        [finding] = packages.judge_versions(["timm>=1.0.15,<2"], {"timm": version})
        assert finding.severity == "breaks" and what in finding.what and fix in finding.fix


def test_malicious_releases_are_named_and_never_imported():
    versions = {"pytorch-lightning": "2.6.2", "lightning": "2.6.3", "torch": "2.9.0"}
    assert packages.malicious_packages(versions) == ["pytorch-lightning", "lightning"]
    found = packages.judge_versions(["pytorch-lightning!=2.6.2,!=2.6.3,<3,>=2.5"], versions)
    assert [finding.subject for finding in found] == ["pytorch-lightning", "lightning"]
    assert "malicious code" in found[0].what and "tokens" in found[0].fix


def test_without_packaging_or_requirements_versions_are_not_compared(monkeypatch):
    assert packages.judge_versions([], {"torch": "1"})[0].severity == "note"
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    [finding] = packages.judge_versions(["torch>=2.6"], {"torch": "1"})
    assert finding.subject == "packaging" and finding.severity == "breaks"


def test_builds_that_do_not_fit_together():
    versions = {"torch": "2.13.0+cpu", "torchvision": "0.28.0+cu130"}
    assert packages.judge_builds(versions, {})[0].severity == "note"
    assert packages.judge_builds(versions, NMS) == []  # judge_imports reports it
    [finding] = packages.judge_imports(versions, NMS)
    assert finding.severity == "breaks" and finding.subject == "torchvision"
    assert "0.28.0+cu130 (beside torch 2.13.0+cpu) can't be imported" in finding.what and "nms" in finding.what
    assert packages.judge_builds({"torch": "2.9.1+cpu", "torchvision": "0.28.0", "torch-xla": "2.9.0"}, {}) == []
    [finding] = packages.judge_builds({"torch": "2.15.0", "torch-xla": "2.9.0"}, {})
    assert finding.severity == "breaks" and "works only with torch 2.9" in finding.what


def test_what_fails_for_one_reason_is_one_finding():
    reason = {"error": "ImportError: libz.so.9: cannot open"}
    versions = {"torch": "2.9", "torchvision": "0.24", "timm": "1.0", "pyyaml": "6", "onnx": "1"}
    answers = {f"import:{packages.module_of(name)}": reason for name in versions}
    [finding] = packages.judge_imports(versions, answers)
    assert finding.subject == "torch" and "the same with torchvision, timm, pyyaml, onnx" in finding.what
    assert packages.judge_imports({"onnx": "1"}, answers)[0].severity == "note"  # only exports need it
    assert packages.judge_imports({"torch": None}, answers) == []  # judge_versions reports it


def test_a_module_that_hides_the_installed_one(tmp_path, monkeypatch):
    write_stub(tmp_path, "yaml")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "yaml")], origin=None)
    monkeypatch.setattr(packages, "find_spec", lambda name: spec)
    [finding] = packages.judge_shadowed_modules({"pyyaml": "6.0"}, {"import:yaml": {}})
    assert finding.severity == "note" and str(tmp_path / "yaml") in finding.what
    [finding] = packages.judge_imports({"pyyaml": "6.0"}, {"import:yaml": {"error": "x"}})
    assert f"remove {tmp_path / 'yaml'}" in finding.fix


@pytest.mark.parametrize("variables, severity, words", [
    ({"OMP_NUM_THREADS": "64"}, "slow", "is 64, on 8 cores"),
    ({"OMP_NUM_THREADS": "0"}, "slow", "not a number of threads"),
    ({"OMP_NUM_THREADS": "1"}, "note", "uses one of them"), ({"CUDA_LAUNCH_BLOCKING": "1"}, "slow", "is synchronous"),
    ({"OMP_WAIT_POLICY": "ACTIVE"}, "slow", "keep cores busy"),
    ({"CUDA_VISIBLE_DEVICES": ""}, "note", "hides all GPUs"),
    ({"RANK": "0", "WORLD_SIZE": "2"}, "breaks", "not by torchrun"),
])  # fmt: skip
def test_variables_that_hurt_and_others(variables, severity, words):
    [finding] = packages.judge_variables(variables, num_cores=8)
    assert finding.severity == severity and words in finding.what and finding.fix
    variables = {"OMP_NUM_THREADS": "4,2", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_LAUNCH_BLOCKING": "0", "TORCH_LOGS": ""}
    variables |= {"CUDA_VISIBLE_DEVICES": "1,2", "RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "a"}
    assert packages.judge_variables(variables, num_cores=8) == []


def test_compilers(tmp_path):
    for name in ("clang++", "mine", "Python.h"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    found = packages.read_compiler({"PATH": str(tmp_path), "CC": "mine"}, str(tmp_path))
    assert found["cpp"].endswith("clang++") and found["c"].endswith("mine") and found["headers"]
    assert packages.judge_compiler(found, num_gpus=1) == packages.judge_compiler({**found, "c": None}, num_gpus=0) == []
    assert "none for C:" in packages.judge_compiler({**found, "c": None}, num_gpus=1)[0].what
    found = packages.read_compiler({"PATH": ""}, str(tmp_path / "none"))
    assert "none for C++" in packages.judge_compiler(found, num_gpus=0)[0].what
    assert "header files" in packages.judge_compiler({**found, "cpp": "g++"}, num_gpus=0)[0].what
