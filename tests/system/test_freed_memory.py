"""Freed memory is reused without asking the kernel: counted in pages that the kernel had to hand out."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

NUM_BLOCKS, PAGES = 20, 1024  # blocks of 4 MB, which glibc by itself takes from the kernel and gives back

PROGRAM = f"""
import resource
import numpy as np
from carvision.system.runtime import keep_freed_memory

is_kept = keep_freed_memory() if {{keep}} else None

def write_blocks(number):
    for _ in range(number):
        some = [np.ones({PAGES} * 4096 // 8) for _ in range(2)]  # both are freed when the next two are there

write_blocks(5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
write_blocks({NUM_BLOCKS})
print(is_kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, flush=True)
"""


def run(keep: bool, **variables: str) -> list[str]:
    """Return whether memory is kept, and the number of page faults."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(keep=keep)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


def test_freed_memory_is_reused():
    is_kept, faults = run(keep=True)
    if is_kept == "False":
        pytest.skip("this system's malloc has no such options")
    assert int(faults) < PAGES
    assert int(run(keep=False)[1]) > NUM_BLOCKS * PAGES / 2  # else there would be nothing to gain
    assert run(keep=True, MALLOC_TRIM_THRESHOLD_="100000")[0] == "False"  # what the user has chosen stays
