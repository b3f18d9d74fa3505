"""What one start of carvision.train does: one run, or one for each fold."""

import logging
import shutil
from pathlib import Path

import numpy as np

from carvision.data.build import folds_of
from carvision.errors import InputError
from carvision.folders import claim_folder
from carvision.run_log import start_log
from carvision.training.fit import run_training
from carvision.training.launch import from_first_at_start, is_echo, is_first_process, run_together
from carvision.training.run_folder import is_unfinished, write_config, write_metrics

log = logging.getLogger(__name__)


def run(cfg: dict, name: str) -> Path:
    """Train as the plain config says; prints the run's folder last, and returns it. name: of runs/<name>/<time>."""
    with run_together(cfg["trainer"]):
        return _run(cfg, name)


def _run(cfg: dict, name: str) -> Path:
    def choose_folder() -> tuple[str, bool]:
        resume = is_unfinished(cfg)
        wanted = cfg["run"]["dir"]
        return str(Path(wanted).expanduser() if resume else claim_folder(wanted, Path("runs") / name)), resume

    chosen, resume = from_first_at_start(choose_folder)
    folder = Path(chosen)
    start_log(folder if is_first_process() else None, quiet=not is_first_process())
    folds = folds_of(cfg["data"]["split"])
    try:
        if len(folds) == 1:
            run_training(cfg, folder, folds[0], resume)
        elif cfg["run"]["max_epochs_per_start"]:
            raise InputError("run.max_epochs_per_start: takes one fold at a time; add data.split.fold=<i>")
        else:
            _run_folds(cfg, folder, folds)
    except Exception as error:
        told = isinstance(error, InputError) or is_echo(error)
        if told and is_first_process() and not resume and not any(folder.rglob("history.csv")):
            start_log(None)  # closes run.log
            shutil.rmtree(folder)  # not an epoch is in it, and the mended command may name the same run.dir
        raise
    if is_first_process():
        print(f"run: {folder}")
    return folder


def _run_folds(cfg: dict, folder: Path, folds: list[int]) -> None:
    """A run in fold_<i> for each, and mean and spread of their test figures in the folder's metrics.json."""
    if is_first_process():
        write_config(cfg, folder)
    parts = []
    for fold in folds:
        log.info("fold %d of %d", fold + 1, len(folds))
        part = folder / f"fold_{fold}"
        if is_first_process():
            part.mkdir(exist_ok=True)
        split = {**cfg["data"]["split"], "fold": fold}  # so that the fold's own files tell which one it is
        parts.append(run_training({**cfg, "data": {**cfg["data"], "split": split}}, part, fold))
    summary = mean_and_spread([part["test"] for part in parts])
    seconds = {stage: round(sum(part["seconds"][stage] for part in parts), 3) for stage in parts[0]["seconds"]}
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
