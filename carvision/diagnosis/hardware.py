"""Check the machine: cores and memory that this process may use, GPUs, and the disk for runs."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from carvision.diagnosis.findings import Finding, Part, size_text
from carvision.system.machine import core_quota, memory_limit, num_cores, processor_name, read_lines

MIN_MEMORY = 2e9  # bytes: torch with Lightning, and a small network
NVIDIA = "0x10de"  # PCI vendor id
DISPLAYS = ("0x0300", "0x0302")  # PCI classes of GPUs
MIN_DISK, GOOD_DISK = 0.5e9, 5e9  # bytes: a small network's checkpoints; those of EfficientNet-B5 and more
# Types of file systems on a network
NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "ceph", "beegfs", "gluster", "afs", "9p", "fuse.", "drvfs")
ANOTHER_FOLDER = "choose another folder for run.dir="


def read_processor(file: Path = Path("/proc/meminfo")) -> dict:
    """Return facts about cores, load and memory: "memory" and "available" in bytes; None: unknown."""
    words = [line.split() for line in read_lines(file)]
    memory = {line[0]: int(line[1]) * 1024 for line in words if len(line) > 1 and line[1].isdigit()}
    return {
        "name": processor_name(),
        "machine": os.cpu_count() or 1,
        "usable": num_cores(),
        "quota": core_quota(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "memory": memory.get("MemTotal:"),
        "available": memory.get("MemAvailable:"),
        "memory_limit": memory_limit(),
    }


def examine_processor(facts: dict, num_threads: int | None) -> Part:
    """Examine cores, load and memory. facts: of read_processor. num_threads: torch's; None if it could not be asked."""
    usable, machine, quota, load = (facts[name] for name in ("usable", "machine", "quota", "load"))
    memory, available, limit = (facts[name] for name in ("memory", "available", "memory_limit"))
    cores = f"{usable} of {machine} cores" if usable < machine else f"{usable} core{'s' if usable > 1 else ''}"
    cores += f" (time for {quota:g})" if quota is not None else ""
    yield "processor", f"{cores}, {facts['name']}" + ("" if load is None else f", load {load:.1f}")
    if memory:
        allowed = "" if limit is None or limit >= memory else f", of which this container may take {size_text(limit)}"
        yield "memory", f"{size_text(memory)}, {size_text(available or 0)} free{allowed}"
    if num_threads and num_threads > usable:
        what = f"torch would use {num_threads} threads on {usable} cores, where they slow each other down"
        yield Finding("slow", "threads", what, f"set OMP_NUM_THREADS={usable}")
    if usable == 1:
        what = "only one, so loading and training cannot overlap"
        yield Finding("slow", "cores", what, "a machine or container with more cores")
    if load is not None and load > usable + 0.5:
        what = f"{load:.1f} on {cores}: everything runs slower, including these measurements"
        yield Finding("slow", "load", what, "see what is running (top), and stop what is not needed")
    limits = [value for value in (available, limit) if value is not None]
    if limits and min(limits) < MIN_MEMORY:
        what = f"{size_text(min(limits))} can be used; the kernel kills processes that want more, without a message"
        fix = "stop other programs, raise the container's limit, or try a small data.batch_size"
        yield Finding("breaks", "memory", what, fix)


def read_gpus(root: Path = Path("/")) -> dict:
    """Return the NVIDIA GPUs that the system shows, without torch. root: of the file system."""
    driver = re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", " ".join(read_lines(root / "proc/driver/nvidia/version")))
    cards = [
        card
        for card in (root / "sys/bus/pci/devices").glob("*")
        if read_lines(card / "vendor") == [NVIDIA] and "".join(read_lines(card / "class")).startswith(DISPLAYS)
    ]
    return {
        "nvidia_cards": len(cards),
        "nvidia_nodes": len(list((root / "dev").glob("nvidia[0-9]*"))),
        "nvidia_driver": driver[0] if driver else None,
    }


def examine_gpus(system: dict, torch: dict, version: str | None) -> Part:
    """Examine the GPUs.

    system: of read_gpus. torch: the answer of probe's step "devices", {} if torch could not be asked; its version.
    """
    gpus, num_seen = torch.get("gpus", []), max(system["nvidia_cards"], system["nvidia_nodes"])
    for gpu in gpus:
        yield from _examine_gpu(gpu, torch["architectures"])
    if torch.get("mps"):
        yield "GPU", "Apple's; trainer=gpu takes it"
    elif not gpus:
        yield "GPU", f"{num_seen} NVIDIA GPU{'s' if num_seen > 1 else ''} that torch can't use" if num_seen else "none"
    if system["nvidia_driver"]:
        yield "driver", system["nvidia_driver"]
    if "error" in torch:
        what = f"torch could not list its devices: {torch['error']}"
        yield Finding("breaks", "GPU", what, "check whether nvidia-smi works; trainer=cpu needs no GPU")
    elif torch and not gpus and num_seen:
        yield _why_no_gpu(system, torch, version)


