"""Write an examination as text or JSON. Plain print: the packages that draw tables may be what is broken."""

from __future__ import annotations

import json
import shutil
import textwrap

from carvision.diagnosis.examine import Examination
from carvision.diagnosis.finding import Finding

LABEL = 17  # characters in the first column


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
