"""Tell whether the worker of a running trial is alive, and whose trial it is; end a process with its parent.

A worker's death is seen on its own machine at once: it holds a lock on a file in the search's folder, which the system
releases when the process ends. Other machines see that a counter, which is stored with the trial and raised
periodically, has stopped; that needs neither synchronised clocks nor a shared disk, and works with every storage.

Optuna's own heartbeat (RDBStorage(heartbeat_interval=...)) is not used: a journal has none, a trial whose worker died
before its first beat never counts as stale, and one that is taken again at once counts as stale until its first beat.
"""

import logging
import os
import platform
import signal
import threading
import time
import uuid
from pathlib import Path

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from carvision.errors import one_line
from carvision.files.atomic import PARTIAL, create_folder
from carvision.files.locks import LOCK, is_locked, lock_among_threads, lock_folder

log = logging.getLogger(__name__)

RUNNING = "running"  # subfolder of the search's folder, with a folder for each worker
PLAN = "plan.json"  # there: what the worker's trial process is to do
# Trial attributes
WORKER = "worker"  # {"host", "id", "beat_every_s"} of the worker whose trial it is, or was until it died
BEAT = "beat"  # how many heartbeats it has sent
BEATS_PER_TIMEOUT = 4  # heartbeats within the time after which a worker counts as dead


def owns(worker_id: str, trial: FrozenTrial) -> bool:
    """Return whether this is the trial's worker, and no other has continued or ended the trial in the meantime."""
    return trial.state == TrialState.RUNNING and trial.user_attrs.get(WORKER, {}).get("id") == worker_id


class Heartbeat:
    """Make a running trial this worker's, and send its heartbeats until end()."""

    def __init__(self, storage: BaseStorage, trial_id: int, worker: dict):
        self.storage, self.trial_id, self.worker = storage, trial_id, worker
        storage.set_trial_user_attr(trial_id, WORKER, worker)
        self.lost, self.ended = threading.Event(), threading.Event()  # lost: it is another worker's now
        self.thread = threading.Thread(target=self._send_beats, daemon=True, name="heartbeat")
        self.thread.start()

    def is_ours(self) -> bool:
        """Return whether the trial is still this worker's, as the storage has it now."""
        if not owns(self.worker["id"], self.storage.get_trial(self.trial_id)):
            self.lost.set()
        return not self.lost.is_set()

    def _send_beats(self) -> None:
        count, failing = 0, False
        while not self.ended.wait(self.worker["beat_every_s"]):
            count += 1
            try:
                if not self.is_ours():  # this process was frozen, or cut off from the storage, for too long
                    return
                self.storage.set_trial_user_attr(self.trial_id, BEAT, count)
                failing = False
            except Exception as error:  # the storage is unavailable
                if not failing and not self.ended.is_set():
                    log.warning("no heartbeat could be sent: %s", one_line(error, 200))
                failing = True

    def end(self) -> None:
        self.ended.set()
        self.thread.join()


class Presence:
    """This worker's name and lock, and what it has seen of the search's other workers."""

    def __init__(self, search_folder: Path, dead_after_s: float):
        self.folder, self.dead_after_s = create_folder(search_folder / RUNNING), dead_after_s
        self.worker = {
            "host": platform.node(), "id": uuid.uuid4().hex[:12], "beat_every_s": dead_after_s / BEATS_PER_TIMEOUT
        }  # fmt: skip
        self.lock = lock_folder(create_folder(self.folder / self.worker["id"]), "")
        self.seen: dict[int, tuple[object, float]] = {}  # {trial: (its last sign of life, when it was first seen)}

    def is_dead(self, trial: FrozenTrial) -> bool:
        """Return whether a running trial's worker has died, as far as this process can know by now."""
        worker = trial.user_attrs.get(WORKER, {})
        if worker.get("id") == self.worker["id"]:
            return False
        if worker.get("host") == self.worker["host"] and (self.folder / worker["id"]).is_dir():
            locked = is_locked(self.folder / worker["id"])
            if locked is not None:
                return not locked
        sign, now = (trial.datetime_start, worker.get("id"), trial.user_attrs.get(BEAT)), time.monotonic()
        last, since = self.seen.get(trial.number, (None, now))
        if sign != last:
            self.seen[trial.number] = sign, now
            return False
        return now - since > max(self.dead_after_s, BEATS_PER_TIMEOUT * worker.get("beat_every_s", 0))

    def one_at_a_time(self):
        """Hold the lock under which one worker at a time takes a trial; where disks have no locks, none is held."""
        return lock_among_threads(self.folder / LOCK, wait=True)

    def end(self) -> None:
        """Release the lock, and remove it with those of workers that have died."""
        if self.lock:
            self.lock.close()
        with self.one_at_a_time():
            for path in self.folder.iterdir():
                if path.is_dir() and is_locked(path) is False:
                    for name in (PLAN, f"{PLAN}{PARTIAL}", LOCK):
                        (path / name).unlink(missing_ok=True)
                    path.rmdir()


def end_with_parent(lifeline: int, ending: signal.Signals | None = None) -> None:
    """Send this process the signal (None: SIGKILL) once the process that holds the other end of the pipe is gone."""
    ending = ending or getattr(signal, "SIGKILL", signal.SIGTERM)

    def watch() -> None:
        while os.read(lifeline, 1):
            pass
        os.kill(os.getpid(), ending)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
