"""Settings of the process: threads, encoding, its end, memory, full precision. Importing it imports no torch."""

import contextlib
import ctypes
import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

DEFAULTS = {
    # Waiting threads sleep instead of keeping the cores busy that reading threads need: steps took a tenth of the time
    # while other processes used the same two cores
    "OMP_WAIT_POLICY": "PASSIVE",
    # Else torch prints hundreds of lines of its own calls when one of several processes ends
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
# Signals that end a run or a search at the next checkpoint
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
SIGKILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # which Windows lacks
# Options of malloc.h
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
CHOSEN_BY_THE_USER = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX")


def set_thread_defaults() -> None:
    """Set the environment variables of DEFAULTS that are not set; libraries read them when torch is imported."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def use_utf8() -> None:
    """Use UTF-8 for output and file names, whatever the locale and PYTHONIOENCODING are.

    In a locale of another encoding, Python has already decoded the arguments by it, cannot name most files, and would
    pass that on to its child processes. Then the command is executed again, in Python's UTF-8 mode and the same
    process, so this must be called before the command does anything.
    """
    if os.name == "posix" and sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    # Bytes of file names that are not UTF-8 appear unchanged on standard output, which programs read
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        with contextlib.suppress(AttributeError, ValueError):  # replaced by another object, or closed
            cast(io.TextIOWrapper, stream).reconfigure(encoding="utf-8", errors=errors)


def end_with_parent(lifeline: int, ending: int = SIGKILL) -> None:
    """Send this process the signal once the process that holds the other end of the pipe has ended."""

    def watch() -> None:
        while os.read(lifeline, 1):
            pass
        os.kill(os.getpid(), ending)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause Python's garbage collection in this block, for imports: it looks through all objects again and again as
    their number grows, which is a tenth of the CPU time of importing torch, timm and Lightning."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def keep_freed_memory(of_threads: bool = False) -> bool:
    """Keep freed memory in the process on Linux; return whether this system can do it.

    Call it before the first step. By default glibc returns large tensors to the kernel when they are freed, and the
    kernel hands the memory out again page by page, filled with zeros: 10,000 to 150,000 pages for each step on the CPU,
    a fifth to a third of its time (docs/benchmarks/step.md). Kept memory is simply reused. The peak grows by some
    percent, as blocks of different sizes leave gaps.

    of_threads: also what other threads free, where one of them runs the network. By default each has an arena of its
    own, of heaps of 64 MB, and returns what does not fit into them.
    """
    if any(name in os.environ for name in CHOSEN_BY_THE_USER):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc: macOS, Windows, musl
        return False
    if of_threads and not set_option(ARENA_MAX, 1):
        return False
    return bool(set_option(MMAP_THRESHOLD, 2**30)) and bool(set_option(TRIM_THRESHOLD, 2**31 - 1))


def release_freed_memory() -> None:
    """Return freed memory to the system, as far as whole pages are free. On Linux; elsewhere it does nothing.

    For a process that runs for long after keep_freed_memory: blocks of ever other sizes leave ever more gaps.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """Compute in float32 inside this block: no autocast on that type of device, and no TF32.

    For products of which nearly equal numbers are subtracted.
    """
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
