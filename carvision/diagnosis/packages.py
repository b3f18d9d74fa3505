"""Check the software: Python, versions, builds and imports of packages, environment variables, and the compiler."""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from carvision.diagnosis.finding import Finding, abbreviate
from carvision.system.versions import OPTIONAL, name_of

OLDEST_PYTHON = (3, 11)  # as in pyproject.toml
# Modules whose name differs from the package's
MODULES = {
    "hydra-core": "hydra",
    "pyyaml": "yaml",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
}
MALICIOUS = {"pytorch-lightning": ("2.6.2", "2.6.3"), "lightning": ("2.6.2", "2.6.3")}
STOLEN = "treat all passwords and tokens of this machine as stolen; then install another version"
TOGETHER = "install torch and torchvision together, of one build: pip install --force-reinstall torch torchvision"
# Variables: name, values that matter (None: any but "" and "0"), severity, consequence
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


def module_of(package: str) -> str:
    """Return the name of a package's module."""
    return MODULES.get(package, package.replace("-", "_"))


def judge_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> list[Finding]:
    """Return a finding if Python is too old."""
    if version[:2] >= OLDEST_PYTHON:
        return []
    wanted = ".".join(map(str, OLDEST_PYTHON))
    return [
        Finding("breaks", "Python", f"is {'.'.join(map(str, version))}; carvision needs {wanted} or newer",
                f"make an environment with python{wanted}, as scripts/train.sh does")
    ]  # fmt: skip


def malicious_packages(versions: dict[str, str | None]) -> list[str]:
    """Return the installed packages that must not be imported."""
    return [name for name, bad in MALICIOUS.items() if versions.get(name) in bad]


def judge_versions(requirements: list[str], versions: dict[str, str | None]) -> list[Finding]:
    """Return findings about missing, malicious or unsuitable versions. requirements: such as "torch>=2.6". versions:
    {package: installed version or None}."""
    findings = [
        Finding(
            "breaks", name, f"{versions[name]} was published with malicious code", f"pip uninstall {name}; {STOLEN}"
        )
        for name in malicious_packages(versions)
    ]
    try:
        from packaging.requirements import Requirement
    except ImportError:
        what = "can't be imported, so versions are not compared; Lightning needs it, too"
        return [*findings, Finding("breaks", "packaging", what, "pip install packaging")]
    if not requirements:
        findings.append(
            Finding("note", "carvision", "its requirements can't be read, so versions are not compared", "reinstall it")
        )
    for line in requirements:
        name, version = name_of(line), versions.get(name_of(line))
        if version is None:
            findings.append(Finding("breaks", name, "is not installed", f"pip install {line.replace(' ', '')!r}"))
        elif name not in malicious_packages(versions):
            findings += _judge_version(Requirement(line), version)
    return findings


def _judge_version(requirement, version: str) -> list[Finding]:
    if requirement.marker is not None and not requirement.marker.evaluate():
        return []
    try:
        if requirement.specifier.contains(version, prereleases=True):
            return []
    except ValueError:  # packaging's InvalidVersion
        pass
    what = f"is {version}; carvision needs {requirement.specifier}"
    return [Finding("breaks", requirement.name, what, f"pip install '{requirement}'")]


def build_of(version: str | None) -> str:
    """Return the build of a version: "cu128" of "2.9.0+cu128", "" without one."""
    return (version or "").partition("+")[2]


def builds_differ(versions: dict[str, str | None]) -> bool:
    """Return whether torch and torchvision are of different builds."""
    builds = {build_of(versions.get("torch")), build_of(versions.get("torchvision"))} - {""}
    return len(builds) > 1


def judge_builds(versions: dict[str, str | None], answers: dict[str, dict]) -> list[Finding]:
    """Return findings about builds that don't fit together. answers: of probe. If torchvision can't be imported,
    judge_imports reports the builds."""
    findings = []
    if builds_differ(versions) and "error" not in answers.get("import:torchvision", {}):
        what = f"{versions['torchvision']} was built for another torch than {versions['torch']}"
        findings.append(
            Finding("note", "torchvision", f"{what}; it can be imported, and may still fail later", TOGETHER)
        )
    xla, torch = versions.get("torch-xla"), versions.get("torch")
    if xla and torch and _minor_version(xla) != _minor_version(torch):
        what = f"{xla} works only with torch {_minor_version(xla)}, and torch is {torch}; trainer=tpu fails"
        findings.append(Finding("breaks", "torch-xla", what, "make its own environment: scripts/setup_tpu.sh"))
    return findings


def _minor_version(version: str) -> str:
    return ".".join(re.findall(r"\d+", version)[:2])


def judge_imports(versions: dict[str, str | None], answers: dict[str, dict]) -> list[Finding]:
    """Return one finding for all packages that fail with the same message, as those above a broken package do."""
    by_reason: dict[str, list[str]] = {}
    for package, version in versions.items():
        reason = answers.get(f"import:{module_of(package)}", {}).get("error")
        if reason and version:  # judge_versions reports missing packages
            by_reason.setdefault(reason, []).append(package)
    findings = []
    for reason, packages in by_reason.items():
        first, *others = packages
        also = f"; the same with {', '.join(others)}" if others else ""
        beside = f" (beside torch {versions.get('torch')})"
        of_torch = "torchvision" in packages and "torch" not in packages
        fix = TOGETHER if of_torch else f"pip install --force-reinstall {first}"
        subject = f"{versions[first]}{beside if of_torch else ''}"
        path = _shadowing_path(first)
        if path:
            subject += f", taken from {path},"
            fix = f"remove {path}, or take it out of PYTHONPATH"
        severity = "note" if set(packages) <= set(OPTIONAL) else "breaks"
        findings.append(Finding(severity, first, f"{subject} can't be imported: {abbreviate(reason)}{also}", fix))
    return findings


def judge_shadowed_modules(versions: dict[str, str | None], answers: dict[str, dict]) -> list[Finding]:
    """Return findings about modules that hide an installed package of the same name."""
    findings = []
    for package, version in versions.items():
        answer = answers.get(f"import:{module_of(package)}", {})
        path = _shadowing_path(package) if version and "error" not in answer else None
        if path:
            what = f"is taken from {path}, not from the installed package"
            findings.append(
                Finding("note", package, what, "if that is not intended, remove it or take it out of PYTHONPATH")
            )
    return findings


def _shadowing_path(package: str) -> str | None:
    """Return the path that is imported instead of the installed package; None if the package itself is."""
    try:
        distribution = metadata.distribution(package)
        found = find_spec(module_of(package))
        if found is None or distribution.read_text("direct_url.json"):  # an editable install
            return None
        path = next(iter(found.submodule_search_locations or []), None) or found.origin
        home = str(distribution.locate_file(""))
        return None if path is None or path.startswith(home) else path
    except Exception:  # damaged metadata or odd loaders: the import itself reports them
        return None


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
