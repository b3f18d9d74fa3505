"""What one start of carvision.train does: one run, or one for each fold."""

import logging
from pathlib import Path

import numpy as np

from carvision.data.build import folds_of
from carvision.run_log import start_log
from carvision.training.fit import run_training
from carvision.training.run_folder import claim_folder, write_config, write_metrics

log = logging.getLogger(__name__)


def run(cfg: dict, name: str) -> Path:
    """Train as the plain config says; returns the run's folder. name: of runs/<name>/<time>."""
    folder = claim_folder(cfg["run"]["dir"], name)
    start_log(folder)
    folds = folds_of(cfg["data"]["split"])
    if len(folds) == 1:
        run_training(cfg, folder, folds[0])
        return folder
    write_config(cfg, folder)
    tests = []
    for fold in folds:
        log.info("fold %d of %d", fold + 1, len(folds))
        part = folder / f"fold_{fold}"
        part.mkdir()
        tests.append(run_training(cfg, part, fold)["test"])
    summary = mean_and_spread(tests)
    write_metrics({"folds": len(folds), "test": summary}, folder)
    for figure in (f for f in summary if f.endswith("top1") or f == "loss"):
        log.info("test/%s over %d folds: %.4f +- %.4f", figure, len(folds), *summary[figure].values())
    return folder


def mean_and_spread(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """{figure: {"mean", "std"}} of the figures that all runs have; std with n - 1, as of a sample."""
    shared = [name for name in runs[0] if all(name in figures for figures in runs)]
    columns = {name: np.array([figures[name] for figures in runs]) for name in shared}
    return {name: {"mean": float(v.mean()), "std": float(v.std(ddof=1))} for name, v in columns.items()}
