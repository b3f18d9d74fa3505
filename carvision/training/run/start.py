"""Run one start of carvision.train: its folder, its signals, and a single run, or one for each fold or seed."""

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pytorch_lightning.callbacks import Callback

from carvision.data.build import folds_of
from carvision.data.packs.remote import is_url
from carvision.errors import InputError
from carvision.files.atomic import PARTIAL, create_folder, write_json
from carvision.files.folders import BEST, CONFIG, LAST, LOCK, claim_folder, is_run, remove_beginning
from carvision.files.log import start_log
from carvision.reports.tables import percent
from carvision.system.runtime import keep_freed_memory
from carvision.training.distributed.launch import (
    broadcast_at_start,
    is_first_process,
    is_secondary_failure,
    run_together,
)
from carvision.training.hardware import nondeterministic_operation_errors
from carvision.training.optim import build_phases
from carvision.training.run.folder import (
    EXTENDING,
    METRICS,
    disk_errors,
    is_finished,
    lock_run_folder,
    require_same_config,
    write_config,
)
from carvision.training.run.resume import EarlierRun, read_earlier_run, reason_to_end
from carvision.training.run.single_run import train_single_run
from carvision.training.run.stopping import Stopped

log = logging.getLogger(__name__)

WORTH_KEEPING = ("*.ckpt", "history.csv", "nonfinite_loss.csv")


def train(
    cfg: dict, name: str, callbacks: Sequence[Callback] = (), finish: Callable[[Path], None] | None = None
) -> Path:
    """Train as the plain config says; print the run's folder last, and return it.

    name: for the default folder runs/<name>/<time>. callbacks: called before the run's own. finish: called with the
    folder of a finished run, in the first process. Exits with 128 + its number after a signal, as schedulers expect.
    """

    def choose_folder() -> tuple[str, bool, bool]:
        """Return the folder, whether it holds a run to resume, and whether it was created now."""
        wanted = cfg["run"]["dir"] and Path(cfg["run"]["dir"])
        if wanted and is_run(wanted):
            return str(wanted), True, False
        if wanted and (wanted / "checkpoints" / LAST).exists():
            raise InputError(
                f"run.dir: {wanted} exists already with checkpoints, and its {CONFIG} is missing, damaged or another "
                f"program's; use a new run.dir, with model.weights={wanted / 'checkpoints' / BEST}"
            )
        made = not (wanted and os.path.lexists(wanted))
        return str(claim_folder(wanted, Path("runs") / name, leftovers=(LOCK, f"{CONFIG}{PARTIAL}"))), False, made

    root = cfg["data"]["root"]
    if root is not None and not is_url(root):  # stored paths are valid from any working folder
        cfg = {**cfg, "data": {**cfg["data"], "root": os.path.abspath(root)}}  # noqa: PTH100  keeps links
    keep_freed_memory()
    with run_together(cfg["trainer"]):
        chosen, resume, made = broadcast_at_start(choose_folder)
        folder = Path(chosen)
        with disk_errors(folder), nondeterministic_operation_errors():
            return _run_in(folder, cfg, resume, made, callbacks, finish)


def _run_in(
    folder: Path,
    cfg: dict,
    resume: bool,
    made: bool,
    callbacks: Sequence[Callback],
    finish: Callable[[Path], None] | None,
) -> Path:
    first = is_first_process()
    lock = lock_run_folder(folder) if first else None
    ending = None
    try:
        start_log(folder if first else None, quiet=not first)
        earlier = read_earlier_run(folder) if resume else None  # only now, as another process may have held the lock
        if earlier:
            if earlier.metrics is not None and not cfg["run"]["allow_changes"]:
                raise InputError(
                    f"run.dir: {folder} exists already and holds a finished run (carvision report {folder} shows it); "
                    "to train it further give more epochs with run.allow_changes=true, as in trainer.max_epochs=<more>,"
                    f" or start another run with its weights in a new run.dir, with model.weights={folder}"
                )
            if any(folder.rglob("*.ckpt")):  # without checkpoints another configuration does no harm
                require_same_config(cfg, earlier.config, folder)
            log.info("resuming %s", folder)
        _run_parts(cfg, folder, earlier, callbacks)
    except Exception as error:
        reported = isinstance(error, InputError) or is_secondary_failure(error)
        if reported and first and not resume and not any(any(folder.rglob(name)) for name in WORTH_KEEPING):
            start_log(None)  # closes run.log
            remove_beginning(folder, made)  # nothing was trained: the corrected command may use the same run.dir
        raise
    except Stopped as stopped:
        ending = stopped
    finally:
        if lock:
            lock.close()
    if first:
        if not is_finished(folder):
            reason = f" ({ending})" if ending else ""
            log.info("the run is not finished%s; the same command with run.dir=%s resumes it", reason, folder)
        elif finish:
            finish(folder)
        print(f"run: {folder}")
    if ending and ending.signal:
        sys.exit(128 + ending.signal)
    return folder


