"""The doctor on this machine and where packages are broken; never a traceback."""

import ast
import json
from unittest import mock

import pytest

import carvision.doctor
from carvision.diagnosis import examine as examining
from carvision.diagnosis import packages
from carvision.diagnosis.examine import Examination, examine
from carvision.diagnosis.finding import Finding
from carvision.diagnosis.speed import draw_jpeg, measure_data
from carvision.system.versions import requirements
from tests.conftest import ROOT
from tests.diagnosis.test_probe import SEGFAULT, python_path, write_stub

SLOW_IMPORTS = "torchvision timm torchmetrics pytorch_lightning hydra omegaconf huggingface_hub pandas pyarrow sklearn"
SLOW_IMPORTS += " matplotlib rich tensorboard onnx onnxruntime"


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.slow
def test_this_machine(run_module):
    done = run_module("carvision.doctor")
    assert done.returncode in (0, 1) and not done.stderr, done.stderr
    for word in ("carvision", "Python", "processor", "torch 2", "disk", "decoding", "photos a second"):
        assert word in flat(done.stdout), word
    assert ("will break" in done.stdout) == (done.returncode == 1)


def test_a_torch_that_kills_its_process_and_the_rest_as_json(run_module, tmp_path):
    for name in SLOW_IMPORTS.split():
        write_stub(tmp_path / "stubs", name)
    write_stub(tmp_path / "stubs", "torch", SEGFAULT)
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(draw_jpeg(64, 48))
    environment = {"PYTHONPATH": python_path(tmp_path / "stubs")}
    done = run_module("carvision.doctor", "--json", "--data", "photos", env=environment)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr, done.stderr
    found = json.loads(done.stdout)
    machine = dict(found["machine"])
    assert machine["data"].startswith("3 photos") and "photos a second" in machine["decoding"], done.stdout
    assert all({"severity", "subject", "what", "mend"} == set(finding) for finding in found["findings"])
    [torch] = [finding for finding in found["findings"] if finding["subject"] == "torch"]
    assert torch["severity"] == "breaks" and "can't be imported: the process was killed by SIGSEGV" in torch["what"]


def test_photos_that_cannot_be_measured(monkeypatch):
    for data, answers, what in (
        (__file__, {}, f"{__file__} can't be read: Not a directory"),
        ("photos", {"import:PIL": {"error": "DLL load failed"}}, "could not be measured without Pillow and NumPy"),
    ):
        monkeypatch.setattr(examining, "probe", lambda steps, data=data: {steps[1]: measure_data(data)})
        facts = {"answers": {"import:PIL": {}, "import:numpy": {}} | answers, "torch": {}}
        assert what in [finding.what for finding in examining.examine_photos(facts, data, lambda text: None).findings]


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.setattr(examining, "read_versions", lambda: dict.fromkeys(map(packages.name_of, requirements())))
    monkeypatch.setattr(examining, "probe_together", lambda groups: {})
    assert carvision.doctor.doctor(["--out", __file__]) == 1
    text = flat(capsys.readouterr().out)
    assert "torch: is not installed" in text and "fix: pip install 'torch>=2.6'" in text
    assert "is a file, not a folder" in text


def test_a_part_that_fails_is_a_finding_and_the_worst_come_first(monkeypatch, capsys):
    findings = [Finding("note", "c", "x"), Finding("slow", "b", "x"), Finding("breaks", "a", "x", "do it")]
    for name in ("examine_machine", "examine_packages", "examine_devices", "examine_storage", "examine_photos"):
        monkeypatch.setattr(examining, name, mock.Mock(side_effect=ZeroDivisionError("odd machine")))
    monkeypatch.setattr(examining, "examine_settings", lambda facts: Examination([], findings))
    monkeypatch.setattr(examining, "examine_disk", lambda out: Examination([], []))
    found = examine(None, "runs", False, lambda text: None).findings
    assert [finding.subject for finding in found[:2]] == ["a", "b"] and len(found) == 8
    assert found[2].what == "this part of the machine could not be examined (ZeroDivisionError: odd machine)"
    assert carvision.doctor.doctor([]) == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    at = lines.index(["breaks", "a:", "x"])
    assert lines[at : at + 3] == [["breaks", "a:", "x"], ["fix:", "do", "it"], ["slow", "b:", "x"]]


def test_an_older_python_can_read_the_doctor():
    own = ROOT / "carvision"
    diagnosis = [file for file in (own / "diagnosis").glob("*.py") if file.name != "__init__.py"]
    for file in (own / "doctor.py", own / "system/versions.py", own / "system/machine.py", *diagnosis):
        source = file.read_text(encoding="utf-8")
        ast.parse(source, feature_version=(3, 9))
        assert "from __future__ import annotations" in source, file
