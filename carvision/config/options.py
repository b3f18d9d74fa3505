"""Provide what the plain commands share: parser, options, numbers, overrides, messages. Imports no torch.

The commands that compose an experiment are started by compose.run_command instead.
"""

import argparse
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path

from carvision.config.overrides import expand_options
from carvision.errors import InputError
from carvision.files.folders import LATEST, find_run
from carvision.files.log import Terminal
from carvision.system.terminal import fold


class _Parser(argparse.ArgumentParser):
    """A parser whose help breaks no word on a terminal."""

    def format_help(self) -> str:
        return fold(super().format_help(), sys.stdout)


def create_parser(command: str, description: str, usage: str | None = None) -> argparse.ArgumentParser:
    """Return a parser for `carvision <command>`, whose --help keeps the description's lines."""
    return _Parser(
        f"carvision {command}", usage=usage, description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip


def add_run(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """Add the argument RUN."""
    parser.add_argument(
        "run", type=run_of, nargs=nargs, metavar="RUN",
        help=f"a run's folder or its model.safetensors; {LATEST}, the newest below runs/; a folder: the newest in it",
    )  # fmt: skip


def run_of(text: str) -> Path:
    """Return the run that an argument names, as find_run does; the type of RUN."""
    log_to_stderr()
    logging.getLogger(find_run.__module__).setLevel(logging.INFO)
    try:
        return find_run(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run_or_folder(text: str) -> Path:
    """Return the newest run for `latest`, any other path as it is: of a command that takes all runs in a folder."""
    return run_of(text) if text == LATEST else Path(text)


def add_photos(parser: argparse.ArgumentParser, columns: str = "") -> None:
    """Add the options of inference.sources: PHOTO..., --list, --root, --split.

    columns: of a list, beside path and box, that the command reads: ", and the true classes".
    """
    add = parser.add_argument
    add("photos", nargs="*", metavar="PHOTO", help="photos, folders, or - for a path a line from a pipe")
    add("--list", type=Path, metavar="FILE", dest="listed", help="a path a line; or a .csv, .tsv, .parquet with a "
                    f"column path, perhaps left, top, right, bottom (a box){columns}")  # fmt: skip
    add("--root", type=Path, metavar="DIR", help="what relative paths of a list are relative to "
                    "(default: of a run's splits.csv its data root, else the current folder)")  # fmt: skip
    add("--split", metavar="NAME", help="only the rows of the table that have this in their column split")


def add_out_folder(parser: argparse.ArgumentParser, default: str) -> None:
    """Add --out DIR. default: where the command writes without it, for --help."""
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"where to write (default: {default})")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument(
        "--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda, cuda:1, xla, ..."
    )


def whole_from(low: int) -> Callable[[str], int]:
    """Return an option's type: whole numbers from `low` on."""

    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number from {low}")
        return int(text)

    return whole


def words_of(arguments: list[str] | None) -> list[str]:
    """Return the arguments, or the command line's if None, with "~" expanded also in --option=~/path."""
    return expand_options(sys.argv[1:] if arguments is None else arguments)


def parse_with_overrides(
    parser: argparse.ArgumentParser, arguments: list[str] | None, groups: tuple[str, ...] = ("data",)
) -> argparse.Namespace:
    """Return the options, with `overrides`: the words <group>=<choice> and <group>.<key>=<value> of these groups.

    Ends the command at any other word that the parser does not know. arguments: as for words_of.
    """
    override = re.compile(rf"[+~]*({'|'.join(groups)})(\.\w+)*=")  # not a file named data.jpg
    words = words_of(arguments)
    # Taken out before argparse, so that one may also follow an option that takes several words
    overrides = [word for word in words if override.match(word)]
    options, unknown = parser.parse_known_args([word for word in words if word not in overrides])
    if unknown:
        command = parser.prog.rpartition(" ")[2]
        hint = f" (of training's keys {command} takes data=<choice> and data.<key>=<value>; the rest is the run's)"
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint if '=' in unknown[0] else ''}")
    options.overrides = overrides
    return options


def log_to_stderr() -> None:
    """Print log messages on standard error, as they are."""
    logging.basicConfig(format="%(message)s", handlers=[Terminal()])
