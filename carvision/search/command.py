"""Run carvision.sweep: start, join or continue a search with one or several workers, and report."""

import contextlib
import logging
import os
import signal
import sys
import warnings

import optuna

from carvision.errors import InputError
from carvision.fixed_photos import random_transforms, reason_not_cacheable
from carvision.run_log import start_log
from carvision.search.build import Sweep
from carvision.search.many_workers import WORKER, run_workers
from carvision.search.progress import Progress, line_of, summarise
from carvision.search.queue import num_to_run
from carvision.search.study import describe_brackets, open_storage, open_study
from carvision.search.trials import WHY, end_with_parent, latest
from carvision.search.worker import Interrupted, Worker

log = logging.getLogger(__name__)


def search(sweep: Sweep, overrides: list[str]) -> None:
    """Run the search until no trial is left to start; print the search's folder last. Exit with 128 + its number after
    a signal."""
    quiet_optuna()
    start_log(None)
    remove_launcher_variables()
    storage = open_storage(sweep.settings["storage"], sweep.folder)
    study = open_study(sweep, storage)
    progress = Progress(sweep, study)
    if WORKER in os.environ:
        end_with_parent(sys.stdin.fileno(), signal.SIGTERM)
        with contextlib.suppress(Interrupted):  # the parent process reports it
            Worker(sweep, study, storage, progress.report).work()
        return
    introduce(sweep, study)
    ending = None
    try:
        with progress:
            if sweep.settings["workers"] > 1:
                run_workers(sweep, overrides, quiet=progress.console.is_terminal)
            else:
                Worker(sweep, study, storage, progress.report).work()
    except Interrupted as interrupted:
        ending = interrupted.args[0]
    report(sweep, study)
    summary = summarise(sweep, study.get_trials(deepcopy=False))
    if summary.ended < summary.total:
        others = f"; {summary.running} are run by other workers" if summary.running else ""
        log.info("the search is not finished%s; the same command continues it", others)
    print(f"sweep: {sweep.folder}")
    if ending is not None:
        sys.exit(128 + ending)
    if summary.failed == summary.total:
        reason = latest(study.get_trials(deepcopy=False))[-1].user_attrs.get(WHY)
        raise InputError(
            f"sweep: all {summary.total} trials failed, the last with: {reason}. Fix that and search in another folder "
            f"(sweep.dir=<folder>); their output is in {sweep.folder / 'logs'}"
        )


def remove_launcher_variables() -> None:
    """Remove the variables of srun and torchrun: each process that they start is a worker, and its trials are not parts
    of one run."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK"):
            del os.environ[name]


def quiet_optuna() -> None:
    """Silence Optuna's messages about single trials, and its experimental warnings (the lock file pins its version)."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def introduce(sweep: Sweep, study: optuna.Study) -> None:
    """Log what is searched, how, and what exists already."""
    for dimension in sweep.space.dimensions:
        log.info("%s: %s", dimension.key, dimension)
    objective = ", ".join(f"{mode} {metric}" for metric, mode in sweep.objective.items())
    sampler, epochs = sweep.settings["sampler"], sweep.num_epochs
    log.info(
        "%d trials of at most %d epoch%s; %s; sampler %s, pruner %s",
        num_to_run(sweep), epochs, "s" * (epochs > 1), objective, sampler, sweep.settings["pruner"],
    )  # fmt: skip
    if sweep.settings["pruner"] == "hyperband":
        for line in describe_brackets(sweep):
            log.info("%s", line)
    if caches_features(sweep):
        log.info(
            "the backbone is frozen and its photos stay the same: the features of each backbone are computed once, and "
            "trials train on them"
        )
    trials = study.get_trials(deepcopy=False)
    if trials:
        log.info("continuing %s: %s", sweep.folder, line_of(summarise(sweep, trials), sweep))


def caches_features(sweep: Sweep) -> bool:
    """Return whether the backbone's features depend on no searched value but the backbone itself."""
    model, features = sweep.config["model"], sweep.config["features"]["keep"]
    keys = [dimension.key.lstrip("+") for dimension in sweep.space.dimensions] + [*sweep.space.follows]
    below = ("augment", "data", "phases", "model.train_layers")
    return (
        model["train_layers"] == "none"
        and features is not False
        and not random_transforms(sweep.config)
        and not reason_not_cacheable(sweep.config)
        and not any(key == name or key.startswith(f"{name}.") for key in keys for name in below)
    )


def report(sweep: Sweep, study: optuna.Study) -> None:
    """Write the report of the search, see reports/search."""
    from carvision.reports.search.report import write_report  # late import: matplotlib and plotly

    write_report(sweep, study)
