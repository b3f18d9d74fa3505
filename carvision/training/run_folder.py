"""A run's folder: claimed by one run, its config and its metrics."""

import errno
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn

import yaml

from carvision import folder_lock
from carvision.allowed import NO_RESULT
from carvision.config import keys_added_since
from carvision.errors import InputError
from carvision.flat_config import flat_config
from carvision.folders import BEST, CONFIG, LAST, is_run, shorten
from carvision.training.lit_classifier import LitClassifier
from carvision.whole_files import write_json, write_text

log = logging.getLogger(__name__)

FAILING = {errno.EIO, errno.ESTALE, errno.EFBIG, errno.EROFS}  # a disk's errors beside those of a full one


METRICS = "metrics.json"
# In the folder of a finished run that is trained further, from then until its new end. Its model and metrics are those
# of the end before
EXTENDING = "extending.json"


def is_finished(folder: Path) -> bool:
    """Whether the run there has come to its end, and is not being trained further."""
    return not (folder / EXTENDING).exists() and read_metrics(folder) is not None


def read_metrics(folder: Path) -> dict | None:
    """metrics.json; None where there is none, or it is damaged, which the log says."""
    try:
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        if isinstance(metrics, dict) and metrics:
            return metrics
        reason = "it holds no metrics"
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:100]
    log.warning("%s is damaged (%s): the run counts as not finished", folder / METRICS, reason)
    return None


def read_config(folder: Path) -> dict:
    """The configuration that the run there was begun with. Raises InputError."""
    if not is_run(folder):
        raise InputError(f"run.dir: {folder / CONFIG} can't be read as the configuration of a run; give another folder")
    return yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))


def refuse_finished(folder: Path) -> NoReturn:
    raise InputError(
        f"run.dir: {folder} exists already and holds a finished run; to train it further give more epochs with "
        "run.allow_changes=true, as in trainer.max_epochs=<more>, or begin another run with its weights in another "
        f"folder, with model.weights={folder}"
    )


def refuse_unknown(folder: Path) -> None:
    """Raise InputError for a folder with a run's checkpoints, and without the configuration that belongs to them."""
    if (folder / "checkpoints" / LAST).exists():
        raise InputError(
            f"run.dir: {folder} exists already with checkpoints, and its {CONFIG} is missing, damaged or another "
            f"program's; give another folder, there with model.weights={folder / 'checkpoints' / BEST}"
        )


def require_same_config(config: dict, folder: Path) -> None:
    """Raises InputError if the run in the folder was begun with another configuration, but for `run` and what changes
    no result; where run.allow_changes is true, the log says what was changed."""
    earlier, now = flat_config(read_config(folder)), flat_config(config)
    if now["data.batch_size"] == "auto":
        earlier["data.batch_size"] = "auto"  # the number that was found then is taken again
    if "trainer.deterministic" in earlier:  # as an earlier version of carvision called it
        earlier["deterministic"] = earlier.pop("trainer.deterministic")
    added = keys_added_since(earlier, now)
    if added:
        log.info("%s, which the run was begun without, as conf/ has it", ", ".join(added))
    left_out = NO_RESULT.union(added)
    keys = [key for key in {**earlier, **now} if not key.startswith(("run.", "features.")) and key not in left_out]
    changed = [f"{key}={earlier.get(key)} became {now.get(key)}" for key in keys if earlier.get(key) != now.get(key)]
    if changed and not config["run"]["allow_changes"]:
        raise InputError(
            f"run.dir: {folder} holds the beginning of another run: {'; '.join(changed)}. Give the same values to go "
            "on with it, run.allow_changes=true to go on with these, or another folder"
        )
    for change in changed:
        log.warning("going on with a changed configuration: %s", change)


