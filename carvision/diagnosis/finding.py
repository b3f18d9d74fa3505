"""Define findings, and format bytes and text for them."""

from __future__ import annotations

from typing import NamedTuple

SEVERITIES = ("breaks", "slow", "note")  # worst first; a note needs no action


class Finding(NamedTuple):
    """One thing that the doctor noticed."""

    severity: str  # one of SEVERITIES
    subject: str  # a word or two
    what: str  # the fact and its consequence
    fix: str = ""  # what to do about it


def size_text(num_bytes: float) -> str:
    """Format bytes in powers of ten, as disks are sold: "64 MB", "1.5 GB"."""
    if num_bytes < 1e9:
        return f"{num_bytes / 1e6:,.0f} MB"
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes < 1e10 else f"{num_bytes / 1e9:,.0f} GB"


def abbreviate(text: object, max_chars: int = 300) -> str:
    """Return the text on one line, with its middle left out if it is longer than `max_chars`."""
    line = " ".join(str(text).split())
    return line if len(line) <= max_chars else f"{line[: max_chars // 2]} ... {line[-max_chars // 2 :]}"
