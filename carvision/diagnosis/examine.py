"""Examine the machine part by part, and print what was found as text or JSON.

A part that fails becomes a finding, never a traceback. Text is written with plain print, as the packages that draw
tables may be what is broken.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from carvision import __version__
from carvision.diagnosis import hardware, packages, speed
from carvision.diagnosis.finding import SEVERITIES, Finding, abbreviate, size_text
from carvision.diagnosis.probe import probe, probe_together
from carvision.system.machine import num_cores
from carvision.system.versions import git_state, read_versions, requirements

# torch and the packages above it take most of the time; another process imports the rest meanwhile
TORCH_PACKAGES = ("numpy", "torch", "torchvision", "timm", "torchmetrics", "pytorch_lightning")
LABEL = 17  # characters in the first column
Row = tuple[str, str]


class Examination(NamedTuple):
    """A description of the machine, and what is wrong with it."""

    rows: list[Row]  # (name, description); an empty name continues the row before
    findings: list[Finding]  # worst first


def examine(data: str | None, out: str, online: bool, say: Callable[[str], None]) -> Examination:
    """Examine the machine.

    data: folder of photos to read, or None. out: folder for runs. online: ask the hub. say: called with what is being
    done, for a user who waits.
    """
    rows: list[Row] = []
    findings: list[Finding] = []
    facts: dict = {"versions": {}, "answers": {}, "torch": {}}
    parts = (
        ("Python", examine_python),
        ("cores and memory", examine_machine),
        ("packages", lambda facts: examine_packages(facts, data, online, say)),
        ("devices", examine_devices),
        ("memory and files", examine_storage),
        ("disk", lambda facts: examine_disk(Path(out))),
        ("photos", lambda facts: examine_photos(facts, data, say)),
        ("settings", examine_settings),
        ("hub", examine_hub),
    )
    for name, look in parts:
        try:
            more_rows, more_findings = look(facts)
        except Exception as error:  # an unforeseen machine
            what = f"this part of the machine could not be examined ({abbreviate(f'{type(error).__name__}: {error}')})"
            more_rows, more_findings = [], [Finding("note", name, what)]
        rows += more_rows
        findings += more_findings
    return Examination(rows, sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def num_workers() -> int:
    """Return the default number of worker processes, as in PhotoDataModule."""
    return max(1, min(16, num_cores() - 1))


def examine_python(facts: dict) -> Examination:
    """Describe carvision, Python and the system."""
    state = git_state()
    commit = f" ({state['commit'][:7]}{', changed' if state['changed'] else ''})" if state else ""
    rows = [("carvision", f"{__version__}{commit}")]
    rows.append(("Python", f"{platform.python_version()} in {sys.prefix}"))
    rows.append(("system", platform.platform()))
    return Examination(rows, packages.judge_python())


def examine_machine(facts: dict) -> Examination:
    """Describe cores and memory, and store the facts for later parts."""
    found = facts["processor"] = hardware.read_processor()  # now: the probes started below add to the load
    facts["system"] = hardware.read_accelerators()
    return Examination(hardware.describe_processor(found), [])


def examine_packages(facts: dict, data: str | None, online: bool, say: Callable[[str], None]) -> Examination:
    """Import the packages in other processes; check versions, builds and modules that hide them."""
    needed, versions = requirements(), read_versions()
    facts["versions"] = versions
    left_out = packages.malicious_packages(versions)
    modules = [packages.module_of(name) for name in versions if name not in left_out]
    of_torch = [f"import:{name}" for name in TORCH_PACKAGES if name in modules]
    if "torch" in modules:  # directly after it: later imports may crash
        of_torch.insert(of_torch.index("import:torch") + 1, "devices")
    others = [f"import:{name}" for name in modules if name not in TORCH_PACKAGES]
    others += ["hub"] if online else []
    say("importing torch and the other packages, which may take half a minute")
    answers = facts["answers"] = probe_together([of_torch, others])
    facts["torch"] = answers.get("devices", {})
    known = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    seconds = answers.get("import:torch", {}).get("seconds")
    rows = [("packages", known)]
    if seconds:
        rows.append(("import of torch", f"{seconds:.1f} s"))
    findings = packages.judge_versions(needed, versions)
    findings += packages.judge_imports(versions, answers)
    findings += packages.judge_builds(versions, answers)
    findings += packages.judge_shadowed_modules(versions, answers)
    return Examination(rows, findings)


def examine_devices(facts: dict) -> Examination:
    """Check processor threads, GPUs and TPUs."""
    system, torch = facts["system"], facts["torch"]
    findings = hardware.judge_processor(facts["processor"], torch.get("num_threads"))
    findings += hardware.judge_devices(system, torch, facts["versions"])
    return Examination(hardware.describe_devices(system, torch), findings)


def examine_storage(facts: dict) -> Examination:
    """Check shared memory and limits."""
    free, limits = hardware.read_shared_memory(), hardware.read_limits()
    num_gpus = len(facts["torch"].get("gpus", []))
    files = "unlimited" if limits["files"] is None else f"{limits['files']:,} for a process"
    rows = [("open files", files)]
    if free is not None:
        rows.insert(0, ("shared memory", f"{size_text(free)} free in {hardware.SHARED_MEMORY}"))
    findings = hardware.judge_shared_memory(free, num_gpus)
    findings += hardware.judge_limits(limits, num_workers(), num_gpus, facts["system"].get("infiniband", 0))
    return Examination(rows, findings)


def examine_disk(out: Path) -> Examination:
    """Check the disk for runs."""
    disk = hardware.read_disk(out)
    return Examination([("disk", hardware.describe_disk(disk))], hardware.judge_disk(disk))


def examine_photos(facts: dict, data: str | None, say: Callable[[str], None]) -> Examination:
    """Measure decoding and reading, while nothing else of the doctor's runs."""
    if any("error" in facts["answers"].get(f"import:{name}", {"error": ""}) for name in ("PIL", "numpy", "torch")):
        findings = [Finding("note", "decoding", "could not be measured without Pillow, NumPy and torch")]
        return Examination([], findings)
    say("measuring how fast photos are decoded" + (" and read" if data else ""))
    step = f"data:{data}"
    answers = probe(["decoding", *([step] if data else [])])
    decoding = answers.get("decoding", {})
    rows = [("decoding", speed.describe_decoding(decoding))]
    findings = speed.judge_decoding(decoding, num_workers(), len(facts["torch"].get("gpus", [])))
    if "error" in decoding:
        findings.append(Finding("note", "decoding", f"could not be measured: {decoding['error']}"))
    if data:
        kind = hardware.file_system(Path(data).expanduser())
        rows.append(("data", speed.describe_data(answers[step], kind)))
        findings += speed.judge_data(data, answers[step], kind)
    return Examination(rows, findings)


