"""Check environment variables that slow things down or break them, and the compiler for compile=true."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

from carvision.diagnosis.finding import Finding

# name, values that matter (None: any but "" and "0"), severity, consequence
KNOWN = (
    ("OMP_WAIT_POLICY", ("active",), "slow", "waiting threads keep cores busy that are needed to read photos"),
    ("CUDA_LAUNCH_BLOCKING", None, "slow", "every GPU operation is synchronous; it is meant for debugging"),
    ("PYTORCH_NO_CUDA_MEMORY_CACHING", None, "slow", "every tensor on the GPU is allocated anew"),
    ("NVIDIA_TF32_OVERRIDE", ("0",), "slow", "TF32 is off, whatever the program says"),
    ("TORCH_LOGS", None, "slow", "torch reports what it does, which takes time"),
    ("TORCHDYNAMO_DISABLE", None, "note", "compile=true does nothing"),
    ("TORCH_COMPILE_DISABLE", None, "note", "compile=true does nothing"),
    ("TORCH_DISTRIBUTED_DEBUG", ("detail",), "slow", "every exchange between processes is checked"),
    ("NCCL_P2P_DISABLE", None, "slow", "GPUs do not exchange gradients directly"),
    ("NCCL_DEBUG", ("info", "trace"), "note", "NCCL fills the output with what it does"),
    ("XLA_IR_DEBUG", None, "slow", "XLA records where each operation came from; it is meant for debugging"),
    ("XLA_HLO_DEBUG", None, "slow", "XLA records where each operation came from; it is meant for debugging"),
    ("PYTHONDEVMODE", None, "slow", "Python checks itself; it is meant for debugging"),
    ("PYTHONMALLOC", ("debug", "malloc_debug", "pymalloc_debug"), "slow", "Python checks every piece of memory"),
    ("PYTHONOPTIMIZE", ("2",), "note", "Python drops docstrings, which some packages need"),
    ("OMP_PROC_BIND", ("true", "close", "spread", "master"), "slow", "processes that read photos may share one core"),
    ("GOMP_CPU_AFFINITY", None, "slow", "processes that read photos may share one core"),
    ("CUDA_VISIBLE_DEVICES", ("-1",), "note", "it hides all GPUs: trainer=gpu fails"),
    ("HF_HUB_OFFLINE", None, "note", "weights are not downloaded, only taken from the cache"),
    ("LD_PRELOAD", None, "note", "a library is loaded before all others, even torch's"),
)  # fmt: skip
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def judge_variables(variables: dict[str, str], num_cores: int) -> list[Finding]:
    """Return findings about environment variables. variables: such as os.environ."""
    findings = []
    for name, values, severity, what in KNOWN:
        value = variables.get(name)
        if value is not None and (value.lower() in values if values else value not in ("", "0")):
            findings.append(Finding(severity, name, f"is {value}: {what}", f"unset {name}"))
    if variables.get("CUDA_VISIBLE_DEVICES") == "":
        what = "is empty, which hides all GPUs: trainer=gpu fails"
        findings.append(Finding("note", "CUDA_VISIBLE_DEVICES", what, "unset CUDA_VISIBLE_DEVICES"))
    for name in THREADS:
        findings += _judge_threads(name, variables.get(name), num_cores)
    # Without TORCHELASTIC_RUN_ID, torchrun did not set them: they are left over from another session
    left = [name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in variables]
    if left and "TORCHELASTIC_RUN_ID" not in variables and "SLURM_JOB_ID" not in variables:
        what = "set, but not by torchrun: training waits for processes that never come"
        findings.append(Finding("breaks", ", ".join(left), what, f"unset {' '.join(left)}"))
    return findings


def _judge_threads(name: str, value: str | None, num_cores: int) -> list[Finding]:
    if value is None:
        return []
    first = value.split(",")[0].strip()  # "4,2": nested
    if not first.isdigit() or int(first) < 1:
        return [Finding("slow", name, f"{value!r} is not a number of threads, and is ignored", f"unset {name}")]
    if int(first) > num_cores:
        what = f"is {value}, on {num_cores} cores: libraries that obey it start threads that slow each other down"
        return [Finding("slow", name, what, f"{name}={num_cores}, or unset it")]
    if int(first) == 1 and num_cores >= 4:
        what = f"is 1, on {num_cores} cores: training on the processor uses one of them (right for a GPU)"
        return [Finding("note", name, what, f"for trainer=cpu, {name}={num_cores // 2} or more")]
    return []


def read_compiler(variables: dict[str, str] | None = None, headers: str | None = None) -> dict:
    """Return the paths of what torch.compile calls: "cpp" for the processor; "c" and Python's "headers" for Triton on a
    GPU."""
    variables = dict(os.environ) if variables is None else variables
    path = variables.get("PATH", "")

    def first(*names: str) -> str | None:
        return next((found for name in names if name and (found := shutil.which(name, path=path))), None)

    header = Path(headers or sysconfig.get_paths()["include"]) / "Python.h"
    return {
        "cpp": first(variables.get("CXX", ""), "g++", "c++", "clang++"),
        "c": first(variables.get("CC", ""), "gcc", "cc", "clang"),
        "headers": str(header) if header.is_file() else None,
    }


def judge_compiler(compiler: dict, num_gpus: int) -> list[Finding]:
    """Return findings about the compiler for compile=true."""
    what = "there is none for C++" if not compiler["cpp"] else ""
    if num_gpus and not compiler["c"]:
        what = "there is none for C"
    if what:
        fix = "install g++ and gcc (build-essential), or leave compile=false"
        return [Finding("note", "compiler", f"{what}: compile=true fails", fix)]
    if not compiler["headers"]:
        what = "Python's header files are missing: compile=true may fail"
        return [Finding("note", "compiler", what, "install python3-dev (python3.11-dev), or leave compile=false")]
    return []
