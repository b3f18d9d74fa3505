"""Settings of the process: threads, text encoding, freed memory, and full precision. Importing it imports no torch."""

import contextlib
import ctypes
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

# Environment variables that libraries read when torch is imported; to be set before.

DEFAULTS = {
    # Threads that wait sleep, instead of keeping the cores busy that the photo readers need. Steps took a tenth of the
    # time where other processes were at work on the same two cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Where one of several processes ends, torch would print its own calls on the way to the others, hundreds of lines
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


def set_thread_defaults() -> None:
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


# UTF-8 on standard output and in file names, in every locale.


def use_utf8() -> None:
    """Print UTF-8 from here on, whatever the locale and PYTHONIOENCODING are.

    Where the locale's encoding is another one, Python has decoded the arguments by it, could not even name most files,
    and would hand that to every process it starts. There the command begins again, in Python's UTF-8 mode; its process
    stays the same. It must be called before a command has done anything.
    """
    if os.name == "posix" and sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    # Bytes of file names that are no UTF-8 are printed as they are on standard output, which programs read.
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        with contextlib.suppress(AttributeError, ValueError):  # something else in its place, or closed
            cast(io.TextIOWrapper, stream).reconfigure(encoding="utf-8", errors=errors)


# Memory that PyTorch frees stays with the process on Linux, instead of going back to the kernel at every step.

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


# Products in float32, for what near equal numbers are subtracted of.


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """Neither 16 bits nor TF32 on that kind of device, whatever a network may compute in."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