def _why_no_gpu(system: dict, torch: dict, version: str | None) -> Finding:
    there = "there is an NVIDIA GPU, but"
    if not torch["cuda_build"]:
        what = f"{there} torch {version} was built without CUDA: training uses the processor, and trainer=gpu fails"
        fix = "install builds of torch and torchvision with CUDA, both from the same index"
        return Finding("breaks", "GPU", what, fix)
    if "too old" in torch["cuda_error"]:
        what = f"the driver {system['nvidia_driver'] or ''} is too old for torch {version} (CUDA {torch['cuda_build']})"
        fix = "a newer driver, or builds of torch and torchvision for an older CUDA"
        return Finding("breaks", "GPU", f"{what}: trainer=gpu fails", fix)
    if not system["nvidia_nodes"]:
        fix = "install NVIDIA's driver; in a container, start it with --gpus all"
        severity = "breaks" if system["nvidia_driver"] else "slow"
        return Finding(severity, "GPU", f"{there} its driver does not show it here: trainer=gpu fails", fix)
    reason = f" ({torch['cuda_error']})" if torch["cuda_error"] else ""
    fix = "check whether nvidia-smi works and whether CUDA_VISIBLE_DEVICES hides it"
    return Finding("breaks", "GPU", f"{there} torch can't use it{reason}: trainer=gpu fails", fix)


def _examine_gpu(gpu: dict, architectures: list[str]) -> Part:
    name = gpu["name"]
    if "error" in gpu:
        yield "GPU", f"{name}: {gpu['error']}"
        yield Finding("breaks", name, f"does not answer: {gpu['error']}", "check it with nvidia-smi")
        return
    total, free, (major, minor) = size_text(gpu["total"]), size_text(gpu["free"]), gpu["capability"]
    bf16 = "bf16" if major >= 8 else "no bf16 (mixed precision is 16-mixed, which scales the loss)"
    yield "GPU", f"{name}, {total}, {free} free, compute capability {major}.{minor}, {bf16}"
    newest = 10 * major + minor
    known = [(kind, int(number)) for kind, number in re.findall(r"(sm|compute)_(\d+)", " ".join(architectures))]
    # Binaries for 8.0 run on later chips of that generation (8.6), and PTX ("compute") on all later ones
    if known and not any(number <= newest and (kind == "compute" or number >= 10 * major) for kind, number in known):
        what = f"has compute capability {major}.{minor}, and this torch was built for {', '.join(architectures)} only"
        yield Finding("breaks", name, what, "a build of torch for this GPU, older or newer")
    if gpu["free"] < 0.5 * gpu["total"]:
        what = f"has {free} of {total} free: another process holds the rest"
        fix = "end it (nvidia-smi shows it), choose another GPU with CUDA_VISIBLE_DEVICES, or a smaller data.batch_size"
        yield Finding("slow", name, what, fix)


def read_disk(wanted: Path, mounts: Path = Path("/proc/mounts")) -> dict:
    """Return facts about the disk of the folder, or of the nearest existing folder above it; or why there are none,
    "error"."""
    folder = wanted.expanduser().absolute()
    try:
        if folder.exists() and not folder.is_dir():
            return {"wanted": wanted, "error": "is a file, not a folder"}
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return {"wanted": wanted, "error": f"can't be read ({error.strerror})"}
    writable, kind = os.access(folder, os.W_OK | os.X_OK), file_system(folder, mounts)
    return {"wanted": wanted, "folder": folder, "free": free, "writable": writable, "kind": kind}


def file_system(folder: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """Return the type (ext4, nfs4, ...) of the mount that holds the folder, of the last one if one hides another; "" if
    unknown."""
    kind, longest, resolved = "", -1, folder.resolve()
    for _, where, name, *_ in (line.split() for line in read_lines(mounts) if len(line.split()) >= 3):
        mounted = Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), where))  # "\040" is a space
        if (mounted == resolved or mounted in resolved.parents) and len(mounted.parts) >= longest:
            kind, longest = name, len(mounted.parts)
    return kind


def examine_disk(disk: dict) -> Part:
    """Examine the disk for runs. disk: of read_disk."""
    wanted = disk["wanted"]
    if "error" in disk:
        yield Finding("breaks", "disk", f"{wanted} {disk['error']}", ANOTHER_FOLDER)
        return
    free, kind = size_text(disk["free"]), disk["kind"]
    yield "disk", f"{free} free for {wanted}" + (f", {kind}" if kind else "")
    if not disk["writable"]:
        what = f"{disk['folder']} can't be written to, so no run can be kept in {wanted}"
        yield Finding("breaks", "disk", what, ANOTHER_FOLDER)
    fix = "free some space, or choose another disk with run.dir="
    if disk["free"] < MIN_DISK:
        yield Finding("breaks", "disk", f"{free} are free for {wanted}; runs do not fit", fix)
    elif disk["free"] < GOOD_DISK:
        what = f"{free} are free for {wanted}; the checkpoints of a large network need some GB"
        yield Finding("note", "disk", what, fix)
    if kind.startswith(NETWORK):
        what = f"{wanted} is on a network ({kind}): checkpoints are written over it, and stall when it does"
        yield Finding("note", "disk", what, "a local disk for run.dir=, copied when the run is done")
