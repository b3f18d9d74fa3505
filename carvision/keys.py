"""carvision keys [KEY]: what a configuration key means, allows, and is by default. See --help."""

import argparse
import shutil
import sys
import textwrap

from carvision.config.options import create_parser, words_of
from carvision.errors import drop_output, one_line_errors

HELP = """Explain a key of the configuration: what it means, which values it may have, and
its default.

  carvision keys data.split.kind      one key
  carvision keys optimizer            the choices of a group, and its keys
  carvision keys                      all keys
"""


def keys(arguments: list[str] | None = None) -> None:
    """Print what is known of the keys. arguments: default: the command line's."""
    options = build_parser().parse_args(words_of(arguments))
    with one_line_errors():
        from carvision.config.keys import Key, describe_keys, find_keys  # only now, as --help needs none

        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0

        def show(key: Key) -> str:
            return "\n".join(_explained(key, min(width or 100, 120)))

        try:
            if options.key is None:
                print("\n".join(_line(key, width) for key in describe_keys()), flush=True)
                return
            word = options.key.lstrip("+~").partition("=")[0]
            choices = _choices(word)
            print(choices, end="")
            found = [] if word == "experiment" else find_keys(word)
            is_group = bool(choices) or any(key.name.startswith(f"{word}.") for key in found)
            lines = (_line(key, width) if is_group else show(key) for key in found)
            print(("\n" if is_group else "\n\n").join(lines), flush=True)
        except BrokenPipeError:  # by | head
            drop_output()


def build_parser() -> argparse.ArgumentParser:
    parser = create_parser("keys", HELP)
    parser.add_argument("key", nargs="?", metavar="KEY", help="such as data.split.kind, optimizer.lr, trainer")
    return parser


def _line(key, width: int) -> str:
    """Return name, default and comment on a line, cut to the width of the terminal; 0: not cut."""
    text = f"{key.name:<34} {_default(key):<14} {key.comment}".rstrip()
    return text if not width or len(text) < width else f"{text[: width - 4]}..."


def _default(key) -> str:
    return {"???": "(required)", "": "-"}.get(key.default, key.default)


def _explained(key, width: int) -> list[str]:
    rows = {"": key.comment, "default": _default(key) + (f"   with {key.only_with}" if key.only_with else "")}
    rows["allowed"] = key.allowed
    rows["others"] = ", ".join(f"{value} ({choice})" for choice, value in key.others.items())
    rows["file"] = f"conf/{key.file}" if key.file else ""
    lines = [key.name]
    for title, text in rows.items():
        if text:
            lead = f"  {title:<9}" if title else "  "
            lines += textwrap.wrap(text, width, initial_indent=lead, subsequent_indent=" " * len(lead))
    return lines


def _choices(word: str) -> str:
    """Return the line of a group's choices; "" if the word names no group."""
    from carvision.config.compose import conf_dir, options_of

    if "." in word or not (conf_dir() / word).is_dir():
        return ""
    return textwrap.fill(f"{word}=<choice>: {', '.join(options_of(word))}", 100, subsequent_indent="  ") + "\n\n"


if __name__ == "__main__":
    keys()
