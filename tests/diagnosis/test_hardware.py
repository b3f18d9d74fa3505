"""Cores, memory, GPUs, TPUs, limits and disks: facts read from small files, and findings judged from facts."""

from pathlib import Path
from unittest import mock

import pytest

from carvision.data.loading.datamodule import PhotoDataModule
from carvision.diagnosis import hardware
from carvision.diagnosis.examine import num_workers
from tests.system.test_machine import write

PROCESSOR = {"name": "Quick", "machine": 16, "usable": 16, "quota": None, "load": 0.5}
PROCESSOR |= {"memory": 64e9, "available": 50e9, "memory_limit": None}
NONE = {"nvidia_cards": 0, "nvidia_nodes": 0, "nvidia_driver": None, "tpu_chips": 0, "infiniband": 0}
CARD = {**NONE, "nvidia_cards": 1, "nvidia_nodes": 1, "nvidia_driver": "470.82.01"}
GPU = {"name": "Fast", "free": 70e9, "total": 80e9, "capability": [9, 0]}
TORCH = {"cuda_build": "12.8", "cuda_error": "", "gpus": [], "architectures": ["sm_75", "sm_80", "sm_90", "compute_90"]}
DISK = {"wanted": Path("runs"), "folder": Path("/"), "free": 1e12, "files": None, "writable": True, "kind": "ext4"}
LIMITS = {"files": 1024, "most_files": 4096, "locked": None}


def cores(num_threads=8, **facts):
    return hardware.judge_processor({**PROCESSOR, **facts}, num_threads)


def devices(system=CARD, **torch):
    assert hardware.describe_devices(system, {**TORCH, **torch})
    return hardware.judge_devices(system, {**TORCH, **torch}, {"torch": "2.9.0"})


def disk(**facts):
    return hardware.judge_disk({**DISK, **facts})


@pytest.mark.parametrize("judge, severity, words", [
    (lambda: cores(16, quota=2.0, usable=2), "slow", "time for 2 cores, and torch's 16 threads"),
    (lambda: cores(8, usable=4), "slow", "8 threads on 4 cores"),
    (lambda: cores(1, usable=1), "slow", "only one"),
    (lambda: cores(load=40.0), "slow", "40.0 on 16 cores"),
    (lambda: cores(memory_limit=int(512e6)), "breaks", "512 MB can be used"),
    (lambda: devices(cuda_build=None), "breaks", "was built without CUDA"),
    (lambda: devices(cuda_error="Your driver is too old (found 11040)"), "breaks", "470.82.01 is too old"),
    (lambda: devices({**CARD, "nvidia_nodes": 0}), "breaks", "does not show it here"),
    (lambda: devices({**CARD, "nvidia_nodes": 0, "nvidia_driver": None}), "slow", "does not show it here"),
    (lambda: devices(gpus=[{**GPU, "capability": [6, 1]}]), "breaks", "compute capability 6.1"),
    (lambda: devices(gpus=[{**GPU, "capability": [7, 5]}]), "note", "no bf16"),
    (lambda: devices(gpus=[{**GPU, "free": 1e9}]), "slow", "has 1.0 GB of 80 GB free"),
    (lambda: devices(gpus=[{"name": "number 0", "error": "busy"}]), "breaks", "does not answer: busy"),
    (lambda: devices(gpus=[GPU, {**GPU, "name": "Slow"}]), "slow", "2 kinds (Fast, Slow)"),
    # Newer than the build, which has no PTX to compile
    (lambda: devices(gpus=[{**GPU, "capability": [12, 0]}], architectures=["sm_90"]), "breaks", "capability 12.0"),
    (lambda: devices(NONE, error="did not answer within 90 seconds"), "breaks", "did not answer"),
    (lambda: devices({**NONE, "tpu_chips": 4}), "breaks", "torch-xla is not installed"),
    (lambda: hardware.judge_shared_memory(64_000_000, num_gpus=8), "note", "64 MB are free"),
    (lambda: hardware.judge_limits({**LIMITS, "files": 200}, 15), "breaks", "a process may have 200"),
    (lambda: hardware.judge_limits({**LIMITS, "locked": 65536}, 15, 8, 1), "slow", "limited to 0 MB"),
    (lambda: disk(free=1e8), "breaks", "100 MB are free"), (lambda: disk(free=2e9), "note", "2.0 GB are free"),
    (lambda: disk(writable=False), "breaks", "can't be written to"), (lambda: disk(files=3), "breaks", "(inodes)"),
    (lambda: disk(kind="nfs4"), "note", "on a network (nfs4)"),
    (lambda: disk(kind="tmpfs"), "note", "gone when the machine stops"),
    (lambda: hardware.judge_disk(hardware.read_disk(Path(__file__))), "breaks", "is a file"),
])  # fmt: skip
def test_each_fault_is_one_finding(judge, severity, words):
    [finding] = judge()
    assert finding.severity == severity and words in finding.what, finding


