"""Memory that PyTorch frees stays with the process on Linux, instead of going back to the kernel at every step."""

import ctypes
import os

# Of malloc.h
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
CHOSEN_BY_THE_USER = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> bool:
    """To be called before the first step; workers that are forked later do so, too. Whether this system can do it.

    glibc gets large tensors from the kernel and gives them back when they are freed. The kernel hands memory out page
    by page and filled with zeros, for each step on the CPU anew: 10,000 to 150,000 pages, which took a fifth to a third
    of the whole step's time (docs/benchmarks/step.md). Kept memory is simply used again. The peak grows by some
    percent, as blocks of different sizes leave gaps between each other.
    """
    if any(name in os.environ for name in CHOSEN_BY_THE_USER):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc: macOS, Windows, musl
        return False
    return bool(set_option(MMAP_THRESHOLD, 2**30)) and bool(set_option(TRIM_THRESHOLD, 2**31 - 1))


def give_back_freed_memory() -> None:
    """For a process that was just forked: what its parent had freed is not carried along. As soon as the parent uses
    that memory again, the child would be left with a copy of its own: 0.6 GB in a reader of photos that began after the
    first epoch of a MobileNetV2."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # not glibc
        return
