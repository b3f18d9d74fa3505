"""python -m carvision.sweep [overrides]: search the best values of a training. See --help and conf/sweep.yaml."""

import os
import sys

from carvision.completion import ASKED
from carvision.config import answers_itself, run_command
from carvision.errors import InputError, one_line_errors
from carvision.thread_settings import set_thread_defaults

set_thread_defaults()


def sweep(words: list[str]) -> None:
    if any(ASKED.match(word) for word in words):  # Hydra finds what TAB completes
        run_command(lambda cfg: None, "sweep")
        return
    if answers_itself(words, "sweep"):
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, instead of printing an error of several lines
    with one_line_errors():
        if {"-m", "--multirun"} & {*words}:
            raise InputError("-m: a search needs none; it begins trial after trial by itself")
        from carvision.search.build import build_sweep

        sweep = build_sweep(with_searchpath(words))
        # Only now: a mistake was told without waiting for Optuna
        from carvision.search.command import search

        search(sweep, words)


def with_searchpath(words: list[str]) -> list[str]:
    """--config-dir DIR as the override that it stands for, which the trials' own processes take, too."""
    from pathlib import Path

    rest, folders = [], []
    waiting = iter(words)
    for word in waiting:
        name, equals, value = word.partition("=")
        if name in ("--config-dir", "-cd"):
            folder = Path(value if equals else next(waiting, "")).expanduser().resolve()
            if not folder.is_dir():
                raise InputError(f"{name}: {folder} is no folder")
            folders.append(f"'file://{folder}'")
        elif word.startswith("-"):
            raise InputError(f"{word}: is not for this command; see --help")
        else:
            rest.append(word)
    return [f"hydra.searchpath=[{','.join(folders)}]", *rest] if folders else rest


if __name__ == "__main__":
    sweep(sys.argv[1:])
