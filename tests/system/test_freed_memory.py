"""Freed memory is used again without asking the kernel: counted in pages that the kernel had to hand out."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

NUM_BLOCKS, PAGES = 20, 1024  # of blocks of 4 MB, which glibc by itself takes from the kernel and gives back

PROGRAM = f"""
import resource
import numpy as np
from carvision.system.runtime import keep_freed_memory

kept = keep_freed_memory() if {{keep}} else None

def write_blocks(number):
    for _ in range(number):
        some = [np.ones({PAGES} * 4096 // 8) for _ in range(2)]  # both are freed when the next two are there

write_blocks(5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
write_blocks({NUM_BLOCKS})
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def kept_and_faults(keep: bool, **variables: str) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(keep=keep)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    kept, faults = done.stdout.split()
    return kept, int(faults)


def test_blocks_written_again_and_again_take_no_new_pages():
    kept, faults = kept_and_faults(keep=True)
    if kept == "False":
        pytest.skip("this system's malloc has no such options")
    assert faults < PAGES
    assert kept_and_faults(keep=False)[1] > NUM_BLOCKS * PAGES / 2  # else there would be nothing to gain


def test_options_of_malloc_that_the_user_has_chosen_stay():
    assert kept_and_faults(keep=True, MALLOC_TRIM_THRESHOLD_="100000")[0] == "False"


FORKING = f"""
import os
import numpy as np
from carvision.system.runtime import give_back_freed_memory, keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1])

print(keep_freed_memory(), flush=True)
some = [np.ones({PAGES} * 4096 // 8) for _ in range({NUM_BLOCKS})]
kept = np.ones(1000)
del some
if os.fork() == 0:
    before = resident()
    give_back_freed_memory()
    print(before - resident(), (kept == 1).all())
    os._exit(0)
os.wait()
"""


def test_a_reader_of_photos_does_not_carry_what_its_parent_had_freed():
    done = subprocess.run(
        [sys.executable, "-uc", FORKING], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    if done.stdout.startswith("False") or not sys.platform.startswith("linux"):
        pytest.skip("this system's malloc has no such options")
    pages, intact = done.stdout.split()[1:]
    assert int(pages) > 0.9 * NUM_BLOCKS * PAGES and intact == "True"
