"""Read what an earlier start of a run left in its folder, and check that this start can resume there."""

import logging
import re
import time
import zipfile
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
from carvision.files.atomic import refuse_link_out
from carvision.files.folders import BEST, LAST, PREVIOUS, read_run_config
from carvision.training.distributed.launch import broadcast_at_start
from carvision.training.optim import Phase, phase_key
from carvision.training.run.folder import EXTENDING, METRICS, read_metrics

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
    waited: int  # early stopping's count of epochs without improvement
    best_epoch: int | None
    best_lost: bool = False  # best.ckpt is damaged or of another epoch: the best later epoch replaces it


class EarlierRun(NamedTuple):
    """What earlier starts of a run left in its folder, read once."""

    folder: Path
    config: dict
    metrics: dict | None  # of the finished run; None: it is not finished, or being trained further
    point: ResumePoint | None  # of the newest whole checkpoint
    problems: list[str]  # one for each checkpoint that can't be read


def read_earlier_run(folder: Path) -> EarlierRun | None:
    """Return, in all processes, what the first reads in the folder; None if no run is there."""

    def read() -> EarlierRun | None:
        config = read_run_config(folder)
        if config is None:
            return None
        metrics = None if (folder / EXTENDING).exists() else read_metrics(folder)
        return EarlierRun(folder, config, metrics, *read_resume_point(folder / "checkpoints"))

    return broadcast_at_start(read)


def read_resume_point(folder: Path) -> tuple[ResumePoint | None, list[str]]:
    """Return the resume point of the newest whole checkpoint in the folder, None if there is none, and a line for each
    that can't be read. Executes no code from them."""
    refuse_link_out(folder)
    found, problems = [], []
    for file in filter(Path.exists, (folder / LAST, folder / BEST, folder / PREVIOUS)):
        try:
            found.append(_point_of(file))
        except Exception as error:  # torch and pickle raise many kinds for a damaged file
            problems.append(f"{file} is not a complete checkpoint ({one_line(error, 100)})")
    if not found:
        return None, problems
    newest = max(found, key=lambda point: (point.epochs_done, point.batches_done))  # the first of equal ones
    epochs = [point.epochs_done - 1 for point in found if point.file == folder / BEST]
    return newest._replace(best_lost=newest.best_epoch not in (None, *epochs)), problems


def _point_of(file: Path) -> ResumePoint:
    state = read_checkpoint(file)
    counts = [state[key] for key in ("epoch", "batches_done", "phase", "phase_begun")]
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError("its epoch counts are invalid")
    epoch, batches, phase, begun = counts
    early = [values for name, values in state["callbacks"].items() if name.startswith("Patience")]
    stopped = any(v["stopping_reason"] != NOT_STOPPED and v["stopped_epoch"] == epoch for v in early)
    waited = max((v["wait_count"] for v in early), default=0)
    saving = next(values for name, values in state["callbacks"].items() if name.startswith("Checkpoints"))
    done = epoch + (batches == 0)
    return ResumePoint(file, phase, begun, done, batches, stopped, waited, saving["best_epoch"])


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


def is_intact(path: Path) -> bool:
    """Return whether a checkpoint's bytes match the checksums that torch stores for every tensor."""
    try:
        return zipfile.ZipFile(path).testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError):
        return False


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


def resume_point_of(earlier: EarlierRun, phases: list[Phase], patience: int | None) -> ResumePoint | None:
    """Return where this start resumes; None if the earlier one was killed before its first checkpoint.

    patience: callbacks.patience. Raises InputError if no checkpoint can be read, the phases have fewer epochs than the
    run has trained, or a finished run is not trained further with these phases.
    """
    if earlier.metrics and (reason := reason_to_end(earlier, phases, patience)):
        raise InputError(f"run.dir: {earlier.folder} holds a finished run: {reason}")
    point = earlier.point
    if point is None:
        if earlier.problems:
            raise InputError(f"run.dir: {'; '.join(earlier.problems)}; use a new run.dir to start anew")
        require_no_lost_checkpoints(earlier.folder)
        return None
    _require_enough_epochs(point, phases)
    for problem in earlier.problems:
        log.warning("%s", problem)
    if point.best_lost:
        log.warning("best.ckpt is missing, damaged or of another epoch; the best epoch from now on replaces it")
    if not _stays_stopped(point, patience):
        point = point._replace(stopped_early=False)
    num_epochs = sum(phase["epochs"] for phase in phases)
    written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(point.file.stat().st_mtime))
    inside = f" and {point.batches_done:,} batches of the next" if point.batches_done else ""
    text = "resuming after %d of %d epochs%s (%s of %s)"
    log.info(text, point.epochs_done, num_epochs, inside, point.file.name, written)
    return point


