"""The doctor and its parts, here and where packages are broken; steps that crash, hang or print get an answer."""

import ast
import json
import os
import subprocess
import tomllib
from pathlib import Path
from unittest import mock

import pytest

import carvision.doctor
from carvision.diagnosis import examine as examining
from carvision.diagnosis import hardware, packages, speed
from carvision.diagnosis.examine import examine
from carvision.diagnosis.findings import SEVERITIES, Finding
from carvision.diagnosis.probe import probe
from carvision.system.versions import read_versions, requirements
from tests.conftest import ROOT
from tests.system.test_machine import write

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


PROCESSOR = {"name": "Quick", "machine": 16, "usable": 16, "quota": None, "load": 0.5}
PROCESSOR |= {"memory": 64e9, "available": 50e9, "memory_limit": None}
NONE = {"nvidia_cards": 0, "nvidia_nodes": 0, "nvidia_driver": None}
CARD = {"nvidia_cards": 1, "nvidia_nodes": 1, "nvidia_driver": "470.82.01"}
FAST_GPU = {"name": "Fast", "free": 70e9, "total": 80e9, "capability": [9, 0]}
ALL = ["sm_75", "sm_80", "sm_90", "compute_90"]
TORCH = {"cuda_build": "12.8", "cuda_error": "", "gpus": [], "architectures": ALL}
DISK = {"wanted": Path("runs"), "folder": Path("/"), "free": 1e12, "writable": True, "kind": "ext4"}
DATA = {"found": 100, "all": True, "bad": 0, "tried": 64, "reads": 2000.0, "bytes": 60e3, "decodes": 250.0}
VERSIONS = {"torch": "2.13.0+cpu", "torchvision": "0.28.0+cu130"}
NO_NMS = {"import:torchvision": {"error": "operator torchvision::nms does not exist"}}
PARTS = {
    "cores": lambda num_threads=8, **facts: hardware.examine_processor(PROCESSOR | facts, num_threads),
    "gpus": lambda system=CARD, **torch: hardware.examine_gpus(system, TORCH | torch, "2.9.0"),
    "gpu": lambda built=ALL, **facts: PARTS["gpus"](gpus=[FAST_GPU | facts], architectures=built),
    "disk": lambda **facts: hardware.examine_disk(DISK | facts),
    "data": lambda **facts: speed.examine_data("photos", DATA | facts, "nfs4"),
    "decoding": lambda num_gpus=0, **answer: speed.examine_decoding(answer, 2, num_gpus),
    "Python": lambda version: packages.examine_python(version),
    "timm": lambda **versions: packages.examine_versions(["timm>=1.0.15,<2"], versions),
    "Lightning": lambda version: packages.examine_versions(
        ["pytorch-lightning!=2.6.2"], {"pytorch-lightning": version}
    ),
    "builds": lambda answers: packages.examine_builds(VERSIONS, answers),
    "imports": lambda answers: packages.examine_imports(VERSIONS, answers),
    "variables": lambda **values: packages.examine_variables(values, num_cores=8),
}


def findings(part: str, **facts) -> list[Finding]:
    return [item for item in PARTS[part](**facts) if isinstance(item, Finding)]


