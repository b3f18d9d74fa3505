"""Where an earlier start of a run ended, and going on from there."""

import logging
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
import yaml
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

from carvision.data.photo_paths import nfc
from carvision.data.split_files import splits_of
from carvision.data.table import Table
from carvision.errors import InputError
from carvision.flat_config import flat_config
from carvision.training.checkpoints import BEST, LAST, NEW, PREVIOUS, copy_whole, is_whole

log = logging.getLogger(__name__)

NOT_STOPPED = EarlyStoppingReason.NOT_STOPPED.value


class Place(NamedTuple):
    """In a run, as a checkpoint has it. All count from 0."""

    file: Path
    phase: int
    phase_begun: int  # the epoch with which the phase began
    epochs_done: int
    batches_done: int  # of the epoch after them
    stopped_early: bool  # whether early stopping has ended the phase
    best_lost: bool = False  # best.ckpt is damaged or of another epoch: the best of those to come takes its place


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
        if best_epoch is None or _epoch_of(folder / BEST) == best_epoch:
            return place
        log.warning("%s is damaged or of another epoch; the best epoch from now on takes its place", folder / BEST)
        return place._replace(best_lost=True)
    if problems:
        raise InputError(f"run.dir: {'; '.join(problems)}; give another folder to begin anew")
    return None


def _read_place(file: Path) -> tuple[Place, int | None]:
    if not is_whole(file):
        raise ValueError("its bytes are not those that were written")
    state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    batches = state["batches_done"]
    early = [values for name, values in state["callbacks"].items() if name.startswith("Patience")]
    stopped = any(v["stopping_reason"] != NOT_STOPPED and v["stopped_epoch"] == state["epoch"] for v in early)
    done = state["epoch"] + (0 if batches else 1)
    kept = next(values for name, values in state["callbacks"].items() if name.startswith("Checkpoints"))
    return Place(file, state["phase"], state["phase_begun"], done, batches, stopped), kept["best_epoch"]


def _epoch_of(file: Path) -> int | None:
    """None for a checkpoint that isn't whole."""
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)["epoch"] if is_whole(file) else None


def load_best(folder: Path) -> dict:
    """best.ckpt, for the test after training; where it is damaged, last.ckpt, and the log says so."""
    if is_whole(folder / BEST):
        return torch.load(folder / BEST, map_location="cpu", weights_only=True)
    if not is_whole(folder / LAST):
        raise InputError(f"run.dir: neither {folder / BEST} nor {LAST} is whole; the run must be made anew")
    log.warning("%s is damaged or missing; the last epoch is tested and saved in its place", folder / BEST)
    return torch.load(folder / LAST, map_location="cpu", weights_only=True)


def are_steps_changed(config: dict, folder: Path) -> bool:
    """Whether optimizer, schedule or their course have other values than the earlier start in the folder. Raises
    InputError for another optimizer or schedule, which could not go on with the state of the one before."""
    earlier = flat_config(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    now = flat_config(config)
    changed = [key for key in now if key in earlier and earlier[key] != now[key]]
    for key in ("optimizer.name", "schedule.name"):
        if key in changed:
            raise InputError(
                f"run.dir: {key}={earlier[key]} can't become {now[key]} within a run; give another folder, there with "
                f"model.weights={folder} once this run is finished"
            )
    return any(key.startswith(("optimizer.", "schedule.", "phases", "trainer.", "data.batch_size")) for key in changed)


def require_same_photos(table: Table, folder: Path, allow_changes: bool) -> None:
    """Raises InputError where the photos, their classes or their splits are not those the run was begun with; where
    `allow_changes` is true, the log says so."""
    file = folder / "splits.csv"
    if not file.exists():
        return
    try:
        before = pd.read_csv(file, dtype=str, keep_default_na=False).set_index("path")
    except (ValueError, KeyError):
        raise InputError(f"run.dir: {file} can't be read; give another folder") from None
    now = splits_of(table).astype(str).set_index("path")
    before, now = (frame.map(nfc).set_axis(frame.index.map(nfc)) for frame in (before, now))
    common = before.index.intersection(now.index)
    columns = [name for name in ("split", *table.class_labels) if name in before]
    moved = (before.loc[common, columns] != now.loc[common, columns]).any(axis=1).sum()
    more, fewer = len(now) - len(common), len(before) - len(common)
    if not (more or fewer or moved):
        return
    what = (
        f"the photos are not those the run was begun with ({file}): {more:,} more, {fewer:,} fewer, {moved:,} in "
        "another split or class"
    )
    if not allow_changes:
        raise InputError(
            f"run.dir: {what}. Put them back, take the old splits with data.split.file=<a copy of that file>, or go on "
            "with run.allow_changes=true"
        )
    log.warning("going on, though %s", what)


def log_place(place: Place, num_epochs: int) -> None:
    written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(place.file.stat().st_mtime))
    inside = f" and {place.batches_done:,} batches of the next" if place.batches_done else ""
    log.info(
        "going on after %d of %d epochs%s (%s of %s)", place.epochs_done, num_epochs, inside, place.file.name, written
    )
