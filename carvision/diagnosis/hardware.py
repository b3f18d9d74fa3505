"""Check the machine: cores and memory that this process may use, GPUs and TPUs, shared memory, limits and disk."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from carvision.diagnosis.finding import Finding, size_text
from carvision.system.machine import core_quota, memory_limit, num_cores, processor_name

try:
    import resource
except ImportError:  # Windows
    resource = None

MIN_MEMORY = 2e9  # bytes: torch with Lightning, a small network and two workers
NVIDIA, GOOGLE = "0x10de", "0x1ae0"  # PCI vendor ids
DISPLAYS = ("0x0300", "0x0302")  # PCI classes of GPUs
TPU_CHIPS = ("0x0027", "0x005e", "0x0062", "0x0063", "0x006f")  # PCI device ids of TPUs, v2 to v6e
NEW_ENV = "an environment of its own: scripts/setup_tpu.sh"
SHARED_MEMORY = Path("/dev/shm")
FILES_PER_WORKER = 6  # pipes and locks of a worker in the training process
MIN_DISK, GOOD_DISK = 0.5e9, 5e9  # bytes: a small network's checkpoints; those of EfficientNet-B5 and more
MIN_FILES = 100
NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "ceph", "beegfs", "gluster", "afs", "9p", "fuse.", "drvfs")
MEMORY = ("tmpfs", "ramfs")


def read_processor() -> dict:
    """Return facts about cores, load and memory."""
    return {
        "name": processor_name(),
        "machine": os.cpu_count() or 1,
        "usable": num_cores(),
        "quota": core_quota(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        **read_memory(),
    }


def read_memory(file: Path = Path("/proc/meminfo")) -> dict:
    """Return "memory" and "available" in bytes, None if unknown, and the control group's "memory_limit"."""
    try:
        lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
        found = {words[0]: int(words[1]) * 1024 for words in lines if len(words) > 1 and words[1].isdigit()}
    except OSError:
        found = {}
    return {
        "memory": found.get("MemTotal:"),
        "available": found.get("MemAvailable:"),
        "memory_limit": memory_limit(),
    }


def describe_processor(facts: dict) -> list[tuple[str, str]]:
    """Return rows (name, text) about processor and memory."""
    usable, machine, quota = facts["usable"], facts["machine"], facts["quota"]
    cores = f"{usable} of {machine} cores" if usable < machine else f"{usable} cores"
    cores += f" (time for {quota:g})" if quota is not None else ""
    load = "" if facts["load"] is None else f", load {facts['load']:.1f}"
    rows = [("processor", f"{cores}, {facts['name']}{load}")]
    if facts["memory"]:
        limit = facts["memory_limit"]
        allowed = f", of which this container may take {size_text(limit)}" if _limited(facts) else ""
        rows.append(("memory", f"{size_text(facts['memory'])}, {size_text(facts['available'] or 0)} free{allowed}"))
    return rows


def _limited(facts: dict) -> bool:
    return facts["memory_limit"] is not None and facts["memory_limit"] < (facts["memory"] or float("inf"))


def judge_processor(facts: dict, num_threads: int | None = None) -> list[Finding]:
    """Return findings about cores, load and memory. num_threads: torch's; None if it could not be asked."""
    findings = []
    usable, machine, quota = facts["usable"], facts["machine"], facts["quota"]
    threads = num_threads or 0
    if quota is not None and quota < machine and threads > usable:
        what = f"this container has time for {quota:g} cores, and torch's {threads} threads slow each other down"
        findings.append(
            Finding("slow", "cores", what, f"set OMP_NUM_THREADS={usable}, or give the container more cores")
        )
    elif threads > usable:
        what = f"torch would use {threads} threads on {usable} cores"
        findings.append(Finding("slow", "threads", what, f"set OMP_NUM_THREADS={usable}"))
    if usable == 1:
        what = "only one, so loading and training cannot overlap"
        findings.append(Finding("slow", "cores", what, "a machine or container with more cores"))
    if facts["load"] is not None and facts["load"] > usable + 0.5:
        cores = f"{usable} core{'s' if usable > 1 else ''}"
        what = f"{facts['load']:.1f} on {cores}: everything runs slower, including these measurements"
        findings.append(Finding("slow", "load", what, "see what is running (top), and stop what is not needed"))
    limits = [value for value in (facts["available"], facts["memory_limit"]) if value is not None]
    if limits and min(limits) < MIN_MEMORY:
        what = f"{size_text(min(limits))} can be used; the kernel kills processes that want more, without a message"
        fix = "stop other programs, raise the container's limit, or try data.num_workers=0 and a small data.batch_size"
        findings.append(Finding("breaks", "memory", what, fix))
    return findings