@pytest.mark.parametrize(("part", "facts", "severity", "words"), [
    ("cores", {"usable": 4}, "slow", "8 threads on 4 cores"), ("cores", {"load": 40.0}, "slow", "40.0 on 16 cores"),
    ("cores", {"memory_limit": int(512e6)}, "breaks", "512 MB can be used"),
    ("gpus", {"cuda_build": None}, "breaks", "was built without CUDA"),
    ("gpus", {"cuda_error": "Your driver is too old (found 11040)"}, "breaks", "470.82.01 is too old"),
    ("gpus", {"system": {**CARD, "nvidia_nodes": 0}}, "breaks", "does not show it here"),
    ("gpu", {"capability": [6, 1]}, "breaks", "compute capability 6.1"),
    ("gpu", {"capability": [12, 0], "built": ["sm_90"]}, "breaks", "capability 12.0"),  # newer, and no PTX to compile
    ("gpu", {"free": 1e9}, "slow", "has 1.0 GB of 80 GB free"), ("gpu", {"error": "busy"}, "breaks", "answer: busy"),
    ("disk", {"free": 1e8}, "breaks", "100 MB are free"), ("disk", {"free": 2e9}, "note", "2.0 GB are free"),
    ("disk", {"writable": False}, "breaks", "be written to"), ("disk", {"error": "is a file"}, "breaks", "a file"),
    ("data", {"error": "No such file"}, "breaks", "photos can't be read: No such file"),
    ("data", {"bad": 2}, "breaks", "2 of 64 photos"), ("data", {"bytes": 4e6}, "slow", "large (4 MB each)"),
    ("data", {"reads": 20.0}, "slow", "(50 ms) than decoding it (4 ms): photos waits for its network file system"),
    ("decoding", {"rates": [40.0, 9.0]}, "slow", "40 photos a second"), ("decoding", {"error": "x"}, "note", "x"),
    ("decoding", {"rates": [400.0, 100.0], "num_gpus": 1}, "slow", "2 cores decode about 800 photos a second"),
    ("Python", {"version": (3, 9, 7)}, "breaks", "is 3.9.7; carvision needs 3.11"),
    ("timm", {}, "breaks", "is not installed"), ("timm", {"timm": "0.9"}, "breaks", "0.9; carvision needs <2,>=1.0.15"),
    ("Lightning", {"version": "2.6.2"}, "breaks", "2.6.2 was published with malicious code"),
    ("builds", {"answers": {}}, "note", "was built for another torch"),
    ("imports", {"answers": NO_NMS}, "breaks", "beside torch 2.13.0+cpu"),
    ("variables", {"OMP_NUM_THREADS": "1"}, "note", "uses one of them"),
    ("variables", {"CUDA_VISIBLE_DEVICES": ""}, "note", "hides all GPUs"),
    ("variables", {"RANK": "0", "WORLD_SIZE": "2"}, "breaks", "not by torchrun"),
])  # fmt: skip
def test_each_fault_is_one_finding(part, facts, severity, words):
    [finding] = findings(part, **facts)
    assert finding.severity == severity and words in finding.what, finding


