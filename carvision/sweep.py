"""carvision sweep [overrides]: search for the best values of a training. See --help and conf/sweep.yaml."""

import os
import sys
from pathlib import Path

from carvision.config.completion import ASKED
from carvision.config.compose import answers_itself, run_command
from carvision.config.overrides import expand_home, quote, require_overrides
from carvision.errors import InputError, one_line_errors


def sweep(words: list[str]) -> None:
    """Search. words: of the command line."""
    if any(ASKED.match(word) for word in words):  # Hydra finds the completions
        run_command(lambda cfg: None, "sweep")
        return
    if answers_itself(words, "sweep"):
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, instead of printing an error of several lines
    with one_line_errors():
        if {"-m", "--multirun"} & {*words}:
            raise InputError("-m: a search needs none; it starts trial after trial by itself")
        require_overrides("sweep", words)
        from carvision.search.build import build_sweep, describe

        overrides, shown = read_flags(words)
        sweep = build_sweep(overrides, complete=not shown)
        if shown:
            print(describe(sweep), end="")
            return
        # Imported here, as a mistake is reported without Optuna
        from carvision.search.run import search

        search(sweep, words)


def read_flags(words: list[str]) -> tuple[list[str], bool]:
    """Return the overrides, and whether --cfg job asks to print the search only.

    --config-dir DIR becomes an override that means the same, for the trials' processes.
    """
    overrides, folders, shown = [], [], False
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in ("--config-dir", "-cd"):
            folder = Path(expand_home(value if equals else next(rest, ""))).resolve()
            if not folder.is_dir():
                raise InputError(f"{name}: {folder} is no folder")
            folders.append(quote(f"file://{folder}"))
        elif name in ("--cfg", "-c"):
            part = value if equals else next(rest, "")
            if part != "job":
                raise InputError(f"{name}: {part!r} is not job, which prints the search without starting it")
            shown = True
        elif word.startswith("-"):
            raise InputError(f"{word}: is not for this command; see --help")
        else:
            overrides.append(word)
    return [f"hydra.searchpath=[{','.join(folders)}]"] * bool(folders) + overrides, shown


if __name__ == "__main__":
    sweep(sys.argv[1:])
