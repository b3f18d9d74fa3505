"""Run carvision.sweep: start, join or continue a search with one or several workers, and report.

Several workers each have a share of this machine's cores, and a GPU if there are several. A killed one is restarted.
"""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from functools import partial

import optuna
from optuna.trial import TrialState

from carvision.config.schema import random_transforms, reason_not_cacheable
from carvision.errors import InputError
from carvision.files.atomic import create_folder, open_kept
from carvision.files.log import start_log
from carvision.search.build import Sweep
from carvision.search.queue import WHY, trials_of
from carvision.search.report import STDERR, live_table, report_trial, state_of, write_report
from carvision.search.study import describe_brackets, open_storage, open_study, storage_errors
from carvision.search.worker import POLL_EVERY_S, Interrupted, Worker
from carvision.system.runtime import STOP_SIGNALS, end_with_parent

log = logging.getLogger(__name__)

IS_WORKER = "CARVISION_SWEEP_WORKER"  # environment variable of the workers that another carvision.sweep has started
MAX_STARTS = 5  # of a worker that is killed repeatedly


def search(sweep: Sweep, overrides: list[str]) -> None:
    """Run the search until no trial is left to start; print the search's folder last. Exit with 128 + its number after
    a signal. overrides: the words of the command line, for the workers."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # no messages about single trials
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    start_log(None)
    remove_launcher_variables()
    storage = open_storage(sweep.settings["storage"], sweep.folder)
    study = open_study(sweep, storage)
    worker = partial(Worker, sweep, study, storage, partial(report_trial, sweep, study))
    with storage_errors(sweep):
        if IS_WORKER in os.environ:
            end_with_parent(sys.stdin.fileno(), signal.SIGTERM)
            with contextlib.suppress(Interrupted):  # the parent process reports it
                worker().work()
            return
        introduce(sweep, study)
        signal_number = None
        try:
            with live_table(sweep, study):
                run_workers(sweep, overrides) if sweep.settings["workers"] > 1 else worker().work()
        except Interrupted as interrupted:
            signal_number = interrupted.args[0]
        write_report(sweep, study)
        conclude(sweep, study, signal_number)


def conclude(sweep: Sweep, study: optuna.Study, signal_number: int | None) -> None:
    """Print the search's folder. Exit if a signal ended the search; raise InputError if all trials failed."""
    trials = trials_of(sweep, study)
    num_running = sum(trial.state == TrialState.RUNNING for trial in trials)
    if sum(trial.state.is_finished() for trial in trials) < sweep.num_trials:
        others = f"; {num_running} are run by other workers" if num_running else ""
        log.info("the search is not finished%s; the same command continues it", others)
    print(f"sweep: {sweep.folder}")
    if signal_number is not None:
        sys.exit(128 + signal_number)
    if sum(trial.state == TrialState.FAIL for trial in trials) == sweep.num_trials:
        raise InputError(
            f"sweep: all {sweep.num_trials} trials failed, the last with: {trials[-1].user_attrs.get(WHY)}. Fix that "
            f"and search in another folder (sweep.dir=<folder>); their output is in {sweep.folder / 'logs'}"
        )


def remove_launcher_variables() -> None:
    """Remove the variables of srun and torchrun: each process that they start is a worker, and its trials are not parts
    of one run."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK"):
            del os.environ[name]


def introduce(sweep: Sweep, study: optuna.Study) -> None:
    """Log what is searched, how, and how far an earlier start got."""
    for dimension in sweep.space.dimensions:
        log.info("%s: %s", dimension.key, dimension)
    objective = ", ".join(f"{mode} {metric}" for metric, mode in sweep.objective.items())
    epochs, sampler, pruner = sweep.num_epochs, sweep.settings["sampler"], sweep.settings["pruner"]
    how = f"at most {epochs} epoch{'s' * (epochs > 1)}; {objective}; sampler {sampler}, pruner {pruner}"
    log.info("%d trials of %s", sweep.num_trials, how)
    if pruner == "hyperband":
        for line in describe_brackets(sweep):
            log.info("%s", line)
    if caches_features(sweep):
        log.info(
            "the backbone is frozen and its photos stay the same: the features of each backbone are computed once, and "
            "trials train on them"
        )
    if trials_of(sweep, study):
        log.info("continuing %s: %s", sweep.folder, state_of(sweep, study))


def caches_features(sweep: Sweep) -> bool:
    """Return whether the backbone's features depend on no searched value but the backbone itself."""
    config, below = sweep.config, ("augment.", "data.", "phases.", "model.train_layers.")
    return (
        config["model"]["train_layers"] == "none"
        and config["features"]["keep"] is not False
        and not random_transforms(config)
        and not reason_not_cacheable(config)
        and not any(f"{key}.".startswith(below) for key in sweep.space.keys)
    )