def test_what_is_in_order_or_unknown_is_no_finding(tmp_path):
    unknown = {**hardware.read_memory(tmp_path / "none"), "load": None}
    assert unknown["memory"] is None and cores(16) == cores(None, **unknown) == disk() == []
    assert [name for name, _ in hardware.describe_processor({**PROCESSOR, **unknown})] == ["processor"]
    assert devices(NONE) == devices(gpus=[GPU, GPU]) == []
    assert devices(gpus=[{**GPU, "capability": [8, 6]}]) == []  # runs code for 8.0
    assert devices(gpus=[{**GPU, "capability": [12, 0]}]) == []  # compiles the PTX for 9.0
    newer = ["sm_120a", "compute_120f"]
    assert devices(gpus=[{**GPU, "capability": [12, 1]}], architectures=newer) == []
    assert hardware.judge_devices(CARD, {}, {}) == [] and hardware.describe_devices(
        CARD, {}
    )  # torch could not be asked
    assert all(hardware.judge_shared_memory(*facts) == [] for facts in ((64_000_000, 1), (None, 8), (2_000_000_000, 8)))
    assert hardware.judge_limits(LIMITS, 15) == hardware.judge_limits({**LIMITS, "locked": 65536}, 15, 1, 1) == []
    assert hardware.judge_limits(dict.fromkeys(LIMITS), 15, 8, 1) == []


def test_the_facts_of_this_machine(tmp_path, monkeypatch):
    assert num_workers() == PhotoDataModule(None, None, 1).num_workers
    rows = dict(hardware.describe_processor({**PROCESSOR, "quota": 1.5, "usable": 2, "memory_limit": int(4e9)}))
    assert rows.keys() == dict(hardware.describe_processor(hardware.read_processor())).keys()
    assert rows["memory"] == "64 GB, 50 GB free, of which this container may take 4.0 GB"
    assert hardware.read_limits().keys() == LIMITS.keys() and hardware.read_shared_memory(tmp_path) > 0
    found = hardware.read_disk(tmp_path / "runs" / "mine")
    assert found["folder"] == tmp_path and found["free"] > 0 and found["writable"]
    monkeypatch.setattr(hardware.shutil, "disk_usage", mock.Mock(side_effect=OSError(116, "Stale file handle")))
    assert "can't be read" in hardware.judge_disk(hardware.read_disk(tmp_path))[0].what
    monkeypatch.setattr(hardware, "resource", None)  # as on Windows
    assert hardware.read_limits() == dict.fromkeys(LIMITS) and hardware.read_shared_memory(tmp_path) is None


def test_accelerators_are_read_without_torch(tmp_path):
    assert hardware.read_accelerators(tmp_path) == NONE
    pci = [
        ("0x10de", "0x030200", "0x0001"), ("0x10de", "0x040300", "0x0001"),  # a GPU; sound on the same card
        ("0x1ae0", "0x120000", "0x0063"), ("0x1ae0", "0x020000", "0x0042"),  # a TPU; a network card
    ]  # fmt: skip
    for number, texts in enumerate(pci):
        folder = f"sys/bus/pci/devices/{number}"
        write(tmp_path, {f"{folder}/{n}": f"{texts[at]}\n" for at, n in enumerate(("vendor", "class", "device"))})
    version = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
    write(tmp_path, {"dev/nvidia0": "", "dev/nvidiactl": "", "proc/driver/nvidia/version": version})
    wanted = {"nvidia_cards": 1, "nvidia_nodes": 1, "nvidia_driver": "550.54.15", "tpu_chips": 1}
    assert hardware.read_accelerators(tmp_path) == {**NONE, **wanted}


def test_the_mount_that_holds_a_folder(tmp_path):
    (tmp_path / "my data").mkdir()
    blank = str(tmp_path / "my data").replace(" ", "\\040")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"a / ext4 rw 0 0\nb {tmp_path} xfs rw 0 0\nc {blank} nfs4 rw 0 0\nd {blank} tmpfs rw 0 0\nodd\n")
    assert hardware.file_system(tmp_path / "my data", mounts) == "tmpfs"  # mounted last, hiding the one before
    assert hardware.file_system(tmp_path, mounts) == "xfs" and hardware.file_system(tmp_path.parent, mounts) == "ext4"
    assert hardware.file_system(tmp_path, tmp_path / "none") == ""
