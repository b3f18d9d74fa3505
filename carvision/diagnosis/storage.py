"""Check shared memory, open files, and the disk for runs."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from carvision.diagnosis.finding import Finding, size_text

try:
    import resource
except ImportError:  # Windows
    resource = None

SHARED_MEMORY = Path("/dev/shm")
FILES_PER_WORKER = 6  # pipes and locks of a worker in the training process
MIN_DISK, GOOD_DISK = 0.5e9, 5e9  # bytes: a small network's checkpoints; those of EfficientNet-B5 and more
MIN_FILES = 100
NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "ceph", "beegfs", "gluster", "afs", "9p", "fuse.", "drvfs")
MEMORY = ("tmpfs", "ramfs")


def read_limits() -> dict:
    """Return the limits of open files, "files" (soft) and "most_files" (hard), and "locked" memory in bytes; None:
    unlimited or unknown."""
    if resource is None:
        return {"files": None, "most_files": None, "locked": None}
    soft, hard = (_finite(value) for value in resource.getrlimit(resource.RLIMIT_NOFILE))
    return {"files": soft, "most_files": hard, "locked": _finite(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0])}


def _finite(limit: int) -> int | None:
    return None if limit == resource.RLIM_INFINITY else limit


def read_shared_memory(folder: Path = SHARED_MEMORY) -> int | None:
    """Return the free bytes of the folder; None if the system has none."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def read_disk(wanted: Path, mounts: Path = Path("/proc/mounts")) -> dict:
    """Return facts about the disk of the folder, or of the nearest existing folder above it; "error" if there is
    nothing to tell."""
    folder = wanted.expanduser().absolute()
    try:
        if folder.exists() and not folder.is_dir():
            return {"wanted": wanted, "error": "is a file, not a folder"}
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        usage, counts = shutil.disk_usage(folder), os.statvfs(folder) if hasattr(os, "statvfs") else None
    except OSError as error:
        return {"wanted": wanted, "error": f"can't be read ({error.strerror})"}
    return {
        "wanted": wanted,
        "folder": folder,
        "free": usage.free,
        "files": counts.f_favail if counts and counts.f_files else None,  # 0: no such limit
        "writable": os.access(folder, os.W_OK | os.X_OK),
        "kind": file_system(folder, mounts),
    }


def file_system(folder: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """Return the type (ext4, nfs4, ...) of the mount that holds the folder, of the last one if one hides another; "" if
    unknown."""
    try:
        lines = [line.split() for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines()]
        resolved = folder.resolve()
    except OSError:
        return ""
    kind, longest = "", -1
    for _, mounted, name, *_ in (line for line in lines if len(line) >= 3):
        mounted = Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), mounted))  # "\040" is a space
        if (mounted == resolved or mounted in resolved.parents) and len(mounted.parts) >= longest:
            kind, longest = name, len(mounted.parts)
    return kind


def judge_shared_memory(free: int | None, num_gpus: int) -> list[Finding]:
    """Return a note if NCCL, by which a machine's GPUs exchange gradients, may lack shared memory; its user guide
    ("Troubleshooting") advises 1 GB. Reading photos needs none.

    free: bytes; None if the system has no such folder.
    """
    if free is None or num_gpus < 2 or free >= 1e9:
        return []
    what = f"{size_text(free)} are free in {SHARED_MEMORY}, and NCCL, by which GPUs exchange gradients, may want 1 GB"
    return [Finding("note", "shared memory", what, "docker run --shm-size=1g (or --ipc=host) for a container")]


def judge_limits(limits: dict, num_workers: int, num_gpus: int = 0, infiniband: int = 0) -> list[Finding]:
    """Return findings about the limits of open files and locked memory."""
    findings = []
    needed = 128 + num_workers * FILES_PER_WORKER
    if limits["files"] is not None and limits["files"] < needed:
        what = f"a process may have {limits['files']}; reading photos with {num_workers} processes needs about {needed}"
        most = limits["most_files"]
        fix = f"ulimit -n {4096 if most is None else min(most, 4096)} before the command"
        if most is not None and most < needed:
            fix = f"ulimit -n can go no further than {most} here: ask its administrator, or use data.num_workers=0"
        findings.append(Finding("breaks", "open files", f"{what}: it ends with 'Too many open files'", fix))
    if num_gpus > 1 and infiniband and limits["locked"] is not None and limits["locked"] < 64e6:
        what = f"is limited to {size_text(limits['locked'])}; over InfiniBand, GPUs of several machines need more"
        findings.append(
            Finding("slow", "locked memory", what, "ulimit -l unlimited, set by the machine's administrator")
        )
    return findings


def describe_disk(disk: dict) -> str:
    """Return the disk's free space as text."""
    if "error" in disk:
        return f"{disk['wanted']} {disk['error']}"
    kind = f", {disk['kind']}" if disk["kind"] else ""
    return f"{size_text(disk['free'])} free for {disk['wanted']}{kind}"


def judge_disk(disk: dict) -> list[Finding]:
    """Return findings about the disk for runs."""
    wanted = disk["wanted"]
    if "error" in disk:
        return [Finding("breaks", "disk", f"{wanted} {disk['error']}", "choose another folder for run.dir=")]
    findings = []
    if not disk["writable"]:
        what = f"{disk['folder']} can't be written to, so no run can be kept in {wanted}"
        findings.append(Finding("breaks", "disk", what, "choose another folder for run.dir="))
    if disk["free"] < GOOD_DISK:
        what = f"{size_text(disk['free'])} are free for {wanted}"
        more = "the checkpoints of a large network need some GB" if disk["free"] >= MIN_DISK else "runs do not fit"
        fix = "free some space, or choose another disk with run.dir="
        findings.append(Finding("note" if disk["free"] >= MIN_DISK else "breaks", "disk", f"{what}; {more}", fix))
    if disk["files"] is not None and disk["files"] < MIN_FILES:
        what = f"{disk['files']} more files (inodes) can be created for {wanted}, though space is left"
        findings.append(Finding("breaks", "disk", what, "remove files that are not needed, or choose another disk"))
    if is_network(disk["kind"]):
        what = f"{wanted} is on a network ({disk['kind']}): each checkpoint is sent over it, and waits when it does"
        findings.append(Finding("note", "disk", what, "a local disk for run.dir=, copied when the run is done"))
    if disk["kind"] in MEMORY:
        what = f"{wanted} is in memory ({disk['kind']}): a run there is gone when the machine stops"
        findings.append(Finding("note", "disk", what, "a real disk for run.dir="))
    return findings


def is_network(kind: str) -> bool:
    """Return whether the file-system type is a network's."""
    return kind.startswith(NETWORK)
