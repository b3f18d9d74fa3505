"""Where an earlier start of a run ended, and going on from there."""

import logging
import time
from pathlib import Path
from typing import NamedTuple

import torch

from carvision.errors import InputError
from carvision.training.checkpoints import BEST, LAST, NEW, PREVIOUS, copy_whole, is_whole

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """In a run, as a checkpoint has it. All count from 0."""

    file: Path
    phase: int
    phase_begun: int  # the epoch with which the phase began
    epochs_done: int
    batches_done: int  # of the epoch after them
    stopped_early: bool  # whether early stopping has ended the phase


def find_place(folder: Path, mend: bool) -> Place | None:
    """Of last.ckpt in the folder, or where that is damaged or missing, of previous.ckpt. None where there is neither.

    mend: put in order what a start that was killed has left. Raises InputError where no checkpoint that is there can be
    read; executes nothing.
    """
    if mend:
        (folder / NEW).unlink(missing_ok=True)  # which was being written
    there = [file for file in (folder / LAST, folder / PREVIOUS) if file.exists()]
    problems = []
    for file in there:
        try:
            place, best_epoch = _read_place(file)
        except Exception as error:  # of torch, of pickle, of what a file that is none makes of them
            problems.append(f"{file} is no whole checkpoint ({' '.join(str(error).split())[:100]})")
            continue
        for problem in problems:
            log.warning("%s; going on from %s", problem, file.name)
        if mend and not place.batches_done and best_epoch == place.epochs_done - 1:
            copy_whole(file, folder / BEST)  # which may not have been written any more
        return place
    if problems:
        raise InputError(f"run.dir: {'; '.join(problems)}; give another folder to begin anew")
    return None


def _read_place(file: Path) -> tuple[Place, int | None]:
    if not is_whole(file):
        raise ValueError("its bytes are not those that were written")
    state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    batches = state["batches_done"]
    early = [values for name, values in state["callbacks"].items() if name.startswith("EarlyStopping")]
    stopped = any(values["wait_count"] >= values["patience"] for values in early)
    done = state["epoch"] + (0 if batches else 1)
    kept = next(values for name, values in state["callbacks"].items() if name.startswith("Checkpoints"))
    return Place(file, state["phase"], state["phase_begun"], done, batches, stopped), kept["best_epoch"]


def log_place(place: Place, num_epochs: int) -> None:
    written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(place.file.stat().st_mtime))
    inside = f" and {place.batches_done:,} batches of the next" if place.batches_done else ""
    log.info(
        "going on after %d of %d epochs%s (%s of %s)", place.epochs_done, num_epochs, inside, place.file.name, written
    )
