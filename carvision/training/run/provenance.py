"""Write environment.json: versions, hardware and command of each start of a run."""

import hashlib
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import CUDAAccelerator

from carvision import __version__
from carvision.files.atomic import write_json
from carvision.system.machine import num_cores, processor_name
from carvision.system.versions import git_state, read_versions
from carvision.training.run.folder import read_json

# They can change a result or its speed; none could hold a secret
VARIABLES = (
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "PYTHONHASHSEED", "PYTHONPATH", "CUDA_VISIBLE_DEVICES",
    "CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "PJRT_DEVICE", "XLA_FLAGS",
    "SLURM_JOB_ID", "SLURM_NTASKS",
)  # fmt: skip


def write_environment(folder: Path, config: dict, trainer: pl.Trainer) -> None:
    """Add this start to the list in the folder's environment.json. splits.csv must exist already."""
    start = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "working_folder": str(Path.cwd()),
        "seed": config["seed"],
        "deterministic": config["deterministic"],
        "precision": str(trainer.precision),
        "world_size": trainer.world_size,
        "devices": _device_names(trainer),
        "splits_sha256": hashlib.sha256((folder / "splits.csv").read_bytes()).hexdigest(),
        "carvision": {"version": __version__, **(git_state() or {"commit": None, "changed": None})},
        "python": platform.python_version(),
        "versions": read_versions(),
        "cuda": torch.version.cuda or torch.version.hip,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "platform": platform.platform(),
        "host": platform.node(),
        "processor": processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),  # vector instructions that the CPU's kernels use
        "num_cores": num_cores(),
        "num_threads": torch.get_num_threads(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
    file = folder / "environment.json"
    earlier = read_json(file, list, "its records of earlier starts are lost") or []
    write_json(file, [*earlier, start])


def _device_names(trainer: pl.Trainer) -> list[str]:
    """Return the names of this machine's devices. XLA devices are not queried: that would take them from their
    processes."""
    if isinstance(trainer.accelerator, CUDAAccelerator):
        return [torch.cuda.get_device_name(number) for number in trainer.device_ids]
    kind = type(trainer.accelerator).__name__.removesuffix("Accelerator").lower()
    return [kind] * trainer.num_devices