def run_workers(sweep: Sweep, overrides: list[str]) -> None:
    """Run the workers until all have ended. Their output goes to files in the search's folder and, unless that shows
    the table, to the terminal.

    Raises InputError with a worker's message if all failed, Interrupted after a signal.
    """
    num, trainer = sweep.settings["workers"], sweep.config["trainer"]
    gpus = visible_gpus() if trainer["accelerator"] in ("gpu", "auto") else []
    each = trainer["devices"] if isinstance(trainer["devices"], int) else len(gpus) or 1
    if gpus and num * each > len(gpus):
        log.warning("%d workers with %d GPU%s each share %d GPUs", num, each, "s" * (each > 1), len(gpus))
    workers = [
        WorkerProcess(sweep, overrides, index, share_of_cores(index, num), share_of_gpus(gpus, index, each))
        for index in range(num)
    ]
    received: list[int] = []
    before = {s: signal.signal(s, lambda number, _: received.append(number)) for s in STOP_SIGNALS}
    try:
        for worker in workers:
            worker.start()
        handled = 0
        while any(worker.process.poll() is None for worker in workers):
            time.sleep(POLL_EVERY_S)
            if len(received) > handled:
                handled = len(received)
                for worker in workers:
                    worker.process.terminate()
            for worker in workers:
                worker.relay()
                killed_by = -(worker.process.poll() or 0)
                if killed_by > 0 and not received and worker.starts < MAX_STARTS:
                    name = signal.Signals(killed_by).name
                    log.warning("worker %d was killed by %s; restarting it", worker.number, name)
                    worker.start()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for worker in workers:
            worker.process.terminate()
            worker.relay()
    if received:
        raise Interrupted(received[0])
    failed = [worker for worker in workers if worker.process.returncode]
    if len(failed) == len(workers):
        raise InputError(failed[0].last_line() or f"a worker ended with status {failed[0].process.returncode}")
    for worker in failed:
        log.warning("worker %d ended: %s", worker.number, worker.last_line())


class WorkerProcess:
    """A worker in its own process, as another carvision.sweep with IS_WORKER in its environment."""

    def __init__(self, sweep: Sweep, overrides: list[str], index: int, cores: set[int], gpus: list[str]):
        self.number, self.starts, self.cores = index + 1, 0, cores
        self.command = [sys.executable, "-m", "carvision.sweep", *overrides, "sweep.workers=1"]
        self.environment = {**os.environ, IS_WORKER: str(index)}
        if gpus:
            self.environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        self.output = sweep.folder / "logs" / f"worker_{self.number}.txt"
        create_folder(self.output.parent)
        self.relayed = self.output.stat().st_size if self.output.exists() else 0

    def start(self) -> None:
        self.starts += 1
        with open_kept(self.output, "ab") as file:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=file,
                start_new_session=True,  # only this process forwards a terminal's signals to it
            )  # fmt: skip
        if self.cores:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(self.process.pid, self.cores)

    def relay(self) -> None:
        """Copy new worker output to stderr."""
        with self.output.open("rb") as file:
            file.seek(self.relayed)
            output = file.read()
        whole = output[: output.rfind(b"\n") + 1]
        self.relayed += len(whole)
        if not STDERR.is_terminal:
            sys.stderr.write(whole.decode(errors="replace"))
            sys.stderr.flush()

    def last_line(self) -> str:
        lines = self.output.read_text(errors="replace", encoding="utf-8").strip().splitlines()
        return lines[-1].removeprefix("error: ") if lines else ""


def visible_gpus() -> list[str]:
    """Return the GPUs as CUDA_VISIBLE_DEVICES names them; without torch, whose import takes seconds."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [name.strip() for name in allowed.split(",") if name.strip() not in ("", "-1")]
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, "--query-gpu=index", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, encoding="utf-8", errors="replace")
    return [line.strip() for line in done.stdout.splitlines() if line.strip().isdigit()]


def share_of_gpus(gpus: list[str], index: int, each: int) -> list[str]:
    """Return the worker's GPUs; workers share if there are too few."""
    return [gpus[(index * each + i) % len(gpus)] for i in range(min(each, len(gpus)))]


def share_of_cores(index: int, num: int) -> set[int]:
    """Return the worker's cores; empty if the system can't set affinity."""
    if not hasattr(os, "sched_getaffinity"):
        return set()
    cores = sorted(os.sched_getaffinity(0))
    return set(cores[index::num]) if len(cores) >= num else {cores[index % len(cores)]}