def lock_folder(folder: Path) -> BinaryIO | None:
    """Held until it is closed or the process ends. Raises InputError where another process trains into the folder."""
    return folder_lock.lock_folder(
        folder, f"run.dir: another process is training into {folder} now; wait for it, or give another"
    )


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """A full disk, or one that nothing can be written to, ends as one line. What was whole before stays whole."""
    try:
        with _quiet_threads():
            yield
    except InputError:
        raise
    except Exception as error:  # safetensors has its own exception, which carries the system's words
        told = disk_error(error, folder)
        if told is None:
            raise
        raise InputError(told) from None


def disk_error(error: Exception, folder: Path) -> str | None:
    """What to tell of an error that a disk is the cause of; None for others."""
    words, number, text = str(error), getattr(error, "errno", None), getattr(error, "strerror", None) or ""
    mend = "the same command with this run.dir goes on"
    full = number == errno.EDQUOT or os.strerror(errno.ENOSPC) in words
    if full:
        detail = f" ({text.partition(': ')[2]})" if ": " in text else ""
        return (
            f"run.dir: no space is left on the disk of {folder}{detail}; checkpoints that were complete are still "
            f"there. Free some space, and {mend}"
        )
    file = getattr(error, "filename", None)
    if isinstance(error, OSError) and file:
        inside = Path(os.fsdecode(file)).is_relative_to(folder)
        return f"run.dir: {shorten(str(file))} can't be written ({text}); fix that, and {mend}" if inside else None
    # Of an open file, whose name the system does not tell. Not of photos: they have errors of their own
    if number in FAILING:
        return f"run.dir: the disk of {folder} fails ({os.strerror(number)}); mend that, and {mend}"
    return None


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """A thread that can't write, as TensorBoard's, is told once, without its traceback. Its error comes to the main
    thread by itself."""
    before, told = threading.excepthook, []

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and args.exc_value.errno in {errno.ENOSPC, errno.EDQUOT, *FAILING}):
            before(args)
        elif not told:
            told.append(args.exc_value)
            log.warning("what is written beside the training stops: %s", args.exc_value)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def require_space(folder: Path, lit: LitClassifier, averaged: bool) -> None:
    """Raises InputError if the run's checkpoints would not fit: last, previous, best, and one in writing, in whose
    place the model's file comes later. averaged: a moving average of the weights is kept, too."""
    needed_mb = 4 * checkpoint_bytes(lit, averaged) / 1e6
    files = [file.stat() for file in (folder / "checkpoints").glob("*.ckpt")]
    there_mb = sum({file.st_ino: file.st_size for file in files}.values()) / 1e6  # best and last may be one file
    free_mb = shutil.disk_usage(folder).free / 1e6
    if free_mb + there_mb < needed_mb:
        raise InputError(
            f"run.dir: {folder} has {free_mb:,.0f} MB free, and the checkpoints of this network need about "
            f"{needed_mb - there_mb:,.0f} MB; free some, or choose another disk with run.dir="
        )


def checkpoint_bytes(lit: LitClassifier, averaged: bool) -> int:
    """About: float32 weights, their averages, and what the optimizer keeps of each that is trained."""
    phases, sizes = lit.hparams.phases, [(p.numel(), p.requires_grad) for p in lit.parameters()]
    # What a later phase trains is not known yet: all, at most
    trained = sum(size for size, in_first in sizes if in_first or len(phases) > 1)
    kept = max(_optimizer_values_per_weight(phase["optimizer"]) for phase in phases)
    return 4 * ((1 + averaged) * sum(size for size, _ in sizes) + kept * trained)


def _optimizer_values_per_weight(optimizer: dict) -> int:
    """That the optimizer keeps: Adam's two moments, and not more by any that is usual."""
    if "sgd" in optimizer["name"]:
        return 1 if optimizer.get("momentum") else 0
    return 2


def write_config(config: dict, folder: Path) -> None:
    write_text(folder / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def write_metrics(metrics: dict, folder: Path) -> None:
    write_json(folder / METRICS, metrics)
