"""What the doctor finds, and how it writes numbers."""

from __future__ import annotations

from typing import NamedTuple

SEVERITIES = ("breaks", "slow", "note")  # worst first; a note is good to know, and nothing need be done


class Finding(NamedTuple):
    severity: str  # of SEVERITIES
    subject: str  # a word or two
    what: str  # what is so, and what comes of it
    mend: str = ""  # what to do about it


def size_text(num_bytes: float) -> str:
    """ "64 MB", "1.5 GB": in powers of ten, as disks are sold."""
    if num_bytes < 1e9:
        return f"{num_bytes / 1e6:,.0f} MB"
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes < 1e10 else f"{num_bytes / 1e9:,.0f} GB"


def one_line(text: object, most: int = 300) -> str:
    """Without line ends, the middle left out where it is long."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 2 :]}"
