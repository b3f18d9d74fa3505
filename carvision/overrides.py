"""Training's overrides among the ordinary arguments of a command. Imports no torch."""

import argparse
import re
import sys


def parse_with_overrides(
    it: argparse.ArgumentParser, arguments: list[str] | None, groups: tuple[str, ...] = ("data",)
) -> argparse.Namespace:
    """The options, with `overrides`: the words <group>=<choice> and <group>.<key>=<value> of these groups. Ends the
    command at any other word that it does not know."""
    override = re.compile(rf"[+~]*({'|'.join(groups)})(\.\w+)*=")  # and no file of the name data.jpg
    words = sys.argv[1:] if arguments is None else arguments
    # Taken out before argparse, so that one may also stand behind an option that takes several words.
    overrides = [word for word in words if override.match(word)]
    options, unknown = it.parse_known_args([word for word in words if word not in overrides])
    if unknown:
        command = it.prog.rpartition(".")[2]
        hint = f" (of training's keys {command} takes data=<choice> and data.<key>=<value>; the rest is the run's)"
        it.error(f"unrecognized arguments: {' '.join(unknown)}{hint if '=' in unknown[0] else ''}")
    options.overrides = overrides
    return options
