"""Shared memory, limits and disks, from facts and small files."""

import os
from pathlib import Path

import pytest

from carvision.data.loading.loader import PhotoDataModule
from carvision.diagnosis import hardware
from carvision.diagnosis.examine import num_workers
from carvision.diagnosis.hardware import (
    describe_disk,
    file_system,
    judge_disk,
    judge_limits,
    judge_shared_memory,
    read_disk,
    read_limits,
    read_shared_memory,
)

MB = 1_000_000
DISK = {"wanted": Path("runs"), "folder": Path("/"), "free": 1e12, "files": None, "writable": True, "kind": "ext4"}
LIMITS = {"files": 1024, "most_files": 4096, "locked": None}


def test_workers_are_counted_as_in_training():
    assert num_workers() == PhotoDataModule(None, None, 1).num_workers


def test_dockers_64_mb_of_shared_memory_are_few_for_several_gpus():
    [finding] = judge_shared_memory(64 * MB, num_gpus=8)
    assert finding.severity == "note" and "64 MB are free" in finding.what and "--shm-size" in finding.fix
    for free, gpus in ((64 * MB, 1), (None, 8), (2000 * MB, 8)):
        assert judge_shared_memory(free, gpus) == []


def test_shared_memory_of_this_machine_and_of_none(tmp_path):
    assert read_shared_memory(tmp_path) > 0
    assert read_shared_memory(tmp_path / "none") is None


@pytest.mark.parametrize(
    "limits, gpus, severity, words",
    [
        ({"files": 200}, 0, "breaks", "a process may have 200"),
        ({"locked": 65536}, 8, "slow", "limited to 0 MB"),
    ],
)
def test_limits_that_are_too_low(limits, gpus, severity, words):
    [finding] = judge_limits({**LIMITS, **limits}, num_workers=15, num_gpus=gpus, infiniband=1)
    assert finding.severity == severity and words in finding.what and "ulimit" in finding.fix


def test_limits_that_are_in_order():
    assert judge_limits(LIMITS, 15) == []
    assert judge_limits({"files": None, "most_files": None, "locked": None}, 15, 8, 1) == []
    assert judge_limits({**LIMITS, "locked": 65536}, 15, 1, 1) == []
    [finding] = judge_limits({**LIMITS, "files": 64, "most_files": 64}, 15)
    assert "no further than 64" in finding.fix


def test_limits_of_this_system_and_of_one_without(monkeypatch):
    assert set(read_limits()) == set(LIMITS)
    monkeypatch.setattr(hardware, "resource", None)
    assert set(read_limits().values()) == {None}


def test_the_disk_of_a_folder_that_is_still_to_be_made(tmp_path):
    disk = read_disk(tmp_path / "runs" / "mine")
    assert disk["folder"] == tmp_path and disk["free"] > 0 and disk["writable"]
    assert "free for" in describe_disk(disk)


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "runs").write_text("")
    disk = read_disk(tmp_path / "runs")
    [finding] = judge_disk(disk)
    assert finding.severity == "breaks" and "is a file" in finding.what and "is a file" in describe_disk(disk)


def test_a_disk_that_does_not_answer(tmp_path, monkeypatch):
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
    assert file_system(tmp_path / "my data", mounts) == "tmpfs"  # mounted last, over the one before
    assert file_system(tmp_path, mounts) == "xfs"
    assert file_system(tmp_path.parent, mounts) == "ext4"
    assert file_system(tmp_path, tmp_path / "none") == ""
