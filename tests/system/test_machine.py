"""Limits of a container, read from files as the kernel shows them."""

import os

import pytest

from carvision.system import machine
from carvision.system.machine import core_quota, memory_limit, num_cores


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


V2 = {"own": "0::/a/b\n", "cg/a/b/cpu.max": "max 100000\n", "cg/a/cpu.max": "150000 100000\n"}
V1 = {
    "own": "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n0::/\n",
    "cg/cpu,cpuacct/cpu.cfs_quota_us": "250000\n",  # a container sees its own group at the top
    "cg/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    "cg/memory/docker/x/memory.limit_in_bytes": "9223372036854771712\n",
    "cg/memory/memory.limit_in_bytes": "2147483648\n",
}


@pytest.mark.parametrize("files, quota, memory", [
    ({**V2, "cg/a/b/memory.max": "1000000\n", "cg/a/memory.max": "max\n"}, 1.5, 1_000_000),
    ({**V2, "cg/a/b/cpu.max": "50000 100000"}, 0.5, None), (V1, 2.5, 2**31),
    ({**V1, "cg/cpu,cpuacct/cpu.cfs_quota_us": "-1"}, None, 2**31),
    ({"own": "what\n0:\n", "cg/cpu.max": "no numbers"}, None, None), ({}, None, None),
])  # fmt: skip
def test_limits_of_the_control_group(tmp_path, files, quota, memory):
    write(tmp_path, files)
    where = tmp_path / "own", tmp_path / "cg"
    assert core_quota(*where) == quota
    assert memory_limit(*where) == memory


def test_a_quota_lowers_the_number_of_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    for quota, cores in ((None, 16), (1.5, 2), (0.5, 1), (64.0, 16)):
        monkeypatch.setattr(machine, "core_quota", lambda quota=quota: quota)
        assert num_cores() == cores
