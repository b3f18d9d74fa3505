"""What a search leaves in its folder: trials.csv, plots, search.html, and the best trial as an experiment."""

import logging
import math
import shlex
import sys
from pathlib import Path

import optuna
import pandas as pd
import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from carvision.config import choices_of
from carvision.folder_lock import lock_when_free
from carvision.reports.comparison.sheets import Sheet
from carvision.reports.comparison.tables import print_sheet, write_html
from carvision.reports.search.plots import plot_history, plot_importance, plot_parallel, plot_pareto, plot_slices
from carvision.search.build import Sweep, compose
from carvision.search.progress import drawn_text, line_of, num_epochs, number_text, summarise
from carvision.search.trials import (
    BEST_EPOCH,
    CELL,
    PARAMETERS,
    RETRY_OF,
    SECONDS,
    WHY,
    best_first,
    folder_of,
    latest,
    root_of,
)
from carvision.whole_files import own_folder, write_csv, write_text

log = logging.getLogger(__name__)

WIDTH = 120  # of the table where there is no terminal
MOST_SHOWN = 5  # best trials, as in report R0
OWN = ("sweep", "experiment", "hydra")  # groups that an experiment can't choose
ABOUT = (
    "Each value is that of the trial's best epoch, of a pruned trial that of its last one, on validation photos; test "
    "photos have no part in it."
)


def write_report(sweep: Sweep, study: optuna.Study) -> None:
    """Also of a search that goes on. Several workers may be at its end at the same time: one after another."""
    with lock_when_free(sweep.folder):
        trials = study.get_trials(deepcopy=False)
        shown = latest(trials)
        write_csv(sweep.folder / "trials.csv", trials_frame(sweep, shown))
        best = best_first(sweep, shown)
        if not best:
            return
        sheet = best_sheet(sweep, best[:MOST_SHOWN])
        write_best(sweep, best[0])
        pictures = write_plots(sweep, study, shown)
        about = f"{line_of(summarise(sweep, trials), sweep)}. {ABOUT}"
        write_html(sweep.folder / "search.html", sweep.name, about, [sheet], pictures, interactive(study, sweep))
    print_sheet(sheet, Console(width=None if sys.stdout.isatty() else WIDTH))
    print(f"the best trial, {root_of(best[0])}, over three seeds: {command_of(sweep)}")


def trials_frame(sweep: Sweep, trials: list[FrozenTrial]) -> pd.DataFrame:
    """A row a trial, what was drawn in columns of its own."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    rows = []
    for trial in trials:
        values = trial.values or [math.nan] * len(sweep.objective)
        known = trial.user_attrs
        rows.append({
            "trial": root_of(trial),
            "state": trial.state.name.lower(),
            **dict(zip(sweep.objective, values, strict=True)),
            "best_epoch": known.get(BEST_EPOCH),
            "epochs": num_epochs(trial),
            "seconds": known.get(SECONDS),
            "parameters": known.get(PARAMETERS),
            **{key: trial.params.get(key) for key in keys},
            **({"cell": known.get(CELL)} if sweep.settings["sampler"] == "grid" else {}),
            "folder": folder_of(trial).as_posix(),
            "number": trial.number,
            "goes_on_for": known.get(RETRY_OF),
            "why": known.get(WHY),
        })  # fmt: skip
    frame = pd.DataFrame(rows)
    whole = [name for name in ("best_epoch", "parameters", "goes_on_for", "cell") if name in frame]
    return frame.astype(dict.fromkeys(whole, "Int64"))


def best_sheet(sweep: Sweep, best: list[FrozenTrial]) -> Sheet:
    """The best trials, what was drawn a row each."""
    keys = list(dict.fromkeys(key for trial in best for key in trial.params))
    rows = [[figure, *(number_text(trial.values[i]) for trial in best)] for i, figure in enumerate(sweep.objective)]
    rows.append(["at epoch", *(str(trial.user_attrs.get(BEST_EPOCH, "")) for trial in best)])
    rows.append(["seconds", *(number_text(trial.user_attrs.get(SECONDS, math.nan)) for trial in best)])
    below = len(rows)
    rows += [[key, *(value_text(trial.params.get(key)) for trial in best)] for key in keys]
    return Sheet(
        "The best trials",
        ["trial", *(str(root_of(trial)) for trial in best)],
        rows,
        [[""] * (len(best) + 1) for _ in rows],
        breaks={below},
    )


def value_text(value) -> str:
    return "" if value is None else value if isinstance(value, str) else number_text(value)


def write_best(sweep: Sweep, trial: FrozenTrial) -> None:
    """experiment/best.yaml, which carvision.train finds with --config-dir <the search's folder>."""
    words = sweep.overrides_for(trial.params)
    config, _, groups = compose(words)
    chosen = {group: name for group, name in groups.items() if not group.startswith(OWN)}
    # Others, as heads that were added, have nothing to override; and heads may have been taken away
    there = choices_of("train", [f"{group}={name}" for group, name in chosen.items() if "@" not in group])
    monitor, mode = sweep.monitor
    config["callbacks"] |= {"monitor": monitor, "mode": mode}
    config["run"] = {"dir": None}
    chosen |= {group: None for group in there if "@" in group and group not in chosen}
    defaults = [{f"{'override ' * (group in there)}/{group}": name} for group, name in chosen.items()]
    values = ", ".join(f"{figure} {number_text(v)}" for figure, v in zip(sweep.objective, trial.values, strict=True))
    head = (
        "# @package _global_\n"
        f"# The best trial of the search {sweep.name}: trial {root_of(trial)}, {values} at epoch "
        f"{trial.user_attrs.get(BEST_EPOCH)}.\n# {drawn_text(trial)}\n"
        f"#   {command_of(sweep)}\n"
    )
    text = yaml.safe_dump({"defaults": [*defaults, "_self_"], **config}, sort_keys=False, allow_unicode=True)
    write_text(own_folder(sweep.folder / "experiment") / "best.yaml", head + text)