def read_accelerators(root: Path = Path("/")) -> dict:
    """Return the accelerators that the system shows, without torch. root: of the file system."""
    driver = _read(root / "proc/driver/nvidia/version")
    pci = [
        (_read(device / "vendor").strip(), _read(device / "class").strip()[:6], _read(device / "device").strip())
        for device in sorted((root / "sys/bus/pci/devices").glob("*"))
    ]
    return {
        "nvidia_cards": sum(vendor == NVIDIA and kind in DISPLAYS for vendor, kind, _ in pci),
        "nvidia_nodes": len(list((root / "dev").glob("nvidia[0-9]*"))),
        "nvidia_driver": (re.findall(r"\b\d{3}\.\d+(?:\.\d+)?\b", driver) or [None])[0],
        "tpu_chips": sum(vendor == GOOGLE and device in TPU_CHIPS for vendor, _, device in pci)
        or len(list((root / "dev").glob("accel[0-9]*"))),
        "infiniband": len(list((root / "sys/class/infiniband").glob("*"))),
    }


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace", encoding="utf-8")
    except OSError:
        return ""


def describe_devices(system: dict, torch: dict) -> list[tuple[str, str]]:
    """Return rows (name, text) about the devices. torch: the answer of probe's step "devices", {} if torch could not be
    asked."""
    rows = []
    for gpu in torch.get("gpus", []):
        if "error" in gpu:
            rows.append(("GPU", f"{gpu['name']}: {gpu['error']}"))
            continue
        capability = ".".join(map(str, gpu["capability"]))
        bf16 = "bf16" if gpu["capability"] >= [8, 0] else "no bf16"
        memory = f"{size_text(gpu['total'])}, {size_text(gpu['free'])} free"
        rows.append(("GPU", f"{gpu['name']}, {memory}, compute capability {capability}, {bf16}"))
    if torch.get("mps"):
        rows.append(("GPU", "Apple's; trainer=gpu takes it"))
    if not rows:
        seen = max(system["nvidia_cards"], system["nvidia_nodes"])
        rows.append(("GPU", f"{seen} NVIDIA GPU{'s' if seen > 1 else ''} that torch can't use" if seen else "none"))
    if system["nvidia_driver"]:
        rows.append(("driver", system["nvidia_driver"]))
    if system["tpu_chips"]:
        rows.append(("TPU", f"{system['tpu_chips']} chips"))
    return rows


def judge_devices(system: dict, torch: dict, versions: dict[str, str | None]) -> list[Finding]:
    """Return findings about the devices; arguments as in describe_devices, versions: {package: version or None}."""
    findings = _judge_tpu(system, versions)
    if torch and "error" not in torch:
        findings += _judge_missing_gpu(system, torch, versions.get("torch"))
        for gpu in torch["gpus"]:
            findings += _judge_gpu(gpu, torch["architectures"])
        names = sorted({gpu["name"] for gpu in torch["gpus"]})
        if len(names) > 1:
            what = (
                f"are of {len(names)} kinds ({', '.join(names)}); with trainer=ddp the fast ones wait for the slow ones"
            )
            findings.append(Finding("slow", "GPUs", what, "choose GPUs of one kind with CUDA_VISIBLE_DEVICES"))
    elif torch:
        what = f"torch could not list its devices: {torch['error']}"
        findings.append(Finding("breaks", "GPU", what, "check whether nvidia-smi works; trainer=cpu needs no GPU"))
    return findings