def reason_to_end(earlier: EarlierRun, phases: list[Phase], patience: int | None) -> str | None:
    """Return why a finished run is not trained further with these phases; None if it is. Raises InputError if it has
    trained more epochs than they have."""
    point = earlier.point
    if point is None:
        problem = "; ".join(earlier.problems) or "its checkpoints are gone"
        return f"{problem}; use a new run.dir, with model.weights={earlier.folder}"
    _require_enough_epochs(point, phases)
    if point.phase < len(phases) - 1:
        return None
    if _stays_stopped(point, patience):
        return (
            f"early stopping ended it after {point.epochs_done} epochs, and callbacks.patience={patience} would "
            "again; give a larger one, or null"
        )
    if point.epochs_done >= point.phase_begun + phases[point.phase]["epochs"] and not point.batches_done:
        wanted = sum(phase["epochs"] for phase in phases)
        return (
            f"all of its {point.epochs_done} epochs are trained, and {wanted} are asked for; give more with "
            f"{epochs_key(phases[-1])}"
        )
    return None


def _stays_stopped(point: ResumePoint, patience: int | None) -> bool:
    """Return whether early stopping ended the phase, and would also with this patience."""
    return point.stopped_early and patience is not None and point.waited >= patience


def _require_enough_epochs(point: ResumePoint, phases: list[Phase]) -> None:
    """Raise InputError if the phases have fewer epochs than the run has already trained."""
    key = epochs_key(phases[min(point.phase, len(phases) - 1)])
    if point.phase >= len(phases):
        raise InputError(
            f"{key}: the run has started phase {point.phase + 1}, and there are only {len(phases)} now; give as many"
        )
    end, begun = point.phase_begun + phases[point.phase]["epochs"], point.epochs_done + (point.batches_done > 0)
    if begun > end:
        inside = f" and {point.batches_done} batches" if point.batches_done else ""
        raise InputError(
            f"{key}: the run has trained {point.epochs_done} epochs{inside} already, and would end after {end} now; "
            f"give {begun} or more"
        )


def epochs_key(phase: Phase) -> str:
    """Return the configuration key of the phase's number of epochs."""
    return f"{phase_key(phase)}epochs" if phase["name"] else "trainer.max_epochs"


def require_no_lost_checkpoints(folder: Path) -> None:
    """Raise InputError if a run has trained but its checkpoints are gone: starting anew would overwrite its results."""
    history = folder / "history.csv"
    rows = history.read_bytes().count(b"\n") - 1 if history.exists() else 0
    results = [name for name in ("model.safetensors", METRICS) if (folder / name).exists()]
    # A run killed just before its first checkpoint has one row
    if results or rows > 1:
        what = results[0] if results else f"a history of {rows} epochs"
        raise InputError(f"run.dir: {folder} holds {what}, and its checkpoints are gone; use a new run.dir")


def changed_step_settings(config: dict, earlier: EarlierRun) -> str:
    """Return which settings differ from the earlier start's: "epochs" if only the number of epochs, "values" if those
    of optimizer, schedule or trainer, or "". Raise InputError for another optimizer or schedule, whose state could not
    be continued."""
    before, now = flat_config(earlier.config), flat_config(config)
    changed = [key for key in now if key in before and before[key] != now[key]]
    for key in ("optimizer.name", "schedule.name"):
        if key in changed:
            raise InputError(
                f"run.dir: {key}={before[key]} can't become {now[key]} within a run; use a new run.dir, with "
                f"model.weights={earlier.folder} once this run is finished"
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
    problem = _changed_photos(table, file)
    if problem and not allow_changes:
        raise InputError(
            f"run.dir: {problem}; use a new run.dir, or the photos as they are now with run.allow_changes=true"
        )
    if problem:
        log.warning("using the photos as they are now, though %s", problem)


def _changed_photos(table: Table, file: Path) -> str:
    """Return how the table's photos differ from those in splits.csv, or why that can't be read; "" if they are the
    same."""
    try:
        before = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8").set_index("path")
        if "split" not in before or not before.index.is_unique:
            raise ValueError("not a list of photos and their splits")
    except (OSError, ValueError, KeyError) as error:
        return f"{file} can't be read ({one_line(error, 100)})"
    now = splits_of(table).astype(str).set_index("path")
    before, now = (frame.map(nfc).set_axis(frame.index.map(nfc)) for frame in (before, now))
    common = before.index.intersection(now.index)
    columns = [name for name in ("split", *table.class_labels) if name in before]
    moved = (before.loc[common, columns] != now.loc[common, columns]).any(axis=1).sum()
    more, fewer = len(now) - len(common), len(before) - len(common)
    if not (more or fewer or moved):
        return ""
    return (
        f"the photos are not those the run was started with ({file}): {more:,} more, {fewer:,} fewer, {moved:,} in "
        "another split or class (data.split.file=<a copy of that file> gives the old splits)"
    )
