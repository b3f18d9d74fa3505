"""Cores, memory, GPUs, TPUs, limits and disks: facts read from small files, and findings judged from facts."""

import os
from pathlib import Path

import pytest

from carvision.data.loading.loader import PhotoDataModule
from carvision.diagnosis import hardware
from carvision.diagnosis.examine import num_workers
from carvision.diagnosis.hardware import (
    describe_devices,
    describe_disk,
    describe_processor,
    file_system,
    judge_devices,
    judge_disk,
    judge_limits,
    judge_processor,
    judge_shared_memory,
    read_accelerators,
    read_disk,
    read_limits,
    read_memory,
    read_processor,
    read_shared_memory,
)

PROCESSOR = {
    "name": "Quick", "machine": 16, "usable": 16, "quota": None, "load": 0.5,
    "memory": 64e9, "available": 50e9, "memory_limit": None,
}  # fmt: skip
NONE = {"nvidia_cards": 0, "nvidia_nodes": 0, "nvidia_driver": None, "tpu_chips": 0, "infiniband": 0}
CARD = {**NONE, "nvidia_cards": 1, "nvidia_nodes": 1, "nvidia_driver": "470.82.01"}
GPU = {"name": "Fast", "free": 70e9, "total": 80e9, "capability": [9, 0]}
TORCH = {"cuda_build": "12.8", "cuda_error": "", "gpus": [], "architectures": ["sm_75", "sm_80", "sm_90", "compute_90"]}
VERSIONS = {"torch": "2.9.0"}
DISK = {"wanted": Path("runs"), "folder": Path("/"), "free": 1e12, "files": None, "writable": True, "kind": "ext4"}
LIMITS = {"files": 1024, "most_files": 4096, "locked": None}


def test_the_processor_is_described(tmp_path):
    assert describe_processor(read_processor())[0][0] == "processor" and judge_processor(PROCESSOR, 16) == []
    rows = dict(describe_processor({**PROCESSOR, "quota": 1.5, "usable": 2, "memory_limit": int(4e9)}))
    assert rows["processor"] == "2 of 16 cores (time for 1.5), Quick, load 0.5"
    assert rows["memory"] == "64 GB, 50 GB free, of which this container may take 4.0 GB"
    unknown = {**PROCESSOR, **read_memory(tmp_path / "none"), "load": None}
    assert unknown["memory"] is None and judge_processor(unknown) == []
    assert [name for name, _ in describe_processor(unknown)] == ["processor"]


@pytest.mark.parametrize(
    "facts, threads, severity, words",
    [
        ({"quota": 2.0, "usable": 2}, 16, "slow", "time for 2 cores, and torch's 16 threads"),
        ({"usable": 4}, 8, "slow", "8 threads on 4 cores"),
        ({"usable": 1}, 1, "slow", "only one"),
        ({"load": 40.0}, 8, "slow", "40.0 on 16 cores"),
        ({"available": 1e9}, 8, "breaks", "1.0 GB can be used"),
        ({"memory_limit": int(512e6)}, 8, "breaks", "512 MB can be used"),
    ],
)
def test_too_few_cores_or_memory(facts, threads, severity, words):
    [finding] = judge_processor({**PROCESSOR, **facts}, threads)
    assert finding.severity == severity and words in finding.what and finding.fix


def test_accelerators_are_read_without_torch(tmp_path):
    def device(name, vendor, kind, number="0x0001"):
        folder = tmp_path / "sys/bus/pci/devices" / name
        folder.mkdir(parents=True)
        for file, text in (("vendor", vendor), ("class", kind), ("device", number)):
            (folder / file).write_text(text + "\n")

    assert read_accelerators(tmp_path) == NONE
    device("0", "0x10de", "0x030200")
    device("1", "0x10de", "0x040300")  # sound on the same card
    device("2", "0x1ae0", "0x120000", "0x0063")
    device("3", "0x1ae0", "0x020000", "0x0042")  # a network card
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    (tmp_path / "dev/nvidiactl").touch()
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    version = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
    (tmp_path / "proc/driver/nvidia/version").write_text(version)
    wanted = {"nvidia_cards": 1, "nvidia_nodes": 1, "nvidia_driver": "550.54.15", "tpu_chips": 1}
    assert read_accelerators(tmp_path) == {**NONE, **wanted}


@pytest.mark.parametrize(
    "system, torch, severity, words",
    [
        (CARD, {"cuda_build": None}, "breaks", "was built without CUDA"),
        (CARD, {"cuda_error": "Your driver is too old (found 11040)"}, "breaks", "470.82.01 is too old"),
        (CARD, {"cuda_error": "No CUDA GPUs are available"}, "breaks", "(No CUDA GPUs are available)"),
        ({**CARD, "nvidia_nodes": 0}, {}, "breaks", "does not show it here"),
        ({**CARD, "nvidia_nodes": 0, "nvidia_driver": None}, {}, "slow", "does not show it here"),
        (CARD, {"gpus": [{**GPU, "capability": [6, 1]}]}, "breaks", "compute capability 6.1"),
        (CARD, {"gpus": [{**GPU, "capability": [7, 5]}]}, "note", "no bf16"),
        (CARD, {"gpus": [{**GPU, "free": 1e9}]}, "slow", "has 1.0 GB of 80 GB free"),
        (CARD, {"gpus": [{"name": "number 0", "error": "busy"}]}, "breaks", "does not answer: busy"),
        (CARD, {"gpus": [GPU, {**GPU, "name": "Slow"}]}, "slow", "2 kinds (Fast, Slow)"),
        # Newer than the build, which has no PTX to compile
        (CARD, {"gpus": [{**GPU, "capability": [12, 0]}], "architectures": ["sm_90"]}, "breaks", "capability 12.0"),
        (NONE, {"error": "did not answer within 90 seconds"}, "breaks", "did not answer"),
        ({**NONE, "tpu_chips": 4}, {}, "breaks", "torch-xla is not installed"),
    ],
)
def test_a_device_with_a_fault(system, torch, severity, words):
    [finding] = judge_devices(system, {**TORCH, **torch}, VERSIONS)
    assert finding.severity == severity and words in finding.what, finding
    assert describe_devices(system, {**TORCH, **torch})


