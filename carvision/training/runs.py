"""What one start of carvision.train does: one run, or one for each fold."""

import json
import logging
import multiprocessing
import shutil
import sys
import time
from pathlib import Path

import numpy as np

from carvision.data.build import folds_of
from carvision.errors import InputError
from carvision.folder_lock import LOCK
from carvision.folders import claim_folder
from carvision.freed_memory import keep_freed_memory
from carvision.run_log import start_log
from carvision.training.determinism import refused_operation_is_an_input_error
from carvision.training.fit import run_training
from carvision.training.launch import from_first_at_start, is_echo, is_first_process, run_together
from carvision.training.run_folder import (
    disk_errors,
    holds_unfinished_run,
    lock_folder,
    require_same_config,
    write_config,
    write_metrics,
)
from carvision.training.stopping import Stopped
from carvision.whole_files import PARTIAL

log = logging.getLogger(__name__)

WORTH_KEEPING = ("*.ckpt", "history.csv", "nonfinite_loss.csv")


def run(cfg: dict, name: str) -> Path:
    """Train as the plain config says; prints the run's folder last, and returns it. name: of runs/<name>/<time>.

    Exits with 128 + its number after a signal, as schedulers expect it.
    """

    def choose_folder() -> tuple[str, bool]:
        wanted = cfg["run"]["dir"] and Path(cfg["run"]["dir"]).expanduser()
        if wanted and holds_unfinished_run(wanted):
            return str(wanted), True
        return str(claim_folder(wanted, Path("runs") / name, leftovers=(LOCK, f"config.yaml{PARTIAL}"))), False

    keep_freed_memory()
    with run_together(cfg["trainer"]):
        chosen, resume = from_first_at_start(choose_folder)
        folder = Path(chosen)
        with disk_errors(folder), refused_operation_is_an_input_error():
            return _run_in(folder, cfg, resume)


def _run_in(folder: Path, cfg: dict, resume: bool) -> Path:
    first = is_first_process()
    lock = lock_folder(folder) if first else None
    ending = None
    try:
        start_log(folder if first else None, quiet=not first)
        if resume and any(folder.rglob("*.ckpt")):  # else there is nothing yet that another configuration could spoil
            require_same_config(cfg, folder)
        if resume:
            log.info("going on with %s", folder)
        _run_folds(cfg, folder, resume)
    except Exception as error:
        told = isinstance(error, InputError) or is_echo(error)
        if told and first and not resume and not any(any(folder.rglob(name)) for name in WORTH_KEEPING):
            start_log(None)  # closes run.log
            shutil.rmtree(folder)  # nothing was trained, and the mended command may name the same run.dir
        raise
    except Stopped as stopped:
        ending = stopped
    finally:
        if lock:
            lock.close()
    if first:
        if not (folder / "metrics.json").exists():
            why = f" ({ending})" if ending else ""
            log.info("the run is not finished%s; the same command with run.dir=%s goes on", why, folder)
        print(f"run: {folder}")
    if ending and ending.signal:
        for reader in multiprocessing.active_children():  # one may wait for a disk for ever, and Python for it
            reader.kill()
        sys.exit(128 + ending.signal)
    return folder


def _run_folds(cfg: dict, folder: Path, resume: bool) -> None:
    """A run, or where there are several folds a run in fold_<i> for each, and mean and spread of their test figures in
    the folder's metrics.json. Folds that an earlier start has brought to their end stay as they are."""
    minutes = cfg["run"]["max_minutes"]
    ends = None if minutes is None else time.monotonic() + 60 * minutes  # of all folds together
    folds = folds_of(cfg["data"]["split"])
    if len(folds) == 1:
        run_training(cfg, folder, folds[0], resume, ends)
        return
    if cfg["run"]["max_epochs_per_start"]:
        raise InputError("run.max_epochs_per_start: takes one fold at a time; add data.split.fold=<i>")
    if is_first_process():
        write_config(cfg, folder)
    parts = []
    for fold in folds:
        log.info("fold %d of %d", fold + 1, len(folds))
        part = folder / f"fold_{fold}"
        done, begun = from_first_at_start(
            lambda part=part: [(part / "metrics.json").exists(), holds_unfinished_run(part)]
        )
        if is_first_process():
            part.mkdir(exist_ok=True)
        split = {**cfg["data"]["split"], "fold": fold}  # so that the fold's own files tell which one it is
        if done:
            parts.append(json.loads((part / "metrics.json").read_text()))
        else:
            own = {**cfg, "data": {**cfg["data"], "split": split}}
            parts.append(run_training(own, part, fold, begun, ends))
    summary = mean_and_spread([part["test"] for part in parts])
    seconds = {stage: round(sum(part["seconds"].get(stage, 0) for part in parts), 3) for stage in parts[0]["seconds"]}
    metrics = {"folds": len(folds), "test": summary, "seconds": seconds}
    if "cost" in parts[0]:
        metrics |= {"cost": sum(part["cost"] for part in parts), "price_per_hour": parts[0]["price_per_hour"]}
    if is_first_process():
        write_metrics(metrics, folder)
    for figure in (f for f in summary if f.endswith("top1") or f == "loss"):
        log.info("test/%s over %d folds: %.4f +- %.4f", figure, len(folds), *summary[figure].values())


def mean_and_spread(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """{figure: {"mean", "std"}} of the figures that all runs have; std with n - 1, as of a sample."""
    shared = [name for name in runs[0] if all(name in figures for figures in runs)]
    columns = {name: np.array([figures[name] for figures in runs]) for name in shared}
    return {name: {"mean": float(v.mean()), "std": float(v.std(ddof=1))} for name, v in columns.items()}
