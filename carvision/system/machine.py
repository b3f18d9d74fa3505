"""Read the cores, memory limit and processor that this process has."""

from __future__ import annotations  # so that carvision.doctor can report a Python that is too old

import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
NO_LIMIT = 2**60  # bytes; cgroups of version 1 write a number near 2^63 for no limit


def num_cores() -> int:
    """Return the number of cores that this process may use; in a container it can be fewer than the machine's."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = core_quota()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def core_quota(own: Path = OWN_CGROUP, root: Path = CGROUPS) -> float | None:
    """Return the control group's limit of processor time in cores, as `docker run --cpus=1.5` sets it; None if none.

    A limited process still sees every core of the machine, and is suspended when its share is used up.
    """
    quotas = []
    for folder in _cgroup_folders("cpu", own, root):
        words = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"),
            *_words(folder / "cpu.cfs_period_us"),
        ]
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):  # else "max" or -1
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def memory_limit(own: Path = OWN_CGROUP, root: Path = CGROUPS) -> int | None:
    """Return the bytes above which the kernel kills a process of the control group; None if there is no limit."""
    limits = []
    for folder in _cgroup_folders("memory", own, root):
        for word in _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes"):
            if word.isdigit() and int(word) < NO_LIMIT:
                limits.append(int(word))
    return min(limits, default=None)


def _cgroup_folders(controller: str, own: Path, root: Path) -> Iterator[Path]:
    """Yield the folders of this process's control group and of its ancestors, in cgroups of versions 1 and 2.

    The smallest limit among them counts.
    """
    for line in read_lines(own):
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if number == "0":
            mounts = [root, root / "unified"]  # the latter where version 1 is mounted, too
        elif controller in controllers.split(","):
            mounts = [root / controllers, root / controller]
        else:
            continue
        parts = [part for part in path.split("/") if part]
        for mount in mounts:  # a container may see its own group at the top, but the path as the host has it
            yield from (mount.joinpath(*parts[:num]) for num in range(len(parts), -1, -1))


def _words(file: Path) -> list[str]:
    return [word for line in read_lines(file) for word in line.split()]


def read_lines(file: Path) -> list[str]:
    """Return the lines of one of the kernel's files; none if it can't be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def processor_name() -> str:
    """Return the processor's model name, or its architecture if the name is unknown."""
    for line in read_lines(Path("/proc/cpuinfo")):
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()
