"""carvision <command> ...: the same as python -m carvision.<command> .... See carvision --help."""

import ast
import os
import re
import runpy
import shlex
import sys
from pathlib import Path

from carvision import __version__
from carvision.errors import drop_output, suggest
from carvision.system.runtime import use_utf8
from carvision.system.terminal import fold

# The groups of --help; a command that none of them names is listed in the last one
GROUPS = {
    "Experiments": ("train", "sweep", "check", "pack", "augment_sheet"),
    "A finished run (RUN: its folder, or latest)": (
        "report", "evaluate", "predict", "explain", "embed", "retrieve", "verify", "export", "compare",
        "serve",
    ),
    "Look things up": ("keys", "models", "doctor"),
}  # fmt: skip
HELP = """Train a network to tell similar things apart in photos, and use it.

  carvision train                                   drawn demo data: a minute
  carvision train experiment=quick data=folder data.root=photos
                                                    your photos: a good model soon
  carvision report latest                           how good the newest run is
  carvision predict latest photo.jpg

{commands}

carvision <command> --help explains each. TAB completion, in your .bashrc:
  eval "$(carvision --shell-completion install=bash)"
"""


def main(words: list[str] | None = None) -> None:
    """Run the command that the first word names with the others. words: default: the command line's."""
    use_utf8()
    words = sys.argv[1:] if words is None else words
    first = words[0] if words else "--help"
    if first in ("--version", "-V"):
        print(f"carvision {__version__}")
    elif first in ("--help", "-h", "help"):
        _print(HELP.format(commands=_listed()))
    elif first in ("--shell-completion", "-sc"):
        from carvision.config.completion import answer  # only now, as commands import what they need

        answer(words[-1], [*commands(), "--help", "--version"])
    elif first not in commands():
        sys.exit(f"error: {_unknown(first)}")
    else:
        sys.argv = [f"carvision {first}", *words[1:]]
        runpy.run_module(f"carvision.{first}", run_name="__main__", alter_sys=True)


def commands() -> dict[str, str]:
    """Return {command: what it does}, from the first sentence of each command's module."""
    package = Path(__file__).parent
    files = [*package.glob("*.py"), *package.glob("*/__main__.py")]
    found = {}
    for file in sorted(files):
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        if named := re.match(r"carvision (\w+)[^:]*: (.*?)\.? See --help", " ".join(text.split())):
            found[named[1]] = named[2]
    return found


def _listed() -> str:
    known = commands()
    grouped = {name for names in GROUPS.values() for name in names}
    lines = []
    for title, names in GROUPS.items():
        others = sorted(known.keys() - grouped) if title == [*GROUPS][-1] else []
        lines += ["", f"{title}:", *(f"  {name:<14} {known[name]}" for name in (*names, *others) if name in known)]
    return "\n".join(lines[1:])


def _unknown(word: str) -> str:
    """Return the line for a first word that is no command."""
    if "=" in word or os.path.isdir(word):  # noqa: PTH112  Path.is_dir raises for names that are too long
        return f"{word!r} is not a command; to train with it, type: carvision train {shlex.join(sys.argv[1:])}"
    return f"{word!r} is not a command{suggest(word, commands(), 1)}; carvision --help lists them"


def _print(text: str) -> None:
    try:
        print(fold(text, sys.stdout), end="", flush=True)
    except BrokenPipeError:  # by | head
        drop_output()


if __name__ == "__main__":
    main()
