"""Heartbeat of a running trial's worker, by which other workers detect its death. Works with every storage.

On the same machine: a lock on a file in the search's folder, which the system releases when the process ends, so that
workers know at once. Across machines: a counter stored with the trial and raised periodically, which needs neither
synchronised clocks nor a shared disk.
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

HOST, BEAT, EVERY_S = "host", "beat", "beat_every_s"  # trial attributes
BEATS_PER_TIMEOUT = 4  # beats within the time after which a worker counts as dead


class Heartbeat:
    """Send a trial's heartbeat from its claim to its end."""

    def __init__(self, storage: BaseStorage, trial_id: int, lock_dir: Path, dead_after_s: float):
        """Start the heartbeat. lock_dir: the trial's own folder for the lock. Raises InputError if another worker holds
        it."""
        self.storage, self.trial_id, self.interval_s = storage, trial_id, dead_after_s / BEATS_PER_TIMEOUT
        own_folder(lock_dir.parent)
        own_folder(lock_dir)
        self.lock: TextIO | None = lock_folder(lock_dir, f"{lock_dir} belongs to another worker")
        storage.set_trial_user_attr(trial_id, EVERY_S, self.interval_s)
        storage.set_trial_user_attr(trial_id, HOST, platform.node())
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._send_beats, daemon=True, name="heartbeat")
        self.thread.start()

    def _send_beats(self) -> None:
        count, failing = 0, False
        while not self.ended.wait(self.interval_s):
            count += 1
            try:
                self.storage.set_trial_user_attr(self.trial_id, BEAT, count)
                failing = False
            except Exception as error:  # storage is unavailable, or another worker has requeued the trial
                if not failing and not self.ended.is_set():
                    log.warning("no heartbeat could be sent: %s", " ".join(str(error).split())[:200])
                failing = True

    def end(self) -> None:
        self.ended.set()
        self.thread.join()
        if self.lock:
            self.lock.close()


class WorkerMonitor:
    """Track which workers have died, as seen by one process."""

    def __init__(self, folder: Path, dead_after_s: float):
        """Monitor the workers of the search in `folder`, where lock_dir_of() finds the locks."""
        self.folder, self.dead_after_s = folder, dead_after_s
        self.seen: dict[
            int, tuple[int, float, bool]
        ] = {}  # trial: last beat, when it was first seen, whether it has changed

    def state(self, trial: FrozenTrial) -> str:
        """Return the state of a running trial's worker: "alive", "dead", or "unknown" until a second beat was seen."""
        lock_dir = lock_dir_of(self.folder, trial.number)
        if trial.user_attrs.get(HOST) == platform.node() and lock_dir.is_dir():
            locked = is_locked(lock_dir)
            if locked is not None:
                return "alive" if locked else "dead"
        beat, now = trial.user_attrs.get(BEAT, 0), time.monotonic()
        last, since, moved = self.seen.get(trial.number, (beat, now, False))
        if beat != last:
            since, moved = now, True
        self.seen[trial.number] = beat, since, moved
        if now - since > max(self.dead_after_s, BEATS_PER_TIMEOUT * trial.user_attrs.get(EVERY_S, 0)):
            return "dead"
        return "alive" if moved else "unknown"


def lock_dir_of(folder: Path, number: int) -> Path:
    """Return the folder of a trial's lock."""
    return folder / "running" / f"{number:04d}"


def remove_lock_dir(lock_dir: Path) -> None:
    """Remove a finished trial's lock directory."""
    with contextlib.suppress(OSError):
        (lock_dir / LOCK).unlink(missing_ok=True)
        lock_dir.rmdir()
