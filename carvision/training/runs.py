"""What one start of carvision.train does: one run, or one for each fold or seed."""

import json
import logging
import multiprocessing
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pytorch_lightning.callbacks import Callback

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


def run(cfg: dict, name: str, callbacks: Sequence[Callback] = ()) -> Path:
    """Train as the plain config says; prints the run's folder last, and returns it. name: of runs/<name>/<time>.
    callbacks: beside the run's own, called before those that save.

    Exits with 128 + its number after a signal, as schedulers expect it.
    """

    def choose_folder() -> tuple[str, bool]:
        wanted = cfg["run"]["dir"] and Path(cfg["run"]["dir"])
        if wanted and holds_unfinished_run(wanted):
            return str(wanted), True
        return str(claim_folder(wanted, Path("runs") / name, leftovers=(LOCK, f"config.yaml{PARTIAL}"))), False

    keep_freed_memory()
    with run_together(cfg["trainer"]):
        chosen, resume = from_first_at_start(choose_folder)
        folder = Path(chosen)
        with disk_errors(folder), refused_operation_is_an_input_error():
            return _run_in(folder, cfg, resume, callbacks)


def _run_in(folder: Path, cfg: dict, resume: bool, callbacks: Sequence[Callback]) -> Path:
    first = is_first_process()
    lock = lock_folder(folder) if first else None
    ending = None
    try:
        start_log(folder if first else None, quiet=not first)
        if resume and any(folder.rglob("*.ckpt")):  # else there is nothing yet that another configuration could spoil
            require_same_config(cfg, folder)
        if resume:
            log.info("going on with %s", folder)
        _run_parts(cfg, folder, resume, callbacks)
    except Exception as error:
        told = isinstance(error, InputError) or is_echo(error)
        if not told:
            _end_readers()
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
        _end_readers()
        sys.exit(128 + ending.signal)
    return folder


def _end_readers() -> None:
    """At its exit Python waits for them: for ever, as they ignore its signal, and one may wait for a disk."""
    for reader in multiprocessing.active_children():
        reader.kill()


def _run_parts(cfg: dict, folder: Path, resume: bool, callbacks: Sequence[Callback]) -> None:
    """A run, or where there are several folds or seeds a run for each in a folder of its own, and mean and spread of
    their test figures in the folder's metrics.json. Those that an earlier start has brought to their end stay."""
    minutes = cfg["run"]["max_minutes"]
    ends = None if minutes is None else time.monotonic() + 60 * minutes  # of all together
    folds, seeds = folds_of(cfg["data"]["split"]), cfg["run"]["seeds"]
    if len(folds) == 1 and not seeds:
        run_training(cfg, folder, folds[0], resume, ends, callbacks)
        return
    if len(folds) > 1 and seeds:
        raise InputError("run.seeds: takes one fold at a time; add data.split.fold=<i>")
    if cfg["run"]["max_epochs_per_start"]:
        raise InputError(
            "run.max_epochs_per_start: takes one run at a time; "
            + ("give seed= instead of run.seeds" if seeds else "add data.split.fold=<i>")
        )
    if is_first_process():
        write_config(cfg, folder)
    parts = []
    what, values = ("seed", seeds) if seeds else ("fold", folds)
    for number, value in enumerate(values, 1):
        log.info("%s %d: %d of %d", what, value, number, len(values))
        part = folder / f"{what}_{value}"
        done, begun = from_first_at_start(
            lambda part=part: [(part / "metrics.json").exists(), holds_unfinished_run(part)]
        )
        if is_first_process():
            part.mkdir(exist_ok=True)
        if seeds:  # the part's own files tell which one it is
            own = {**cfg, "seed": value, "run": {**cfg["run"], "seeds": None}}
        else:
            own = {**cfg, "data": {**cfg["data"], "split": {**cfg["data"]["split"], "fold": value}}}
        if done:
            parts.append(json.loads((part / "metrics.json").read_text(encoding="utf-8")))
        else:
            parts.append(run_training(own, part, folds[0] if seeds else value, begun, ends, callbacks))
    split = "test" if cfg["run"]["test"] else "val"
    summary = mean_and_spread([part[split] for part in parts])
    seconds = {stage: round(sum(part["seconds"].get(stage, 0) for part in parts), 3) for stage in parts[0]["seconds"]}
    metrics = {f"{what}s": len(values), split: summary, "seconds": seconds}
    if "cost" in parts[0]:
        metrics |= {"cost": sum(part["cost"] for part in parts), "price_per_hour": parts[0]["price_per_hour"]}
    if is_first_process():
        write_metrics(metrics, folder)
    for figure in (f for f in summary if f.endswith("top1") or f == "loss"):
        mean, std = summary[figure].values()
        log.info("%s/%s over %d %ss: %.4f +- %.4f", split, figure, len(values), what, mean, std)


def mean_and_spread(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """{metric: {"mean", "std"}} of the metrics that all runs have; std with n - 1, as of a sample (of one: 0)."""
    shared = [name for name in runs[0] if all(metrics.get(name) is not None for metrics in runs)]
    columns = {name: np.array([figures[name] for figures in runs]) for name in shared}
    return {
        name: {"mean": float(v.mean()), "std": float(v.std(ddof=1)) if len(v) > 1 else 0.0}
        for name, v in columns.items()
    }
