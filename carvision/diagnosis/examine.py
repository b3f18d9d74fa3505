"""Examine the machine part by part. A part that fails becomes a finding, never a traceback."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from carvision.diagnosis import hardware, packages, speed
from carvision.diagnosis.findings import SEVERITIES, Examination, Finding, Part, abbreviate
from carvision.diagnosis.probe import probe
from carvision.system.machine import num_cores
from carvision.system.versions import read_versions, requirements, version_of


def examine(data: str | None, out: str, report: Callable[[str], None]) -> Examination:
    """Examine the machine.

    data: folder of photos to read, or None. out: folder for runs. report: called with what is being done, for a user
    who waits.
    """
    found = Examination([], [])
    processor, cores = hardware.read_processor(), num_cores()  # now, as the probes add to the load
    answers: dict[str, dict] = {}
    parts: dict[str, Callable[[], Part]] = {
        "Python": packages.examine_python,
        "packages": lambda: examine_packages(answers, data, report),
        "cores and memory": lambda: hardware.examine_processor(processor, torch().get("num_threads")),
        "GPUs": lambda: hardware.examine_gpus(hardware.read_gpus(), torch(), version_of("torch")),
        "disk": lambda: hardware.examine_disk(hardware.read_disk(Path(out))),
        "decoding": lambda: speed.examine_decoding(answers.get("decoding", {}), cores, len(torch().get("gpus", []))),
        "data": lambda: examine_data(answers, data),
        "settings": lambda: packages.examine_variables(dict(os.environ), cores),
    }

    def torch() -> dict:
        return answers.get("devices", {})

    for name, part in parts.items():
        try:
            for item in part():
                if isinstance(item, Finding):
                    found.findings.append(item)
                else:
                    found.rows.append(item)
        except Exception as error:  # an unforeseen machine
            what = f"this part of the machine could not be examined ({abbreviate(f'{type(error).__name__}: {error}')})"
            found.findings.append(Finding("note", name, what))
    found.findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return found


def examine_packages(answers: dict[str, dict], data: str | None, report: Callable[[str], None]) -> Part:
    """Examine versions and builds. Fill `answers` with those of probe to all that needs other packages."""
    versions = read_versions()
    modules = [packages.module_of(name) for name in versions if name not in packages.malicious_packages(versions)]
    modules.sort(key="torch".__ne__)  # torch first: others import it, and would fail in its place
    steps = [f"import:{name}" for name in modules]
    if "torch" in modules:
        steps.insert(1, "devices")
    report("importing packages, decoding photos: up to half a minute")
    answers.update(probe([*steps, "decoding", *([f"data:{data}"] if data else [])]))
    yield "packages", ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    if "seconds" in answers.get("import:torch", {}):
        yield "import of torch", f"{answers['import:torch']['seconds']:.1f} s"
    yield from packages.examine_imports(versions, answers)
    yield from packages.examine_builds(versions, answers)
    yield from packages.examine_versions(requirements(), versions)


def examine_data(answers: dict[str, dict], data: str | None) -> Part:
    """Examine the folder of photos, if its step was probed."""
    if data and f"data:{data}" in answers:
        kind = hardware.file_system(Path(data).expanduser())
        yield from speed.examine_data(data, answers[f"data:{data}"], kind)