@pytest.mark.parametrize(
    "system, torch",
    [
        (NONE, {}),
        (NONE, {"cuda_build": None}),
        (CARD, {"gpus": [GPU, GPU]}),
        (CARD, {"gpus": [{**GPU, "capability": [8, 6]}]}),  # runs code for 8.0
        (CARD, {"gpus": [{**GPU, "capability": [12, 0]}]}),  # compiles the PTX for 9.0
        (CARD, {"gpus": [{**GPU, "capability": [12, 1]}], "architectures": ["sm_120a", "compute_120f"]}),
    ],
)
def test_devices_without_a_fault(system, torch):
    assert judge_devices(system, {**TORCH, **torch}, VERSIONS) == []


def test_devices_are_described_without_an_answer_of_torch():
    assert judge_devices(CARD, {}, VERSIONS) == []
    assert describe_devices(CARD, {}) == [("GPU", "1 NVIDIA GPU that torch can't use"), ("driver", "470.82.01")]
    assert ("GPU", "Apple's; trainer=gpu takes it") in describe_devices(NONE, {**TORCH, "mps": True})


def test_shared_memory(tmp_path):
    [finding] = judge_shared_memory(64_000_000, num_gpus=8)
    assert finding.severity == "note" and "64 MB are free" in finding.what and "--shm-size" in finding.fix
    assert all(judge_shared_memory(*facts) == [] for facts in ((64_000_000, 1), (None, 8), (2_000_000_000, 8)))
    assert read_shared_memory(tmp_path) > 0 and read_shared_memory(tmp_path / "none") is None


def test_limits(monkeypatch):
    assert num_workers() == PhotoDataModule(None, None, 1).num_workers
    assert judge_limits(LIMITS, 15) == judge_limits({**LIMITS, "locked": 65536}, 15, 1, 1) == []
    assert judge_limits({"files": None, "most_files": None, "locked": None}, 15, 8, 1) == []
    [finding] = judge_limits({**LIMITS, "files": 200}, 15)
    assert finding.severity == "breaks" and "a process may have 200" in finding.what and "ulimit" in finding.fix
    [finding] = judge_limits({**LIMITS, "files": 64, "most_files": 64}, 15)
    assert "no further than 64" in finding.fix
    [finding] = judge_limits({**LIMITS, "locked": 65536}, 15, 8, 1)
    assert finding.severity == "slow" and "limited to 0 MB" in finding.what and "ulimit" in finding.fix
    assert set(read_limits()) == set(LIMITS)
    monkeypatch.setattr(hardware, "resource", None)
    assert set(read_limits().values()) == {None}


def test_the_disk_of_a_folder_that_does_not_exist_yet_or_is_a_file(tmp_path, monkeypatch):
    disk = read_disk(tmp_path / "runs" / "mine")
    assert disk["folder"] == tmp_path and disk["free"] > 0 and disk["writable"] and "free for" in describe_disk(disk)
    (tmp_path / "file").write_text("")
    disk = read_disk(tmp_path / "file")
    [finding] = judge_disk(disk)
    assert finding.severity == "breaks" and "is a file" in finding.what and "is a file" in describe_disk(disk)

    def stale(path):
        raise OSError(116, os.strerror(116))

    monkeypatch.setattr(hardware.shutil, "disk_usage", stale)
    [finding] = judge_disk(read_disk(tmp_path))
    assert finding.severity == "breaks" and "can't be read" in finding.what


@pytest.mark.parametrize(
    "facts, severity, words",
    [
        ({"free": 1e8}, "breaks", "100 MB are free"),
        ({"free": 2e9}, "note", "2.0 GB are free"),
        ({"writable": False}, "breaks", "can't be written to"),
        ({"files": 3}, "breaks", "(inodes)"),
        ({"kind": "nfs4"}, "note", "on a network (nfs4)"),
        ({"kind": "fuse.gcsfuse"}, "note", "on a network"),
        ({"kind": "tmpfs"}, "note", "gone when the machine stops"),
    ],
)
def test_a_disk_with_a_fault(facts, severity, words):
    [finding] = judge_disk({**DISK, **facts})
    assert finding.severity == severity and words in finding.what and finding.fix
    assert judge_disk(DISK) == []


def test_the_mount_that_holds_a_folder(tmp_path):
    (tmp_path / "my data").mkdir()
    blank = str(tmp_path / "my data").replace(" ", "\\040")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"a / ext4 rw 0 0\nb {tmp_path} xfs rw 0 0\nc {blank} nfs4 rw 0 0\nd {blank} tmpfs rw 0 0\nodd\n")
    assert file_system(tmp_path / "my data", mounts) == "tmpfs"  # mounted last, hiding the one before
    assert file_system(tmp_path, mounts) == "xfs" and file_system(tmp_path.parent, mounts) == "ext4"
    assert file_system(tmp_path, tmp_path / "none") == ""