def command_of(sweep: Sweep) -> str:
    folder = shlex.quote(str(sweep.folder))
    return f"python -m carvision.train --config-dir {folder} experiment=best 'run.seeds=[0,1,2]'"


def write_plots(sweep: Sweep, study: optuna.Study, trials: list[FrozenTrial]) -> dict[str, Path]:
    """{what they show: file}, of those that have something to show."""
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    drawn = {
        "Values by trial": ("history.png", lambda file: plot_history(sweep, trials, file)),
        "What the value depends on": ("importance.png", lambda file: plot_importance(importance(study, sweep), file)),
        "Values by what was drawn": ("slices.png", lambda file: plot_slices(sweep, trials, file)),
        "Trials as lines": ("parallel.png", lambda file: plot_parallel(sweep, done, file)),
        "Pareto front": ("pareto.png", lambda file: plot_pareto(sweep, done, file)),
    }
    return {title: sweep.folder / name for title, (name, plot) in drawn.items() if plot(sweep.folder / name)}


def importance(study: optuna.Study, sweep: Sweep) -> dict[str, float]:
    """{key: share of the first objective's variance} by functional ANOVA (Hutter et al. 2014); empty where the trials
    are too few to tell."""
    try:
        return optuna.importance.get_param_importances(study, evaluator=fanova(), target=lambda trial: trial.values[0])
    except (ValueError, RuntimeError, ZeroDivisionError):
        return {}


def fanova() -> optuna.importance.BaseImportanceEvaluator:
    """Of keys that all trials drew; others, drawn under a condition, it leaves out."""
    return optuna.importance.FanovaImportanceEvaluator(seed=0)


def interactive(study: optuna.Study, sweep: Sweep) -> list[str]:
    """Optuna's own plots as parts of a page, whose points tell their trial; the first brings the program that draws."""
    from optuna import visualization

    first = {"target": lambda trial: trial.values[0], "target_name": next(iter(sweep.objective))}
    plots = [
        lambda: visualization.plot_optimization_history(study, **first),
        lambda: visualization.plot_param_importances(study, evaluator=fanova(), **first),
        lambda: visualization.plot_parallel_coordinate(study, **first),
        lambda: visualization.plot_slice(study, **first),
    ]
    if len(sweep.objective) == 1:
        plots.append(lambda: visualization.plot_intermediate_values(study))
    elif len(sweep.objective) <= 3:
        plots.append(lambda: visualization.plot_pareto_front(study, target_names=list(sweep.objective)))
    parts = []
    for plot in plots:
        try:
            figure = plot()
        except (ValueError, RuntimeError, ZeroDivisionError):  # too few trials for this one
            continue
        parts.append(figure.to_html(full_html=False, include_plotlyjs=not parts))
    return parts
