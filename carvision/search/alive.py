"""Signs of life of a running trial's worker, by which others know whether it has died. They work with every storage.

A lock on a file in the search's folder, which the system gives back when the process ends: workers of the same machine
know at once. A counter at the trial, raised now and then: for those of other machines, which need neither its clock nor
its disk.
"""

import contextlib
import logging
import platform
import threading
import time
from pathlib import Path
from typing import TextIO

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from carvision.folder_lock import LOCK, is_locked, lock_folder
from carvision.whole_files import own_folder

log = logging.getLogger(__name__)

HOST, BEAT, EVERY_S = "host", "beat", "beat_every_s"  # attributes of a trial
BEATS = 4  # in the time after which a worker counts as dead


class Heartbeat:
    """Of one trial, from its claim to its end."""

    def __init__(self, storage: BaseStorage, trial_id: int, place: Path, dead_after_s: float):
        """place: a folder of the trial's own for the lock."""
        self.storage, self.trial_id, self.every_s = storage, trial_id, dead_after_s / BEATS
        own_folder(place.parent)
        own_folder(place)
        self.lock: TextIO | None = lock_folder(place, f"{place} belongs to another worker")
        storage.set_trial_user_attr(trial_id, EVERY_S, self.every_s)
        storage.set_trial_user_attr(trial_id, HOST, platform.node())
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True, name="sign-of-life")
        self.thread.start()

    def _beat(self) -> None:
        count, told = 0, False
        while not self.ended.wait(self.every_s):
            count += 1
            try:
                self.storage.set_trial_user_attr(self.trial_id, BEAT, count)
                told = False
            except Exception as error:  # the database or the disk is away, or another worker has taken the trial over
                if not told and not self.ended.is_set():
                    log.warning("no sign of life could be given: %s", " ".join(str(error).split())[:200])
                told = True

    def end(self) -> None:
        self.ended.set()
        self.thread.join()
        if self.lock:
            self.lock.close()


class WorkerMonitor:
    """Which workers have died, as one process sees it."""

    def __init__(self, folder: Path, dead_after_s: float):
        """folder: where lock_dir_of() finds the locks."""
        self.folder, self.dead_after_s = folder, dead_after_s
        self.seen: dict[int, tuple[int, float, bool]] = {}  # trial: last beat, when it came here first, and one before

    def state(self, trial: FrozenTrial) -> str:
        """Of the worker of a running trial: "alive", "dead", or "unknown" for so long as no second sign has come."""
        place = lock_dir_of(self.folder, trial.number)
        if trial.user_attrs.get(HOST) == platform.node() and place.is_dir():
            locked = is_locked(place)
            if locked is not None:
                return "alive" if locked else "dead"
        beat, now = trial.user_attrs.get(BEAT, 0), time.monotonic()
        last, since, moved = self.seen.get(trial.number, (beat, now, False))
        if beat != last:
            since, moved = now, True
        self.seen[trial.number] = beat, since, moved
        if now - since > max(self.dead_after_s, BEATS * trial.user_attrs.get(EVERY_S, 0)):
            return "dead"
        return "alive" if moved else "unknown"


def lock_dir_of(folder: Path, number: int) -> Path:
    return folder / "running" / f"{number:04d}"


def clear(place: Path) -> None:
    """Remove the lock of a trial that has ended."""
    with contextlib.suppress(OSError):
        (place / LOCK).unlink(missing_ok=True)
        place.rmdir()
