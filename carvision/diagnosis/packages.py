"""Check the software: Python, versions, builds and imports of packages, and environment variables."""

from __future__ import annotations

import platform
import sys

from carvision import __version__
from carvision.diagnosis.findings import Finding, Part, abbreviate
from carvision.system.versions import OPTIONAL, git_state, name_of

OLDEST_PYTHON = (3, 11)  # as in pyproject.toml
# Modules whose name differs from the package's
MODULES = {"hydra-core": "hydra", "pyyaml": "yaml", "pillow": "PIL", "scikit-learn": "sklearn"}
MALICIOUS = {"pytorch-lightning": ("2.6.2", "2.6.3"), "lightning": ("2.6.2", "2.6.3")}
STOLEN = "treat all passwords and tokens of this machine as stolen; then install another version"
TOGETHER = "install torch and torchvision together, of one build: pip install --force-reinstall torch torchvision"
# Variables: name, values that matter (none: any but "" and "0"), severity, consequence
KNOWN = (
    ("OMP_WAIT_POLICY", ("active",), "slow", "waiting threads keep cores busy that are needed to read photos"),
    ("CUDA_LAUNCH_BLOCKING", (), "slow", "every GPU operation is synchronous; it is meant for debugging"),
    ("CUDA_VISIBLE_DEVICES", ("", "-1"), "note", "it hides all GPUs: trainer=gpu fails"),
    ("HF_HUB_OFFLINE", (), "note", "weights are not downloaded, only taken from the cache"),
)


def module_of(package: str) -> str:
    """Return the name of a package's module."""
    return MODULES.get(package, package.replace("-", "_"))


def malicious_packages(versions: dict[str, str | None]) -> list[str]:
    """Return the installed packages that must not be imported."""
    return [name for name, bad in MALICIOUS.items() if versions.get(name) in bad]


def examine_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Part:
    """Examine carvision, the system, and whether Python is too old."""
    state = git_state()
    commit = f" ({state['commit'][:7]}{', changed' if state['changed'] else ''})" if state else ""
    yield "carvision", f"{__version__}{commit}"
    yield "Python", f"{platform.python_version()} in {sys.prefix}"
    yield "system", platform.platform()
    if version[:2] < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        what = f"is {'.'.join(map(str, version))}; carvision needs {wanted} or newer"
        yield Finding("breaks", "Python", what, f"make an environment with python{wanted}, as scripts/train.sh does")


def examine_versions(requirements: list[str], versions: dict[str, str | None]) -> Part:
    """Examine whether versions are missing, malicious or unsuitable.

    requirements: such as "torch>=2.6". versions: {package: installed version or None}.
    """
    malicious = malicious_packages(versions)
    for name in malicious:
        what = f"{versions[name]} was published with malicious code"
        yield Finding("breaks", name, what, f"pip uninstall {name}; {STOLEN}")
    from packaging.requirements import Requirement

    for line in requirements:
        name, version, wanted = name_of(line), versions.get(name_of(line)), Requirement(line)
        if version is None:
            yield Finding("breaks", name, "is not installed", f"pip install '{wanted}'")
        elif name not in malicious and not wanted.specifier.contains(version, prereleases=True):
            what = f"is {version}; carvision needs {wanted.specifier}"
            yield Finding("breaks", name, what, f"pip install '{wanted}'")


def examine_builds(versions: dict[str, str | None], answers: dict[str, dict]) -> Part:
    """Examine whether torchvision fits torch. answers: of probe; examine_imports reports a torchvision that fails."""
    torch, torchvision = versions.get("torch"), versions.get("torchvision")
    builds = {(version or "").partition("+")[2] for version in (torch, torchvision)} - {""}  # "cu128" of "2.9.0+cu128"
    if len(builds) > 1 and "error" not in answers.get("import:torchvision", {}):
        what = f"{torchvision} was built for another torch than {torch}; it can be imported, and may still fail later"
        yield Finding("note", "torchvision", what, TOGETHER)


def examine_imports(versions: dict[str, str | None], answers: dict[str, dict]) -> Part:
    """Examine whether packages can be imported: one finding for all that fail alike, as those above a broken one do."""
    by_reason: dict[str, list[str]] = {}
    for package, version in versions.items():
        reason = answers.get(f"import:{module_of(package)}", {}).get("error")
        if reason and version:  # examine_versions reports missing packages
            by_reason.setdefault(reason, []).append(package)
    for reason, packages in by_reason.items():
        first, *others = packages
        also = f"; the same with {', '.join(others)}" if others else ""
        of_torch = "torchvision" in packages and "torch" not in packages
        beside = f" (beside torch {versions.get('torch')})" if of_torch else ""
        severity = "note" if set(packages) <= set(OPTIONAL) else "breaks"
        what = f"{versions[first]}{beside} can't be imported: {abbreviate(reason)}{also}"
        yield Finding(severity, first, what, TOGETHER if of_torch else f"pip install --force-reinstall {first}")


def examine_variables(variables: dict[str, str], num_cores: int) -> Part:
    """Examine environment variables. variables: such as os.environ."""
    for name, values, severity, what in KNOWN:
        value = variables.get(name)
        if value is not None and (value.lower() in values if values else value not in ("", "0")):
            yield Finding(severity, name, f"is {value or 'empty'}: {what}", f"unset {name}")
    threads = variables.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # "4,2": nested
    if threads == "1" and num_cores >= 4:
        what = f"is 1, on {num_cores} cores: training on the processor uses one of them (right for a GPU)"
        fix = f"for trainer=cpu, OMP_NUM_THREADS={num_cores // 2} or more"
        yield Finding("note", "OMP_NUM_THREADS", what, fix)
    # Without TORCHELASTIC_RUN_ID, torchrun did not set them: they are left over from another session
    left = [name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in variables]
    if left and "TORCHELASTIC_RUN_ID" not in variables and "SLURM_JOB_ID" not in variables:
        what = "set, but not by torchrun: training waits for processes that never come"
        yield Finding("breaks", ", ".join(left), what, f"unset {' '.join(left)}")
