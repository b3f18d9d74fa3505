"""Python and packages: versions, builds that do not fit together, and whether they can be imported."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from importlib.util import find_spec

from carvision.diagnosis.finding import Finding, one_line
from carvision.versions import OPTIONAL, name_of

OLDEST_PYTHON = (3, 11)  # as in pyproject.toml
# Where the module is not called like the package
MODULES = {
    "hydra-core": "hydra",
    "pyyaml": "yaml",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
}
MALICIOUS = {"pytorch-lightning": ("2.6.2", "2.6.3"), "lightning": ("2.6.2", "2.6.3")}
STOLEN = "take all passwords and tokens of this machine for stolen; then install another version"
TOGETHER = "install torch and torchvision together, of one build: pip install --force-reinstall torch torchvision"


def module_of(package: str) -> str:
    return MODULES.get(package, package.replace("-", "_"))


def judge_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> list[Finding]:
    if version[:2] >= OLDEST_PYTHON:
        return []
    wanted = ".".join(map(str, OLDEST_PYTHON))
    return [
        Finding("breaks", "Python", f"is {'.'.join(map(str, version))}; carvision needs {wanted} or newer",
                f"make an environment with python{wanted}: scripts/train.sh does so by itself")
    ]  # fmt: skip


def malicious_packages(versions: dict[str, str | None]) -> list[str]:
    """Those that must not be imported."""
    return [name for name, bad in MALICIOUS.items() if versions.get(name) in bad]


def judge_versions(requirements: list[str], versions: dict[str, str | None]) -> list[Finding]:
    """requirements: as "torch>=2.6". versions: {package: installed version, or None}."""
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
            Finding(
                "note", "carvision", "what it needs can't be read, so versions are not compared", "install it again"
            )
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
    except ValueError:  # of packaging, for what is no version
        pass
    what = f"is {version}; carvision needs {requirement.specifier}"
    return [Finding("breaks", requirement.name, what, f"pip install '{requirement}'")]


def build_of(version: str | None) -> str:
    """ "cu128" of "2.9.0+cu128", "" where it is not told."""
    return (version or "").partition("+")[2]


def builds_differ(versions: dict[str, str | None]) -> bool:
    builds = {build_of(versions.get("torch")), build_of(versions.get("torchvision"))} - {""}
    return len(builds) > 1


def judge_builds(versions: dict[str, str | None], answers: dict[str, dict]) -> list[Finding]:
    """answers: of probing. Where torchvision can't be imported, judge_imports tells of the builds."""
    findings = []
    if builds_differ(versions) and "error" not in answers.get("import:torchvision", {}):
        what = f"{versions['torchvision']} was built for another torch than {versions['torch']}"
        findings.append(
            Finding("note", "torchvision", f"{what}; it can be imported, and may still fail later", TOGETHER)
        )
    xla, torch = versions.get("torch-xla"), versions.get("torch")
    if xla and torch and _minor_version(xla) != _minor_version(torch):
        what = f"{xla} works with torch {_minor_version(xla)} alone, and torch is {torch}; trainer=tpu fails"
        findings.append(Finding("breaks", "torch-xla", what, "make its own environment: scripts/setup_tpu.sh"))
    return findings


def _minor_version(version: str) -> str:
    return ".".join(re.findall(r"\d+", version)[:2])


def judge_imports(versions: dict[str, str | None], answers: dict[str, dict]) -> list[Finding]:
    """One finding for all packages that fail with the same words, as what stands on a broken one does."""
    by_reason: dict[str, list[str]] = {}
    for package, version in versions.items():
        reason = answers.get(f"import:{module_of(package)}", {}).get("error")
        if reason and version:  # else it is told already that it is missing
            by_reason.setdefault(reason, []).append(package)
    findings = []
    for reason, packages in by_reason.items():
        first, *others = packages
        also = f"; so it is with {', '.join(others)}" if others else ""
        beside = f" (beside torch {versions.get('torch')})"
        of_torch = "torchvision" in packages and "torch" not in packages
        mend = TOGETHER if of_torch else f"pip install --force-reinstall {first}"
        of = f"{versions[first]}{beside if of_torch else ''}"
        place = _shadowing_path(first)
        if place:
            of += f", taken from {place},"
            mend = f"take {place} away, or out of PYTHONPATH"
        severity = "note" if set(packages) <= set(OPTIONAL) else "breaks"
        findings.append(Finding(severity, first, f"{of} can't be imported: {one_line(reason)}{also}", mend))
    return findings


def judge_shadowed_modules(versions: dict[str, str | None], answers: dict[str, dict]) -> list[Finding]:
    """Modules that hide an installed package of the same name."""
    findings = []
    for package, version in versions.items():
        answer = answers.get(f"import:{module_of(package)}", {})
        place = _shadowing_path(package) if version and "error" not in answer else None
        if place:
            what = f"is taken from {place}, not from the installed package"
            findings.append(
                Finding("note", package, what, "if that is not meant, remove it or take it out of PYTHONPATH")
            )
    return findings


def _shadowing_path(package: str) -> str | None:
    """The folder or file that is imported in the place of the installed package; None where all is as it should be."""
    try:
        distribution = metadata.distribution(package)
        found = find_spec(module_of(package))
        if found is None or distribution.read_text("direct_url.json"):  # installed as it is developed
            return None
        place = next(iter(found.submodule_search_locations or []), None) or found.origin
        home = str(distribution.locate_file(""))
        return None if place is None or place.startswith(home) else place
    except Exception:  # of damaged metadata or odd loaders, which the import itself will tell of
        return None
