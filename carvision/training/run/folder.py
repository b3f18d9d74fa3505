"""Read, write and lock a run's folder: its configuration, its metrics, and errors of its disk."""

import errno
import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

import yaml

from carvision.config.compose import flat_config, keys_added_since, with_later_defaults
from carvision.config.schema import KEYS_WITHOUT_EFFECT
from carvision.errors import InputError, one_line
from carvision.files import locks
from carvision.files.atomic import write_text
from carvision.files.folders import CONFIG, shorten

log = logging.getLogger(__name__)

T = TypeVar("T")

FAILING = {errno.EIO, errno.ESTALE, errno.EFBIG, errno.EROFS}  # errors of a disk besides a full one

METRICS = "metrics.json"
# Marks a finished run that is being trained further, until its new end: its model and metrics are still the old ones
EXTENDING = "extending.json"


def is_finished(folder: Path) -> bool:
    """Return whether the run in the folder has ended, and is not being trained further."""
    return not (folder / EXTENDING).exists() and read_metrics(folder) is not None


def read_metrics(folder: Path) -> dict | None:
    """Return metrics.json; None if it is missing, or damaged (logged as a warning)."""
    return read_json(folder / METRICS, dict, "the run counts as not finished")


def read_json(file: Path, kind: type[T], otherwise: str) -> T | None:
    """Return what an earlier start wrote to a JSON file, a dict or list; None if it is missing, or damaged (logged as a
    warning with `otherwise`, what that means)."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, kind) and content:
            return content
        reason = f"it holds no {kind.__name__} of values"
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = one_line(error, 100)
    log.warning("%s is damaged (%s): %s", file, reason, otherwise)
    return None


def write_config(config: dict, folder: Path) -> None:
    """Write the folder's config.yaml."""
    write_text(folder / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def require_same_config(config: dict, started_with: dict, folder: Path) -> None:
    """Raise InputError if the run in the folder was started with another configuration, ignoring `run` and keys that
    don't affect results; with run.allow_changes, log a warning for each change instead."""
    now = flat_config(config)
    earlier = with_later_defaults(flat_config(started_with), now)
    if now["data.batch_size"] == "auto":
        earlier["data.batch_size"] = "auto"  # the size found then is used again
    if "trainer.deterministic" in earlier:  # the key's name in an earlier version
        earlier["deterministic"] = earlier.pop("trainer.deterministic")
    added = keys_added_since(earlier, now)
    if added:
        log.info("%s: not in the run's first start; using the value of conf/", ", ".join(added))
    ignored = KEYS_WITHOUT_EFFECT.union(added)
    keys = [key for key in {**earlier, **now} if not key.startswith(("run.", "features.")) and key not in ignored]
    changed = [f"{key}={earlier.get(key)} became {now.get(key)}" for key in keys if earlier.get(key) != now.get(key)]
    if changed and not config["run"]["allow_changes"]:
        raise InputError(
            f"run.dir: {folder} holds an unfinished run with other values: {'; '.join(changed)}. Give the same values "
            "to resume it, run.allow_changes=true to resume it with these, or a new run.dir"
        )
    for change in changed:
        log.warning("resuming with a changed configuration: %s", change)


def lock_run_folder(folder: Path) -> IO[bytes]:
    """Lock the folder until the returned file is closed or the process ends. Raise InputError if another process trains
    into it."""
    return locks.lock_folder(
        folder, f"run.dir: another process is training into {folder} now; wait for it, or give another"
    )


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn the errors of a full or failing disk into an InputError. Files that were complete stay complete."""
    try:
        with _quiet_threads():
            yield
    except InputError:
        raise
    except Exception as error:  # safetensors has its own exception with the system's message
        message = disk_error(error, folder)
        if message is None:
            raise
        raise InputError(message) from None


def disk_error(error: Exception, folder: Path) -> str | None:
    """Return the message for an error that a disk caused; None for other errors."""
    number, text = getattr(error, "errno", None), getattr(error, "strerror", None) or ""
    resume = "the same command with this run.dir resumes the run"
    full = number == errno.EDQUOT or os.strerror(errno.ENOSPC) in str(error)
    if full:
        detail = f" ({text.partition(': ')[2]})" if ": " in text else ""
        return (
            f"run.dir: no space is left on the disk of {folder}{detail}; checkpoints that were complete are still "
            f"there. Free some space, and {resume}"
        )
    file = getattr(error, "filename", None)
    if isinstance(error, OSError) and file:
        inside = Path(os.fsdecode(file)).is_relative_to(folder)
        return f"run.dir: {shorten(str(file))} can't be written ({text}); fix that, and {resume}" if inside else None
    # An error of an open file has no file name. Unreadable photos have errors of their own
    if number in FAILING:
        return f"run.dir: the disk of {folder} fails ({os.strerror(number)}); fix that, and {resume}"
    return None


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Log a disk error of another thread (such as TensorBoard's) once, without its traceback. The main thread meets the
    error itself."""
    original, logged = threading.excepthook, []

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and args.exc_value.errno in {errno.ENOSPC, errno.EDQUOT, *FAILING}):
            original(args)
        elif not logged:
            logged.append(args.exc_value)
            log.warning("a background writer stopped: %s", args.exc_value)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = original