def examine_settings(facts: dict) -> Examination:
    """Check environment variables and the compiler."""
    num_gpus = len(facts["torch"].get("gpus", []))
    compiler = packages.read_compiler()
    findings = packages.judge_variables(dict(os.environ), num_cores())
    findings += packages.judge_compiler(compiler, num_gpus)
    return Examination([("compiler", compiler["cpp"] or "none for C++")], findings)


def examine_hub(facts: dict) -> Examination:
    """Check whether the model hub answers."""
    answer = facts["answers"].get("hub")
    if answer is None:
        return Examination([], [])
    if "error" not in answer:
        return Examination([("hub", f"{answer['hub']} answers")], [])
    what = f"does not answer ({answer['error']}): weights can't be downloaded from there"
    fix = "model.weights=<file>, or HF_ENDPOINT and HTTPS_PROXY for a mirror or a proxy"
    return Examination([("hub", "no answer")], [Finding("note", "hub", what, fix)])


def print_examination(found: Examination) -> None:
    """Print what there is, and what is wrong with it."""
    width = max(60, min(shutil.get_terminal_size((110, 24)).columns, 120))
    for name, text in found.rows:
        print(_paragraph(name, text, width))
    print(f"\n{summary(found.findings)}")
    for finding in found.findings:
        print(_paragraph(f"  {finding.severity}", f"{finding.subject}: {finding.what}", width))
        if finding.fix:
            print(_paragraph("", f"fix: {finding.fix}", width))


def summary(findings: list[Finding]) -> str:
    """Return the line above the findings."""
    breaks, slow = (sum(finding.severity == severity for finding in findings) for severity in ("breaks", "slow"))
    if not breaks and not slow:
        return "Nothing is wrong." + (" Good to know:" if findings else "")
    things = "thing" if (breaks or slow) == 1 else "things"
    if not slow:
        return f"{breaks} {things} will break:"
    return f"{breaks} {things} will break, {slow} will be slow:" if breaks else f"{slow} {things} will be slow:"


def as_json(found: Examination) -> str:
    """Return the rows ("machine") and the findings as JSON."""
    keys = ("severity", "subject", "what", "mend")  # of Finding's fields; "mend" is the published key of `fix`
    findings = [dict(zip(keys, finding, strict=True)) for finding in found.findings]
    return json.dumps({"machine": found.rows, "findings": findings}, indent=1)


def _paragraph(label: str, text: str, width: int) -> str:
    return textwrap.fill(
        text, width, initial_indent=f"{label:<{LABEL}}", subsequent_indent=" " * LABEL,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
