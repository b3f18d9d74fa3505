"""carvision doctor: what of this machine will break or slow down training. See --help."""

from __future__ import annotations  # so that it also runs with a Python that is too old, and reports it

import argparse
import os
import shutil
import sys

from carvision.diagnosis.examine import examine
from carvision.diagnosis.findings import as_json, print_examination
from carvision.system.runtime import use_utf8

HELP = """Report what this machine has, what will break or be slow in training, why, and
how to fix it: versions and builds of packages, GPUs, cores, memory, disk, speed
of decoding, settings. Exit status 1 if something will break, else 0.

  carvision doctor
  carvision doctor --data photos --out /scratch/runs    also reads the photos
"""


def doctor(arguments: list[str] | None = None) -> int:
    """Print the examination, and return the exit status. arguments: default: the command line's."""
    use_utf8()
    options = build_parser().parse_args(arguments)
    report = _to_terminal if sys.stderr.isatty() else (lambda text: None)
    found = None
    try:
        found = examine(options.data, options.out, report)
        report("")
        if options.json:
            print(as_json(found))
        else:
            print_examination(found)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # by | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(found is not None and any(finding.severity == "breaks" for finding in found.findings))


def _to_terminal(text: str) -> None:
    cut = text[
        : shutil.get_terminal_size().columns - 1
    ]  # of a line that wraps, the next text would erase the end alone
    print(f"\r\033[K{cut}", end="", file=sys.stderr, flush=True)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(  # not config.options, which an older Python can't import
        "carvision doctor", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", metavar="FOLDER", help="photos: how fast are they read and decoded?")
    add("--out", metavar="FOLDER", default="runs", help="where runs will be written (default: runs)")
    add("--json", action="store_true", help="for programs")
    return parser


if __name__ == "__main__":
    sys.exit(doctor())
