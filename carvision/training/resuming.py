"""Where an earlier start of a run ended, and going on from there."""

import logging
import re
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

from carvision.data.photo_paths import nfc
from carvision.data.split_files import splits_of
from carvision.data.table import Table
from carvision.errors import InputError
from carvision.flat_config import flat_config
from carvision.training.build_phases import build_phases
from carvision.training.callbacks import read_history
from carvision.training.checkpoints import BEST, LAST, NEW, PREVIOUS, is_intact, link_or_copy
from carvision.training.run_folder import METRICS, read_config
from carvision.whole_files import refuse_link_out

log = logging.getLogger(__name__)

NOT_STOPPED = EarlyStoppingReason.NOT_STOPPED.value
# Of a checkpoint; Lightning would begin those of training anew where they are empty, without a word
REQUIRED_KEYS = {"state_dict", "callbacks", "epoch", "batches_done", "phase", "phase_begun"}
TRAINING_KEYS = {"optimizer_states", "lr_schedulers", "loops"}
STEP_KEYS = ("optimizer.", "schedule.", "phases", "trainer.", "data.batch_size")  # what a step of training depends on


class ResumePoint(NamedTuple):
    """In a run, as a checkpoint has it. All count from 0."""

    file: Path
    phase: int
    phase_begun: int  # the epoch with which the phase began
    epochs_done: int
    batches_done: int  # of the epoch after them
    stopped_early: bool  # whether early stopping has ended the phase
    waited: int = 0  # epochs without a better value, as early stopping counts them
    best_lost: bool = False  # best.ckpt is damaged or of another epoch: the best of those to come takes its place


def find_resume_point(folder: Path, mend: bool) -> ResumePoint | None:
    """Of last.ckpt in the folder, or where that is damaged or missing, of previous.ckpt. None where there is neither.

    mend: put in order what a start that was killed has left. Raises InputError where no checkpoint that is there can be
    read; executes nothing.
    """
    if mend:
        refuse_link_out(folder)
        (folder / NEW).unlink(missing_ok=True)  # which was being written
    there = [file for file in (folder / LAST, folder / PREVIOUS) if file.exists()]
    problems = []
    for file in there:
        try:
            place, best_epoch = _read_resume_point(file)
        except Exception as error:  # of torch, of pickle, of what a file that is none makes of them
            problems.append(f"{file} is no whole checkpoint ({' '.join(str(error).split())[:100]})")
            continue
        for problem in problems:
            log.warning("%s; going on from %s", problem, file.name)
        if mend and not place.batches_done and best_epoch == place.epochs_done - 1:
            link_or_copy(file, folder / BEST)  # which may not have been written any more
        if best_epoch is None or _epoch_of(folder / BEST) == best_epoch:
            return place
        log.warning("%s is damaged or of another epoch; the best epoch from now on takes its place", folder / BEST)
        return place._replace(best_lost=True)
    if problems:
        best = f", there with model.weights={folder / BEST}" if is_intact(folder / BEST) else ""
        raise InputError(f"run.dir: {'; '.join(problems)}; give another folder to begin anew{best}")
    return None


def read_checkpoint(file: Path) -> dict:
    """A checkpoint of carvision, its tensors mapped; executes nothing. Raises ValueError."""
    if not is_intact(file):
        raise ValueError("its bytes are not those that were written")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # of torch, of pickle, of what a file that is none makes of them
        raise ValueError(" ".join(str(error).split())[:100] or type(error).__name__) from None
    given = {key for key in state if key not in TRAINING_KEYS or state[key]} if isinstance(state, dict) else set()
    missing = (REQUIRED_KEYS | TRAINING_KEYS) - given
    if missing:
        raise ValueError(f"it lacks {', '.join(sorted(missing))}: another program or version wrote it")
    return state


def _read_resume_point(file: Path) -> tuple[ResumePoint, int | None]:
    state = read_checkpoint(file)
    epoch, batches = state["epoch"], state["batches_done"]
    early = [values for name, values in state["callbacks"].items() if name.startswith("Patience")]
    stopped = any(v["stopping_reason"] != NOT_STOPPED and v["stopped_epoch"] == epoch for v in early)
    waited = max((v["wait_count"] for v in early), default=0)
    done = epoch + (0 if batches else 1)
    kept = next(values for name, values in state["callbacks"].items() if name.startswith("Checkpoints"))
    counts = (epoch, batches, state["phase"], state["phase_begun"])
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError("it counts its epochs wrongly")
    return ResumePoint(file, state["phase"], state["phase_begun"], done, batches, stopped, waited), kept["best_epoch"]


def _epoch_of(file: Path) -> int | None:
    """None for a checkpoint that can't be read."""
    try:
        return read_checkpoint(file)["epoch"]
    except ValueError:
        return None


def load_best(folder: Path, lit: torch.nn.Module) -> dict:
    """Load the weights of best.ckpt, for the test after training; where it is damaged, of last.ckpt, and the log says
    so. Returns the checkpoint."""
    problems = []
    for name in (BEST, LAST):
        try:
            state = read_checkpoint(folder / name)
            lit.load_state_dict(state["state_dict"])
        except (ValueError, RuntimeError) as error:
            problems.append(f"{folder / name}: {' '.join(str(error).split())[:100]}")
            continue
        for problem in problems:
            log.warning("%s; the last epoch is tested and saved instead", problem)
        return state
    raise InputError(f"run.dir: no checkpoint can be tested ({'; '.join(problems)}); give another folder to begin anew")


