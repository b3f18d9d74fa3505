"""Check Python and packages: versions, incompatible builds, and whether they can be imported."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from importlib.util import find_spec

from carvision.diagnosis.finding import Finding, one_line
from carvision.versions import OPTIONAL, name_of

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
    """Return findings about builds that don't fit together. answers: of probing. If torchvision can't be imported,
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
        findings.append(Finding(severity, first, f"{subject} can't be imported: {one_line(reason)}{also}", fix))
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
