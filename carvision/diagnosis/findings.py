"""Define what the doctor finds, and print it as text or JSON.

Text is written with plain print, as the packages that draw tables may be what is broken.
"""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator
from typing import NamedTuple, Union

SEVERITIES = ("breaks", "slow", "note")  # worst first; a note needs no action
LABEL = 17  # characters in the first column
Row = tuple[str, str]  # name and description


class Finding(NamedTuple):
    """One thing that is wrong, or good to know."""

    severity: str  # one of SEVERITIES
    subject: str  # a word or two
    what: str  # the fact and its consequence
    fix: str = ""  # what to do about it


# The examination of one part of the machine, which describes it and says what is wrong with it
Part = Iterator[Union[Row, Finding]]  # noqa: UP007  older Python has no other form


class Examination(NamedTuple):
    """What all parts found."""

    rows: list[Row]
    findings: list[Finding]  # worst first


def size_text(num_bytes: float) -> str:
    """Format bytes in powers of ten, as disks are sold: "60 kB", "64 MB", "1.5 GB"."""
    if num_bytes < 1e6:
        return f"{num_bytes / 1e3:,.0f} kB"
    if num_bytes < 1e9:
        return f"{num_bytes / 1e6:,.0f} MB"
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes < 1e10 else f"{num_bytes / 1e9:,.0f} GB"


def abbreviate(text: object, max_chars: int = 300) -> str:
    """Return the text on one line, with its middle left out if it is longer than `max_chars`."""
    line = " ".join(str(text).split())
    return line if len(line) <= max_chars else f"{line[: max_chars // 2]} ... {line[-max_chars // 2 :]}"


def print_examination(found: Examination) -> None:
    """Print what there is, and what is wrong with it."""
    width = max(60, min(shutil.get_terminal_size((110, 24)).columns, 120))

    def paragraph(label: str, text: str) -> None:
        indents = {"initial_indent": f"{label:<{LABEL}}", "subsequent_indent": " " * LABEL}
        print(textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False, **indents))

    for name, text in found.rows:
        paragraph(name, text)
    num_breaks, num_slow = (sum(finding.severity == kind for finding in found.findings) for kind in SEVERITIES[:2])
    if num_breaks or num_slow:
        print(f"\nWill break: {num_breaks}. Will be slow: {num_slow}.")
    else:
        print("\nNothing is wrong." + (" Good to know:" if found.findings else ""))
    for finding in found.findings:
        paragraph(f"  {finding.severity}", f"{finding.subject}: {finding.what}")
        if finding.fix:
            paragraph("", f"fix: {finding.fix}")


def as_json(found: Examination) -> str:
    """Return the rows ("machine") and the findings as JSON."""
    keys = ("severity", "subject", "what", "mend")  # of Finding's fields; "mend" is the published key of `fix`
    findings = [dict(zip(keys, finding, strict=True)) for finding in found.findings]
    return json.dumps({"machine": found.rows, "findings": findings}, indent=1)