def planned_end(place: ResumePoint, phases: list[dict]) -> int:
    """The number of epochs after which the phase of the place is to end."""
    return place.phase_begun + phases[place.phase]["epochs"]


def apply_patience(place: ResumePoint, patience: int | None) -> ResumePoint:
    """The place, where early stopping ends the phase only if it would with this patience, too."""
    return place._replace(stopped_early=place.stopped_early and patience is not None and place.waited >= patience)


def require_enough_epochs(place: ResumePoint, phases: list[dict]) -> None:
    """Raise InputError where the phases have fewer epochs than the run has trained."""
    name = phases[min(place.phase, len(phases) - 1)]["name"]
    key = f"phases.{name}.epochs" if name else "trainer.max_epochs"
    if place.phase >= len(phases):
        raise InputError(
            f"{key}: the run has begun phase {place.phase + 1}, and there are {len(phases)} now; give as many"
        )
    end = planned_end(place, phases)
    if place.epochs_done + (place.batches_done > 0) > end:
        inside = f" and {place.batches_done} batches" if place.batches_done else ""
        raise InputError(
            f"{key}: the run has trained {place.epochs_done} epochs{inside} already, and is to end after {end} now; "
            f"give {place.epochs_done + (place.batches_done > 0)} or more"
        )


def reason_to_end(folder: Path, cfg: dict) -> str | None:
    """Why a finished run is not trained further under this configuration; None where it is."""
    phases = build_phases(cfg)
    try:
        place = find_resume_point(folder / "checkpoints", mend=False)
    except InputError as error:
        return str(error).removeprefix("run.dir: ")
    if place is None:
        return f"its checkpoints are gone; give another folder, there with model.weights={folder}"
    require_enough_epochs(place, phases)
    if place.phase < len(phases) - 1:
        return None
    patience = cfg["callbacks"]["patience"]
    if apply_patience(place, patience).stopped_early:
        return (
            f"early stopping has ended it after {place.epochs_done} epochs, and callbacks.patience={patience} would "
            "again; give a larger one, or null"
        )
    if place.epochs_done >= planned_end(place, phases) and not place.batches_done:
        key = f"phases.{phases[-1]['name']}.epochs" if phases[-1]["name"] else "trainer.max_epochs"
        asked = sum(phase["epochs"] for phase in phases)
        return f"all of its {place.epochs_done} epochs are trained, and {asked} are asked for; give more with {key}"
    return None


def require_more_epochs(folder: Path, cfg: dict) -> None:
    """Raise InputError where a finished run is not trained further."""
    reason = reason_to_end(folder, cfg)
    if reason:
        raise InputError(f"run.dir: {folder} holds a finished run: {reason}")


def require_no_lost_checkpoints(folder: Path) -> None:
    """Raise InputError for a run without checkpoints that has trained: it does not begin anew over what it holds."""
    history, rows = folder / "history.csv", 0
    if history.exists():
        rows = len(read_history(history))
    results = [name for name in ("model.safetensors", METRICS) if (folder / name).exists()]
    # A run that is killed just before its first checkpoint has one row
    if results or rows > 1:
        what = results[0] if results else f"a history of {rows} epochs"
        best = folder / "checkpoints" / BEST
        way = f", there with model.weights={best}" if is_intact(best) else ""
        raise InputError(f"run.dir: {folder} holds {what}, and its last checkpoint is gone; give another folder{way}")


def changed_step_settings(config: dict, folder: Path) -> str:
    """What has other values than in the earlier start in the folder: "epochs" for no more than the number of epochs,
    "values" for those of optimizer, schedule or their course, or "". Raises InputError for another optimizer or
    schedule, which could not continue with the state of the one before."""
    earlier, now = flat_config(read_config(folder)), flat_config(config)
    changed = [key for key in now if key in earlier and earlier[key] != now[key]]
    for key in ("optimizer.name", "schedule.name"):
        if key in changed:
            raise InputError(
                f"run.dir: {key}={earlier[key]} can't become {now[key]} within a run; give another folder, there with "
                f"model.weights={folder} once this run is finished"
            )
    steps = [key for key in changed if key.startswith(STEP_KEYS)]
    epochs = all(key == "trainer.max_epochs" or re.fullmatch(r"phases\.[^.]+\.epochs", key) for key in steps)
    return ("epochs" if epochs else "values") if steps else ""


def require_same_photos(table: Table, folder: Path, allow_changes: bool) -> None:
    """Raises InputError where the photos, their classes or their splits are not those the run was begun with; where
    `allow_changes` is true, the log says so."""
    file = folder / "splits.csv"
    if not file.exists():
        if any((folder / "checkpoints").glob("*.ckpt")):
            log.warning("%s is missing: that the photos are those the run was begun with can't be verified", file)
        return
    try:
        before = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8").set_index("path")
        if "split" not in before or not before.index.is_unique:
            raise ValueError("it is no list of photos and their splits")
    except (OSError, ValueError, KeyError) as error:
        what = f"{file} can't be read ({' '.join(str(error).split())[:100]})"
        if not allow_changes:
            raise InputError(
                f"run.dir: {what}; give another folder, or take the photos as they are with run.allow_changes=true"
            ) from None
        log.warning("%s; the photos are taken as they are now", what)
        return
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


def log_resume_point(place: ResumePoint, num_epochs: int) -> None:
    written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(place.file.stat().st_mtime))
    inside = f" and {place.batches_done:,} batches of the next" if place.batches_done else ""
    log.info(
        "going on after %d of %d epochs%s (%s of %s)", place.epochs_done, num_epochs, inside, place.file.name, written
    )
