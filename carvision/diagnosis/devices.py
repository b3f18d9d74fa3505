"""Check GPUs and TPUs, and what torch can do with them."""

from __future__ import annotations

import re
from pathlib import Path

from carvision.diagnosis.finding import Finding, size_text

NVIDIA, GOOGLE = "0x10de", "0x1ae0"  # PCI vendor ids
DISPLAYS = ("0x0300", "0x0302")  # PCI classes of GPUs
TPU_CHIPS = ("0x0027", "0x005e", "0x0062", "0x0063", "0x006f")  # PCI device ids of TPUs, v2 to v6e
NEW_ENV = "an environment of its own: scripts/setup_tpu.sh"


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
        rows.append(("GPU", f"{seen} by NVIDIA, which torch can't use" if seen else "none"))
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
    # Binaries for 8.0 run on later chips of that generation (8.6), not on older or, without PTX, newer generations.
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
