"""Freed memory is reused without asking the kernel: counted in pages that the kernel had to hand out."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

NUM_BLOCKS, PAGES = 20, 1024  # blocks of 4 MB, which glibc by itself takes from the kernel and gives back

PROGRAM = f"""
import os, resource
import numpy as np
from carvision.system.runtime import give_back_freed_memory, keep_freed_memory

is_kept = keep_freed_memory() if {{keep}} else None

def write_blocks(number):
    for _ in range(number):
        some = [np.ones({PAGES} * 4096 // 8) for _ in range(2)]  # both are freed when the next two are there

def resident():
    return int(open("/proc/self/statm").read().split()[1])

write_blocks(5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
write_blocks({NUM_BLOCKS})
print(is_kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, flush=True)
some, other = [np.ones({PAGES} * 4096 // 8) for _ in range({NUM_BLOCKS})], np.ones(1000)
del some
if is_kept and os.path.exists("/proc/self/statm") and os.fork() == 0:
    before = resident()
    give_back_freed_memory()
    print(before - resident(), (other == 1).all())
    os._exit(0)
if is_kept:
    os.wait()
"""


def run(keep: bool, **variables: str) -> list[str]:
    """Return whether memory is kept, and the number of page faults; if it is, also what a forked child printed."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(keep=keep)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


def test_freed_memory_is_reused_and_not_carried_into_a_forked_process():
    is_kept, faults, *child = run(keep=True)
    if is_kept == "False":
        pytest.skip("this system's malloc has no such options")
    assert int(faults) < PAGES
    returned, is_intact = child
    assert int(returned) > 0.9 * NUM_BLOCKS * PAGES and is_intact == "True"
    assert int(run(keep=False)[1]) > NUM_BLOCKS * PAGES / 2  # else there would be nothing to gain
    assert run(keep=True, MALLOC_TRIM_THRESHOLD_="100000")[0] == "False"  # what the user has chosen stays
