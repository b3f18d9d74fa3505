"""Find where an earlier start of a run ended, and check that this start can resume there."""

import logging
import re
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

from carvision.config.compose import flat_config
from carvision.data.paths import nfc
from carvision.data.splits import splits_of
from carvision.data.table import Table
from carvision.errors import InputError, one_line
from carvision.files.atomic import link_or_copy, refuse_link_out
from carvision.training.callbacks import read_history
from carvision.training.optim import Phase, build_phases
from carvision.training.run.checkpoints import BEST, LAST, NEW, PREVIOUS, is_intact
from carvision.training.run.folder import METRICS, read_config

log = logging.getLogger(__name__)

NOT_STOPPED = EarlyStoppingReason.NOT_STOPPED.value
# Keys that a checkpoint must have; with empty TRAINING_KEYS Lightning would silently restart the training
REQUIRED_KEYS = {"state_dict", "callbacks", "epoch", "batches_done", "phase", "phase_begun"}
TRAINING_KEYS = {"optimizer_states", "lr_schedulers", "loops"}
STEP_KEYS = ("optimizer.", "schedule.", "phases", "trainer.", "data.batch_size")  # what a training step depends on


class ResumePoint(NamedTuple):
    """Position in a run that a checkpoint restores. All counts start at 0."""

    file: Path
    phase: int
    phase_begun: int  # first epoch of the phase
    epochs_done: int
    batches_done: int  # of the epoch after epochs_done
    stopped_early: bool  # early stopping ended the phase
    waited: int = 0  # early stopping's count of epochs without improvement
    best_lost: bool = False  # best.ckpt is damaged or of another epoch: the best later epoch replaces it


def find_resume_point(folder: Path, repair: bool) -> ResumePoint | None:
    """Return the resume point of last.ckpt in the folder, or of previous.ckpt if that is damaged or missing; None
    without checkpoints.

    repair: also clean up after a killed start (delete a partial checkpoint, restore best.ckpt). Raises InputError if
    checkpoints exist and none can be read. Executes no code from them.
    """
    if repair:
        refuse_link_out(folder)
        (folder / NEW).unlink(missing_ok=True)  # partially written
    there = [file for file in (folder / LAST, folder / PREVIOUS) if file.exists()]
    problems = []
    for file in there:
        try:
            point, best_epoch = _read_resume_point(file)
        except Exception as error:  # torch and pickle raise many kinds for a damaged file
            problems.append(f"{file} is not a complete checkpoint ({one_line(error, 100)})")
            continue
        for problem in problems:
            log.warning("%s; resuming from %s", problem, file.name)
        if repair and not point.batches_done and best_epoch == point.epochs_done - 1:
            link_or_copy(file, folder / BEST)  # the start may have been killed before writing it
        if best_epoch is None or _epoch_of(folder / BEST) == best_epoch:
            return point
        log.warning("%s is damaged or of another epoch; the best epoch from now on replaces it", folder / BEST)
        return point._replace(best_lost=True)
    if problems:
        best = f", with model.weights={folder / BEST}" if is_intact(folder / BEST) else ""
        raise InputError(f"run.dir: {'; '.join(problems)}; use a new run.dir to start anew{best}")
    return None


def read_checkpoint(file: Path) -> dict:
    """Return carvision's checkpoint with mapped tensors; executes no code from it. Raises ValueError."""
    if not is_intact(file):
        raise ValueError("its checksums are wrong")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch and pickle raise many kinds for a damaged file
        raise ValueError(one_line(error, 100)) from None
    present = {key for key in state if key not in TRAINING_KEYS or state[key]} if isinstance(state, dict) else set()
    missing = (REQUIRED_KEYS | TRAINING_KEYS) - present
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
    saving = next(values for name, values in state["callbacks"].items() if name.startswith("Checkpoints"))
    counts = (epoch, batches, state["phase"], state["phase_begun"])
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError("its epoch counts are invalid")
    return ResumePoint(file, state["phase"], state["phase_begun"], done, batches, stopped, waited), saving["best_epoch"]


def _epoch_of(file: Path) -> int | None:
    """Return the checkpoint's epoch; None if it can't be read."""
    try:
        return read_checkpoint(file)["epoch"]
    except ValueError:
        return None


def load_best(folder: Path, lit: torch.nn.Module) -> dict:
    """Load the weights of best.ckpt into `lit`, or those of last.ckpt if it is damaged (logged as a warning). Return
    the checkpoint."""
    problems = []
    for name in (BEST, LAST):
        try:
            state = read_checkpoint(folder / name)
            lit.load_state_dict(state["state_dict"])
        except (ValueError, RuntimeError) as error:
            problems.append(f"{folder / name}: {one_line(error, 100)}")
            continue
        for problem in problems:
            log.warning("%s; the last epoch is tested and saved instead", problem)
        return state
    raise InputError(f"run.dir: no checkpoint can be tested ({'; '.join(problems)}); use a new run.dir to start anew")


def planned_end(point: ResumePoint, phases: list[Phase]) -> int:
    """Return the number of epochs after which the resume point's phase ends."""
    return point.phase_begun + phases[point.phase]["epochs"]


def apply_patience(point: ResumePoint, patience: int | None) -> ResumePoint:
    """Return the point with stopped_early only if early stopping would also end the phase with this patience."""
    return point._replace(stopped_early=point.stopped_early and patience is not None and point.waited >= patience)