def test_what_is_in_order_or_unknown_is_no_finding(tmp_path):
    unknown = {**hardware.read_processor(tmp_path / "none"), "load": None, "num_threads": None}
    unset = {"OMP_NUM_THREADS": "4,2", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_LAUNCH_BLOCKING": "0"}
    unset |= {"CUDA_VISIBLE_DEVICES": "1,2", "RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "a"}
    for part, facts in (
        ("cores", {}), ("cores", unknown), ("disk", {}), ("data", {}), ("gpus", {"system": NONE}), ("gpu", {}),
        ("gpu", {"capability": [8, 6]}), ("gpu", {"capability": [12, 0]}),  # which run code for 8.0 and PTX for 9.0
        ("gpu", {"capability": [12, 1], "built": ["sm_120a", "compute_120f"]}), ("Python", {"version": (3, 11, 0)}),
        ("decoding", {"rates": [400.0, 100.0]}), ("decoding", {"rates": [900.0, 400.0], "num_gpus": 1}),
        ("variables", unset), ("builds", {"answers": NO_NMS}),  # examine_imports reports it
        ("timm", {"timm": "1.0.31.dev20261101+cu132"}), ("Lightning", {"version": "2.6.6"}),
    ):  # fmt: skip
        assert findings(part, **facts) == []
    assert list(hardware.examine_gpus(CARD, {}, None))[-1][0] == "driver"  # torch could not be asked
    assert list(packages.examine_versions(requirements(), read_versions())) == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={'.'.join(map(str, packages.OLDEST_PYTHON))}"
    assert packages.malicious_packages({"lightning": "2.6.3", "pytorch-lightning": "2.6.6"}) == ["lightning"]


def test_what_fails_for_one_reason_is_one_finding():
    reason = {"error": "ImportError: libz.so.9: cannot open"}
    versions = {"torch": "2.9", "torchvision": "0.24", "timm": "1.0", "pyyaml": "6", "onnx": "1"}
    answers = {f"import:{packages.module_of(name)}": reason for name in versions}
    [finding] = packages.examine_imports(versions, answers)
    assert finding.subject == "torch" and "the same with torchvision, timm, pyyaml, onnx" in finding.what
    [finding] = packages.examine_imports({"onnx": "1", "torch": None}, answers)
    assert finding.severity == "note"  # only exports need it; examine_versions reports that torch is missing


def test_the_facts_of_this_machine(tmp_path):
    facts = {**PROCESSOR, "quota": 1.5, "usable": 2, "memory_limit": int(4e9)}
    rows = dict(hardware.examine_processor(facts, 2))
    assert rows["processor"].startswith("2 of 16 cores (time for 1.5), Quick")
    assert rows["memory"] == "64 GB, 50 GB free, of which this container may take 4.0 GB"
    assert hardware.read_processor().keys() == facts.keys()
    found = hardware.read_disk(tmp_path / "runs" / "mine")
    assert found["folder"] == tmp_path and found["free"] > 0 and found["writable"]
    assert hardware.read_disk(Path(__file__))["error"] == "is a file, not a folder"


def test_gpus_are_read_without_torch(tmp_path):
    assert hardware.read_gpus(tmp_path) == NONE
    for number, (vendor, kind) in enumerate((("0x10de", "0x030200"), ("0x10de", "0x040300"), ("0x8086", "0x030000"))):
        write(tmp_path / f"sys/bus/pci/devices/{number}", {"vendor": f"{vendor}\n", "class": f"{kind}\n"})
    version = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
    write(tmp_path, {"dev/nvidia0": "", "dev/nvidiactl": "", "proc/driver/nvidia/version": version})
    assert hardware.read_gpus(tmp_path) == {"nvidia_cards": 1, "nvidia_nodes": 1, "nvidia_driver": "550.54.15"}


def test_the_mount_that_holds_a_folder(tmp_path):
    (tmp_path / "my data").mkdir()
    blank = str(tmp_path / "my data").replace(" ", "\\040")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"a / ext4 rw 0 0\nb {tmp_path} xfs rw 0 0\nc {blank} nfs4 rw 0 0\nd {blank} tmpfs rw 0 0\nodd\n")
    assert hardware.file_system(tmp_path / "my data", mounts) == "tmpfs"  # mounted last, hiding the one before
    assert hardware.file_system(tmp_path, mounts) == "xfs" and hardware.file_system(tmp_path.parent, mounts) == "ext4"
    assert hardware.file_system(tmp_path, tmp_path / "none") == ""


def test_a_folder_is_measured_and_bad_photos_are_counted(tmp_path, monkeypatch):
    for number in range(6):
        write(tmp_path, {f"a/{number % 2}/{number}.JPG": ""})
        (tmp_path / f"a/{number % 2}/{number}.JPG").write_bytes(speed.draw_jpeg(64, 48))
    write(tmp_path, {"a/bad.png": "no photo", "a/notes.txt": ""})
    answer = speed.measure_data(str(tmp_path))
    assert answer["found"] == answer["tried"] == 7 and answer["bad"] == 1 and answer["all"]
    assert answer["reads"] > 0 and answer["decodes"] > 0 and answer["bytes"] > 1000
    assert next(speed.examine_data("photos", {**answer, "bad": 0}, "ext4"))[1].startswith("7 photos of about ")
    assert speed.measure_data(__file__) == {"error": "Not a directory"}
    monkeypatch.setattr(speed, "MAX_FILES", 3)  # a large folder is read in part
    assert len(speed.find_photos(tmp_path)) == 3