def _run_parts(cfg: dict, folder: Path, earlier: EarlierRun | None, callbacks: Sequence[Callback]) -> None:
    """Train one run; or several folds or seeds, each in its own folder, with mean and standard deviation of their test
    metrics in the folder's metrics.json. Parts that an earlier start finished are kept."""
    minutes = cfg["run"]["max_minutes"]
    ends = None if minutes is None else time.monotonic() + 60 * minutes  # for all parts together
    folds, seeds = folds_of(cfg["data"]["split"]), cfg["run"]["seeds"]
    kind, values = ("seed", seeds) if seeds else ("fold", folds)
    _refuse_other_kind(folder, kind if seeds or len(folds) > 1 else None)
    phases = build_phases(cfg)
    if len(folds) == 1 and not seeds:
        train_single_run(cfg, folder, phases, earlier, ends, callbacks)
        return
    configs = _part_configs(cfg, folds, seeds)
    folders = [folder / f"{kind}_{value}" for value in values]
    earlier_parts = [read_earlier_run(part) for part in folders]
    patience = cfg["callbacks"]["patience"]
    ended = [part and part.metrics and reason_to_end(part, phases, patience) for part in earlier_parts]
    extends = earlier is not None and earlier.metrics is not None
    if extends and all(ended):
        raise InputError(f"run.dir: {folders[0]} holds a finished run: {ended[0]}")
    if is_first_process():
        if extends:
            write_json(folder / EXTENDING, {f"{kind}s": values})
        write_config(cfg, folder)
    parts = []
    for number, (part, begun) in enumerate(zip(folders, earlier_parts, strict=True)):
        log.info("%s %d: %d of %d", kind, values[number], number + 1, len(values))
        if is_first_process():
            create_folder(part)
        if begun and ended[number]:
            metrics = begun.metrics
        else:
            metrics = train_single_run(configs[number], part, phases, begun, ends, callbacks)
        assert metrics is not None  # all epochs of a part are trained: run.max_epochs_per_start is refused
        parts.append(metrics)
    _summarise(cfg, folder, kind, parts)


def _part_configs(cfg: dict, folds: list, seeds: list[int] | None) -> list[dict]:
    """Return the configuration of each part. Raise InputError for what does not go with several parts."""
    if len(folds) > 1 and seeds:
        raise InputError("run.seeds: takes one fold at a time; add data.split.fold=<i>")
    if cfg["run"]["max_epochs_per_start"]:
        raise InputError(
            "run.max_epochs_per_start: takes one run at a time; "
            + ("give seed= instead of run.seeds" if seeds else "add data.split.fold=<i>")
        )
    if seeds:
        return [{**cfg, "seed": seed, "run": {**cfg["run"], "seeds": None}} for seed in seeds]
    data = cfg["data"]
    return [{**cfg, "data": {**data, "split": {**data["split"], "fold": fold}}} for fold in folds]


def _summarise(cfg: dict, folder: Path, kind: str, parts: list[dict]) -> None:
    """Write and log mean and standard deviation of the metrics of the parts, and what they took together."""
    split = "test" if cfg["run"]["test"] else "val"
    summary = mean_and_spread([part[split] for part in parts])
    seconds = {stage: round(sum(part["seconds"].get(stage, 0) for part in parts), 3) for stage in parts[0]["seconds"]}
    metrics = {f"{kind}s": len(parts), split: summary, "seconds": seconds}
    if "cost" in parts[0]:
        metrics |= {"cost": sum(part["cost"] for part in parts), "price_per_hour": parts[0]["price_per_hour"]}
    if is_first_process():
        write_json(folder / METRICS, metrics)
        (folder / EXTENDING).unlink(missing_ok=True)
    for metric in (name for name in summary if name.endswith("top1") or name == "loss"):
        mean, std = summary[metric].values()
        text = f"{mean:.3f} ± {std:.3f}" if metric == "loss" else f"{percent(mean)} ± {percent(std)} %"
        log.info("%s/%s over %d %ss: %s", split, metric, len(parts), kind, text)


def _refuse_other_kind(folder: Path, kind: str | None) -> None:
    """Raise InputError if the folder holds parts of another kind. kind: "seed", "fold", or None for a single run."""
    patterns = {None: "checkpoints", "seed": "seed_*/checkpoints", "fold": "fold_*/checkpoints"}
    for other, pattern in patterns.items():
        if other != kind and any(folder.glob(pattern)):
            holds = f"a run of several {other}s" if other else "a single run"
            raise InputError(f"run.dir: {folder} holds {holds}, which this command is not; use a new run.dir")


def mean_and_spread(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return {metric: {"mean", "std"}} of the metrics that all runs have; std with n - 1 (0 for one run)."""
    shared = [name for name in runs[0] if all(metrics.get(name) is not None for metrics in runs)]
    columns = {name: np.array([metrics[name] for metrics in runs]) for name in shared}
    return {
        name: {"mean": float(v.mean()), "std": float(v.std(ddof=1)) if len(v) > 1 else 0.0}
        for name, v in columns.items()
    }