def require_enough_epochs(point: ResumePoint, phases: list[Phase]) -> None:
    """Raise InputError if the phases have fewer epochs than the run has already trained."""
    name = phases[min(point.phase, len(phases) - 1)]["name"]
    key = f"phases.{name}.epochs" if name else "trainer.max_epochs"
    if point.phase >= len(phases):
        raise InputError(
            f"{key}: the run has started phase {point.phase + 1}, and there are only {len(phases)} now; give as many"
        )
    end = planned_end(point, phases)
    if point.epochs_done + (point.batches_done > 0) > end:
        inside = f" and {point.batches_done} batches" if point.batches_done else ""
        raise InputError(
            f"{key}: the run has trained {point.epochs_done} epochs{inside} already, and would end after {end} now; "
            f"give {point.epochs_done + (point.batches_done > 0)} or more"
        )


def reason_to_end(folder: Path, cfg: dict) -> str | None:
    """Return why a finished run is not trained further with this configuration; None if it is."""
    phases = build_phases(cfg)
    try:
        point = find_resume_point(folder / "checkpoints", repair=False)
    except InputError as error:
        return str(error).removeprefix("run.dir: ")
    if point is None:
        return f"its checkpoints are gone; use a new run.dir, with model.weights={folder}"
    require_enough_epochs(point, phases)
    if point.phase < len(phases) - 1:
        return None
    patience = cfg["callbacks"]["patience"]
    if apply_patience(point, patience).stopped_early:
        return (
            f"early stopping ended it after {point.epochs_done} epochs, and callbacks.patience={patience} would "
            "again; give a larger one, or null"
        )
    if point.epochs_done >= planned_end(point, phases) and not point.batches_done:
        key = f"phases.{phases[-1]['name']}.epochs" if phases[-1]["name"] else "trainer.max_epochs"
        wanted = sum(phase["epochs"] for phase in phases)
        return f"all of its {point.epochs_done} epochs are trained, and {wanted} are asked for; give more with {key}"
    return None


def require_more_epochs(folder: Path, cfg: dict) -> None:
    """Raise InputError if the finished run in the folder is not trained further."""
    reason = reason_to_end(folder, cfg)
    if reason:
        raise InputError(f"run.dir: {folder} holds a finished run: {reason}")


def require_no_lost_checkpoints(folder: Path) -> None:
    """Raise InputError if a run has trained but its checkpoints are gone: starting anew would overwrite its results."""
    history, rows = folder / "history.csv", 0
    if history.exists():
        rows = len(read_history(history))
    results = [name for name in ("model.safetensors", METRICS) if (folder / name).exists()]
    # A run killed just before its first checkpoint has one row
    if results or rows > 1:
        what = results[0] if results else f"a history of {rows} epochs"
        best = folder / "checkpoints" / BEST
        hint = f", with model.weights={best}" if is_intact(best) else ""
        raise InputError(f"run.dir: {folder} holds {what}, and its last checkpoint is gone; use a new run.dir{hint}")


def changed_step_settings(config: dict, folder: Path) -> str:
    """Return which settings differ from the earlier start's: "epochs" if only the number of epochs, "values" if those
    of optimizer, schedule or trainer, or "". Raise InputError for another optimizer or schedule, whose state could not
    be continued."""
    earlier, now = flat_config(read_config(folder)), flat_config(config)
    changed = [key for key in now if key in earlier and earlier[key] != now[key]]
    for key in ("optimizer.name", "schedule.name"):
        if key in changed:
            raise InputError(
                f"run.dir: {key}={earlier[key]} can't become {now[key]} within a run; use a new run.dir, with "
                f"model.weights={folder} once this run is finished"
            )
    steps = [key for key in changed if key.startswith(STEP_KEYS)]
    epochs = all(key == "trainer.max_epochs" or re.fullmatch(r"phases\.[^.]+\.epochs", key) for key in steps)
    return ("epochs" if epochs else "values") if steps else ""


def require_same_photos(table: Table, folder: Path, allow_changes: bool) -> None:
    """Raise InputError if photos, classes or splits differ from those the run was started with; with `allow_changes`,
    log a warning instead."""
    file = folder / "splits.csv"
    if not file.exists():
        if any((folder / "checkpoints").glob("*.ckpt")):
            log.warning("%s is missing: can't verify that the photos are those the run was started with", file)
        return
    try:
        before = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8").set_index("path")
        if "split" not in before or not before.index.is_unique:
            raise ValueError("not a list of photos and their splits")
    except (OSError, ValueError, KeyError) as error:
        what = f"{file} can't be read ({one_line(error, 100)})"
        if not allow_changes:
            raise InputError(
                f"run.dir: {what}; use a new run.dir, or the photos as they are with run.allow_changes=true"
            ) from None
        log.warning("%s; using the photos as they are now", what)
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
        f"the photos are not those the run was started with ({file}): {more:,} more, {fewer:,} fewer, {moved:,} in "
        "another split or class"
    )
    if not allow_changes:
        raise InputError(
            f"run.dir: {what}. Put them back, use the old splits with data.split.file=<a copy of that file>, or "
            "continue with run.allow_changes=true"
        )
    log.warning("continuing, though %s", what)


def log_resume_point(point: ResumePoint, num_epochs: int) -> None:
    """Log where the run resumes."""
    written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(point.file.stat().st_mtime))
    inside = f" and {point.batches_done:,} batches of the next" if point.batches_done else ""
    log.info(
        "resuming after %d of %d epochs%s (%s of %s)", point.epochs_done, num_epochs, inside, point.file.name, written
    )
