"""python -m carvision.doctor: on this machine, and where packages are broken; never a traceback."""

import ast
import json
import os

import pytest

import carvision.doctor
from carvision.diagnosis import examine, packages
from carvision.diagnosis import examine as examining
from carvision.diagnosis.examine import Examination
from carvision.diagnosis.finding import Finding
from carvision.diagnosis.speed import draw_jpeg
from carvision.system.versions import requirements
from tests.conftest import ROOT
from tests.diagnosis.stubs import python_path, write_stub
from tests.diagnosis.test_probing import GPU, NMS, SEGFAULT

SLOW_IMPORTS = (
    "torchvision", "timm", "torchmetrics", "pytorch_lightning", "hydra", "omegaconf", "huggingface_hub", "pandas",
    "pyarrow", "sklearn", "matplotlib", "rich", "tensorboard", "onnx", "onnxruntime",
)  # fmt: skip


@pytest.fixture
def doctor(tmp_path, run_module):
    """doctor(arguments, torch=code, ...) runs the command with packages that do nothing, or what the code says."""

    def run(*arguments, **codes):
        stubs = tmp_path / "stubs"
        for name in SLOW_IMPORTS:
            write_stub(stubs, name)
        for name, code in {"torch": GPU, **codes}.items():
            write_stub(stubs, name, code)
        done = run_module("carvision.doctor", *arguments, env={"PYTHONPATH": python_path(stubs), "COLUMNS": "120"})
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return done

    return run


def flat(text: str) -> str:
    return " ".join(text.split())


def test_this_machine(run_module):
    done = run_module("carvision.doctor")
    assert done.returncode in (0, 1) and not done.stderr, done.stderr
    for word in ("carvision", "Python", "processor", "torch 2", "disk", "decoding", "photos a second"):
        assert word in flat(done.stdout), word
    assert ("will break" in done.stdout) == (done.returncode == 1)
    assert any(word in done.stdout for word in ("Nothing is wrong.", "will break", "will be slow:"))


def test_a_torchvision_of_another_build(doctor):
    done = doctor(torchvision=NMS, timm=NMS)
    text = flat(done.stdout)
    assert done.returncode == 1
    assert "operator torchvision::nms does not exist; the same with timm" in text


def test_a_torch_that_kills_the_process(doctor):
    done = doctor(torch=SEGFAULT)
    text = flat(done.stdout)
    assert done.returncode == 1 and "can't be imported: the process was ended by SIGSEGV" in text
    assert "decoding" in text and "photos a second" in text  # the rest is told all the same


def test_without_pillow_and_numpy(doctor):
    fault = "raise ImportError('DLL load failed')"
    done = doctor("--data", "photos", PIL=fault, numpy=fault)
    assert done.returncode == 1 and "DLL load failed" in flat(done.stdout)
    assert "could not be measured without Pillow and NumPy" in flat(done.stdout)


def test_data_that_are_not_there_or_no_folder(doctor, tmp_path):
    done = doctor("--data", "nowhere", "--out", __file__)
    text = flat(done.stdout)
    assert done.returncode == 1
    assert "data: nowhere can't be read: No such file or directory" in text
    assert "is a file, not a folder" in text
    (tmp_path / "list.csv").write_text("")
    assert "list.csv can't be read: Not a directory" in flat(doctor("--data", tmp_path / "list.csv").stdout)


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read every folder")
def test_data_that_may_not_be_read(doctor, tmp_path):
    (tmp_path / "secret").mkdir(mode=0)
    assert "can't be read: Permission denied" in flat(doctor("--data", tmp_path / "secret").stdout)


def test_json_and_data(doctor, tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(draw_jpeg(64, 48))
    found = json.loads(doctor("--json", "--data", "photos").stdout)
    assert dict(found["machine"])["data"].startswith("3 photos")
    assert {"severity", "subject", "what", "mend"} == set(found["findings"][0])  # the stubs are found


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.setattr(examining, "read_versions", lambda: dict.fromkeys(map(packages.name_of, requirements())))
    monkeypatch.setattr(examining, "probe_together", lambda groups: {})
    monkeypatch.setattr(examining, "probe", lambda steps: {})
    assert carvision.doctor.doctor([]) == 1
    text = flat(capsys.readouterr().out)
    assert "torch: is not installed" in text and "fix: pip install 'torch>=2.6'" in text


def test_a_part_that_fails_is_a_finding(monkeypatch, capsys):
    def fail(*arguments):
        raise ZeroDivisionError("odd machine")

    for name in ("examine_python", "examine_machine", "examine_packages", "examine_storage", "examine_photos"):
        monkeypatch.setattr(examining, name, fail)
    assert carvision.doctor.doctor([]) == 0
    text = flat(capsys.readouterr().out)
    assert "could not be examined (ZeroDivisionError: odd machine)" in text and "disk" in text


@pytest.mark.parametrize(
    "severities, line",
    [
        ([], "Nothing is wrong."),
        (["note"], "Nothing is wrong. Good to know:"),
        (["breaks"], "1 thing will break:"),
        (["slow", "slow"], "2 things will be slow:"),
        (["breaks", "breaks", "slow", "slow", "slow", "note"], "2 things will break, 3 will be slow:"),
    ],
)
def test_the_summary(severities, line):
    assert examine.summary([Finding(severity, "it", "is so") for severity in severities]) == line


def test_the_worst_comes_first(monkeypatch, capsys):
    findings = [Finding("note", "c", "x"), Finding("slow", "b", "x"), Finding("breaks", "a", "x", "do it")]
    monkeypatch.setattr(examining, "examine_settings", lambda facts: Examination([], findings))
    for name in ("examine_packages", "examine_photos", "examine_machine", "examine_devices", "examine_storage"):
        monkeypatch.setattr(examining, name, lambda *arguments: Examination([], []))
    assert carvision.doctor.doctor([]) == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    own = [words[:2] for words in lines if words[:1] in (["breaks"], ["slow"], ["note"], ["fix:"])]
    assert [words for words in own if words[1] in ("a:", "b:", "c:", "do")] == [
        ["breaks", "a:"], ["fix:", "do"], ["slow", "b:"], ["note", "c:"],
    ]  # fmt: skip


def test_an_older_python_can_read_the_doctor():
    own = ROOT / "carvision"
    for file in (own / "doctor.py", own / "versions.py", own / "machine.py", *(own / "diagnosis").glob("*.py")):
        source = file.read_text()
        ast.parse(source, feature_version=(3, 9))
        if file.name not in ("__init__.py",):
            assert "from __future__ import annotations" in source, file


def test_help_has_an_example(run_module):
    done = run_module("carvision.doctor", "--help", check=0)
    assert "python -m carvision.doctor --data photos" in done.stdout
    assert "unrecognized" in run_module("carvision.doctor", "--nonsense", check=2).stderr
