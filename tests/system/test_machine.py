"""Limits of a container, read from files as the kernel shows them; and freed memory, in pages that it hands out."""

import os
import subprocess
import sys

import pytest

from carvision.system import machine
from carvision.system.machine import core_quota, memory_limit, num_cores
from tests.conftest import ROOT

NUM_BLOCKS, PAGES = 20, 1024  # blocks of 4 MB, which glibc by itself takes from the kernel and gives back

PROGRAM = f"""
import resource, threading
import numpy as np
from carvision.system.runtime import keep_freed_memory

is_kept = keep_freed_memory(of_threads={{in_thread}}) if {{keep}} else None

def write_blocks(number):
    for _ in range(number):
        some = [np.ones({PAGES} * 4096 // 8) for _ in range(2)]  # both are freed when the next two are there

def measure():
    write_blocks(5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    write_blocks({NUM_BLOCKS})
    print(is_kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, flush=True)

if {{in_thread}}:
    threading.Thread(target=measure).start()
else:
    measure()
"""


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


V2 = {"own": "0::/a/b\n", "cg/a/b/cpu.max": "max 100000\n", "cg/a/cpu.max": "150000 100000\n"}
V1 = {"own": "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n0::/\n"}
V1 |= {"cg/memory/docker/x/memory.limit_in_bytes": "9223372036854771712\n"}
V1 |= {"cg/memory/memory.limit_in_bytes": "2147483648\n"}  # a container sees its own group at the top
V1 |= {"cg/cpu,cpuacct/cpu.cfs_quota_us": "250000\n", "cg/cpu,cpuacct/cpu.cfs_period_us": "100000\n"}


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


def run(keep: bool, in_thread: bool = False, **variables: str) -> list[str]:
    """Return whether memory is kept, and the number of page faults."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(keep=keep, in_thread=in_thread)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


@pytest.mark.parametrize("in_thread", [False, True])
def test_freed_memory_is_reused(in_thread):
    is_kept, faults = run(True, in_thread)
    if is_kept == "False":
        pytest.skip("this system's malloc has no such options")
    assert int(faults) < PAGES
    assert int(run(False, in_thread)[1]) > NUM_BLOCKS * PAGES / 2  # else there would be nothing to gain
    assert run(keep=True, MALLOC_TRIM_THRESHOLD_="100000")[0] == "False"  # what the user has chosen stays