def _judge_missing_gpu(system: dict, torch: dict, version: str | None) -> list[Finding]:
    if torch["gpus"] or not (system["nvidia_cards"] or system["nvidia_nodes"]):
        return []
    if not torch["cuda_build"]:
        what = f"there is an NVIDIA GPU, but torch {version} was built without CUDA: training uses the processor"
        fix = "install builds of torch and torchvision with CUDA, both from the same index"
        return [Finding("breaks", "GPU", f"{what}, and trainer=gpu fails", fix)]
    if "too old" in torch["cuda_error"]:
        what = f"the driver {system['nvidia_driver'] or ''} is too old for torch {version} (CUDA {torch['cuda_build']})"
        fix = "a newer driver, or builds of torch and torchvision for an older CUDA"
        return [Finding("breaks", "GPU", f"{what}: trainer=gpu fails", fix)]
    if not system["nvidia_nodes"]:
        what = "there is an NVIDIA GPU, but its driver does not show it here: trainer=gpu fails"
        fix = "install NVIDIA's driver; in a container, start it with --gpus all"
        return [Finding("breaks" if system["nvidia_driver"] else "slow", "GPU", what, fix)]
    reason = f" ({torch['cuda_error']})" if torch["cuda_error"] else ""
    what = f"there is an NVIDIA GPU, which torch can't use{reason}: trainer=gpu fails"
    return [Finding("breaks", "GPU", what, "check whether nvidia-smi works and whether CUDA_VISIBLE_DEVICES hides it")]


def _judge_gpu(gpu: dict, architectures: list[str]) -> list[Finding]:
    if "error" in gpu:
        return [Finding("breaks", gpu["name"], f"does not answer: {gpu['error']}", "check it with nvidia-smi")]
    findings = []
    major, minor = gpu["capability"]
    known = [int(name) for name in re.findall(r"(?:sm|compute)_(\d+)", " ".join(architectures))]
    # Binaries for 8.0 run on later chips of that generation (8.6), not on older or, without PTX, newer generations
    compatible = any(number // 10 == major and number % 10 <= minor for number in known)
    has_ptx = any(
        name.startswith("compute_") and int(name[8:].rstrip("af")) <= 10 * major + minor for name in architectures
    )
    if known and not (compatible or has_ptx):
        what = f"has compute capability {major}.{minor}, and this torch was built for {', '.join(architectures)} only"
        return [Finding("breaks", gpu["name"], what, "a build of torch for this GPU, older or newer")]
    if [major, minor] < [8, 0]:
        what = "has no bf16 and no TF32: mixed precision is 16-mixed, which scales the loss"
        findings.append(Finding("note", gpu["name"], what))
    if gpu["free"] < 0.5 * gpu["total"]:
        what = f"has {size_text(gpu['free'])} of {size_text(gpu['total'])} free: another process holds the rest"
        fix = "end it (nvidia-smi shows it), choose another GPU with CUDA_VISIBLE_DEVICES, or a smaller data.batch_size"
        findings.append(Finding("slow", gpu["name"], what, fix))
    return findings


def _judge_tpu(system: dict, versions: dict[str, str | None]) -> list[Finding]:
    if system["tpu_chips"] and not versions.get("torch-xla"):
        what = "there is one, but torch-xla is not installed: trainer=tpu fails"
        return [Finding("breaks", "TPU", what, NEW_ENV)]
    return []


def read_limits() -> dict:
    """Return the limits of open files, "files" (soft) and "most_files" (hard), and of "locked" memory in bytes.

    None: unlimited or unknown.
    """
    if resource is None:
        return {"files": None, "most_files": None, "locked": None}
    soft, hard = (_finite(value) for value in resource.getrlimit(resource.RLIMIT_NOFILE))
    return {"files": soft, "most_files": hard, "locked": _finite(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0])}


def _finite(limit: int) -> int | None:
    return None if resource is None or limit == resource.RLIM_INFINITY else limit


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
        what = f"{wanted} is on a network ({disk['kind']}): checkpoints are written over it, and stall when it does"
        findings.append(Finding("note", "disk", what, "a local disk for run.dir=, copied when the run is done"))
    if disk["kind"] in MEMORY:
        what = f"{wanted} is in memory ({disk['kind']}): a run there is gone when the machine stops"
        findings.append(Finding("note", "disk", what, "a real disk for run.dir="))
    return findings


def is_network(kind: str) -> bool:
    """Return whether the file-system type is a network's."""
    return kind.startswith(NETWORK)
