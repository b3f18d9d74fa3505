"""Report a search: its progress, as a live table on a terminal or a line for each event, and its results in its folder.

The results are trials.csv, plots, search.html, and the best trial as an experiment.
"""

import logging
import math
import shlex
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from statistics import mean

import optuna
import pandas as pd
import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from carvision.config.compose import choices, choices_of, compose_sweep
from carvision.files.atomic import create_folder, write_csv, write_text
from carvision.files.locks import lock_when_free
from carvision.reports.comparison.frame import is_fraction
from carvision.reports.comparison.tables import title_of
from carvision.reports.tables import TextTable, percent, print_table
from carvision.search import queue
from carvision.search.build import Sweep
from carvision.search.queue import best_first, folder_of, last_value, trials_of
from carvision.system.terminal import fold

log = logging.getLogger(__name__)

STDERR = Console(stderr=True)
MAX_ROWS = 15  # of the live table
WIDTH = 120  # of the table without a terminal
MAX_SHOWN = 5  # best trials, as in report R0
OWN_GROUPS = ("sweep", "experiment", "hydra")  # groups that an experiment can't choose
ABOUT = (
    "Each value is that of the trial's best epoch, for a pruned trial of its last one, on validation photos; test "
    "photos are not used."
)


def num_epochs(trial: FrozenTrial) -> int:
    """Return how many epochs the trial trained."""
    return max(trial.user_attrs.get(queue.EPOCHS, 0), trial.last_step or 0)


def state_of(sweep: Sweep, study: optuna.Study) -> str:
    """Return how far the search is, as one line."""
    trials = trials_of(sweep, study)
    ended = [trial for trial in trials if trial.state.is_finished()]
    parts = [f"{len(ended)} of {sweep.num_trials} trials have ended"]
    counts = Counter(trial.state for trial in trials)
    named = {TrialState.PRUNED: "pruned", TrialState.FAIL: "failed", TrialState.RUNNING: "running"}
    parts += [f"{counts[state]} {name}" for state, name in named.items() if counts[state]]
    if best := best_first(study):
        parts.append(f"best {values_text(best[0], sweep)} (trial {best[0].number})")
    saved = sum(max(0, sweep.num_epochs - num_epochs(trial)) for trial in ended if trial.state == TrialState.PRUNED)
    parts.append(f"epochs: {sum(map(num_epochs, trials))} spent" + (f", {saved} saved" if saved else ""))
    took = [t.duration.total_seconds() for t in ended if t.duration and t.state != TrialState.FAIL]
    if took and len(ended) < sweep.num_trials:
        left = (sweep.num_trials - len(ended)) * mean(took) / max(1, counts[TrialState.RUNNING])
        parts.append(f"about {duration_text(left)} left")
    return "; ".join(parts)


def duration_text(seconds: float) -> str:
    """Format seconds as "1.2 s", "12 s", "12 min" or "1.2 h"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def number_text(value: float) -> str:
    """Format a metric with four digits; "" for NaN."""
    if math.isnan(value):
        return ""
    return f"{value:,}" if isinstance(value, int) or abs(value) >= 1e5 else f"{value:.4g}"


def metric_text(metric: str, value: float, unit: str = "") -> str:
    """Format a metric: an accuracy in percent, followed by `unit`, anything else with four digits; "" for NaN."""
    if math.isnan(value) or not is_fraction(metric):
        return number_text(value)
    return f"{percent(value)}{unit}"


def values_text(trial: FrozenTrial, sweep: Sweep) -> str:
    """Format a completed trial's objectives."""
    pairs = zip(sweep.objective, trial.values or [], strict=True)
    return ", ".join(f"{metric} {metric_text(metric, value, ' %')}" for metric, value in pairs)


def drawn_text(trial: FrozenTrial) -> str:
    """Format a trial's drawn values as overrides."""
    return ", ".join(_drawn(trial, {}))


def _drawn(trial: FrozenTrial, short: dict[str, str]) -> list[str]:
    """Return "key=value" for each drawn value. short: {key: what is shown for it}."""
    return [f"{short.get(key, key)}={value if isinstance(value, str) else f'{value:.4g}'}"
            for key, value in trial.params.items()]  # fmt: skip


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return {key: its last part} of the keys that it tells apart, "lr" for "optimizer.lr"."""
    last = {key: key.rpartition(".")[2] for key in keys}
    counts = Counter(last.values())
    return {key: name for key, name in last.items() if counts[name] == 1}


def event_text(sweep: Sweep, study: optuna.Study, trial: FrozenTrial) -> str:
    """Return a line about a trial that started or ended."""
    name, attributes = f"trial {trial.number}", trial.user_attrs
    seconds = f", {duration_text(attributes[queue.SECONDS])}" if queue.SECONDS in attributes else ""
    if trial.state == TrialState.RUNNING:
        again = ", which was interrupted, continues" if queue.WHY in attributes else ""
        return f"{name}{again}: {drawn_text(trial)}"
    if trial.state == TrialState.COMPLETE:
        is_best = ", best so far" if best_first(study)[0].number == trial.number else ""
        return f"{name}: {values_text(trial, sweep)} at epoch {attributes[queue.BEST_EPOCH]}{seconds}{is_best}"
    if trial.state == TrialState.PRUNED:
        outcome = f"{sweep.monitor[0]} {metric_text(sweep.monitor[0], last_value(trial), ' %')}"
        return f"{name}: pruned after {num_epochs(trial)} of {sweep.num_epochs} epochs, {outcome}{seconds}"
    if trial.state == TrialState.WAITING:
        return f"{name}: interrupted after {num_epochs(trial)} epochs ({attributes.get(queue.WHY)}); it will continue"
    return f"{name}: failed: {attributes.get(queue.WHY)}"


def report_trial(sweep: Sweep, study: optuna.Study, trial: FrozenTrial) -> None:
    """Log a trial that started or ended, unless the table shows it."""
    if STDERR.is_terminal:
        return
    log.info("%s", event_text(sweep, study, trial))
    if trial.state != TrialState.RUNNING:
        log.info("  %s", state_of(sweep, study))


def live_table(sweep: Sweep, study: optuna.Study) -> AbstractContextManager:
    """Return a context that shows the table of trials on a terminal."""
    if not STDERR.is_terminal:
        return nullcontext()
    return Live(
        get_renderable=lambda: Group(trials_table(sweep, study, STDERR), Text(state_of(sweep, study))),
        console=STDERR, refresh_per_second=1, transient=True,
    )  # fmt: skip


def trials_table(sweep: Sweep, study: optuna.Study, console: Console) -> Table:
    """Return a table of the best trials and the latest ones, as many as the terminal has lines for."""
    trials = [trial for trial in trials_of(sweep, study) if trial.state != TrialState.WAITING]
    short = short_keys(dict.fromkeys(key for trial in trials for key in trial.params))
    drawn = {trial.number: "  ".join(_drawn(trial, short)) for trial in trials}
    headings = ["trial", "", *map(title_of, sweep.objective), "epochs"]
    left = max(20, console.width - sum(max(8, cell_len(heading)) + 1 for heading in headings))  # for the values
    lines = -(-max(map(cell_len, drawn.values()), default=1) // left)  # of a row
    num_rows = max(3, min(MAX_ROWS, (console.height - 5) // lines))
    best = best_first(study)[: num_rows // 3]
    others = [trial for trial in trials if trial not in best]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    table.add_column("values")
    for trial in [*best, *others[len(best) - num_rows :]]:
        # Of a trial without results, the metric that its epochs report
        values = dict(zip(sweep.objective, trial.values or [], strict=False)) or {sweep.monitor[0]: last_value(trial)}
        texts = [metric_text(metric, values.get(metric, math.nan)) for metric in sweep.objective]
        state = "best" if best and trial is best[0] else trial.state.name.lower()
        style = {"best": "bold green", "running": "cyan"}.get(state, "" if trial.values else "dim")
        epochs = f"{num_epochs(trial)}/{sweep.num_epochs}"
        table.add_row(str(trial.number), state, *texts, epochs, drawn[trial.number], style=style)
    return table


def write_report(sweep: Sweep, study: optuna.Study) -> None:
    """Write the report, also for a search that is still running.

    Holds a lock, as several workers may finish at the same time.
    """
    # matplotlib and jinja2, which only the end of a search needs
    from carvision.search.page.write import write_search_page
    from carvision.search.plots import write_plots

    with lock_when_free(sweep.folder):
        frame = trials_frame(sweep, trials_of(sweep, study))
        write_csv(sweep.folder / "trials.csv", frame)
        best = best_first(study)
        if not best:
            return
        table = best_table(sweep, best[:MAX_SHOWN])
        write_best(sweep, best[0])
        write_plots(sweep, study)
        about = f"{state_of(sweep, study)}. {ABOUT}"
        write_search_page(sweep.folder / "search.html", sweep, study, about, table, frame, command_of(sweep))
    print_table(table, Console(width=None if sys.stdout.isatty() else WIDTH))
    print(f"the best trial, {best[0].number}, over three seeds:\n  {command_of(sweep)}")
    print(fold(f"page: {sweep.folder / 'search.html'}", sys.stdout))


def trials_frame(sweep: Sweep, trials: list[FrozenTrial]) -> pd.DataFrame:
    """Return one row per trial, with one column per sampled key."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    rows = []
    for trial in trials:
        values = trial.values or [math.nan] * len(sweep.objective)
        known = trial.user_attrs
        rows.append({
            "trial": trial.number,
            "state": trial.state.name.lower(),
            **dict(zip(sweep.objective, values, strict=True)),
            "best_epoch": known.get(queue.BEST_EPOCH),
            "epochs": num_epochs(trial),
            "seconds": known.get(queue.SECONDS),
            "parameters": known.get(queue.PARAMETERS),
            **{key: trial.params.get(key) for key in keys},
            **({} if sweep.cells is None else {"cell": known.get(queue.CELL)}),
            "folder": folder_of(trial.number).as_posix(),
            "why": known.get(queue.WHY) if trial.state in (TrialState.FAIL, TrialState.WAITING) else None,
        })  # fmt: skip
    frame = pd.DataFrame(rows)
    whole = [name for name in ("best_epoch", "parameters", "cell") if name in frame]
    return frame.astype(dict.fromkeys(whole, "Int64"))


def best_table(sweep: Sweep, best: list[FrozenTrial]) -> TextTable:
    """Return the best trials, with one row per sampled key."""
    keys = list(dict.fromkeys(key for trial in best for key in trial.params))
    values = [dict(zip(sweep.objective, trial.values or [], strict=True)) for trial in best]
    rows = [[title_of(metric), *(metric_text(metric, known[metric]) for known in values)] for metric in sweep.objective]
    rows.append(["at epoch", *(str(trial.user_attrs.get(queue.BEST_EPOCH, "")) for trial in best)])
    rows.append(["seconds", *(number_text(trial.user_attrs.get(queue.SECONDS, math.nan)) for trial in best)])
    rows += [[key, *(value_text(trial.params.get(key)) for trial in best)] for key in keys]
    header = ["trial", *(str(trial.number) for trial in best)]
    return TextTable("The best trials", header, rows, breaks={len(sweep.objective) + 2})


def value_text(value) -> str:
    return "" if value is None else value if isinstance(value, str) else number_text(value)


def write_best(sweep: Sweep, trial: FrozenTrial) -> None:
    """Write experiment/best.yaml, which carvision.train finds with --config-dir <the search's folder>."""
    config, _ = compose_sweep(sweep.overrides_for(trial.params))
    chosen = {group: name for group, name in choices().items() if not group.startswith(OWN_GROUPS)}
    # Added groups, such as heads, have nothing to override; others may have been removed
    available = choices_of("train", [f"{group}={name}" for group, name in chosen.items() if "@" not in group])
    monitor, mode = sweep.monitor
    config["callbacks"] |= {"monitor": monitor, "mode": mode}
    config["run"] = {"dir": None}
    chosen |= {group: None for group in available if "@" in group and group not in chosen}
    defaults = [{f"{'override ' * (group in available)}/{group}": name} for group, name in chosen.items()]
    head = (
        "# @package _global_\n"
        f"# The best trial of the search {sweep.name}: trial {trial.number}, {values_text(trial, sweep)} at epoch "
        f"{trial.user_attrs.get(queue.BEST_EPOCH)}.\n# {drawn_text(trial)}\n"
        f"#   {command_of(sweep)}\n"
    )
    text = yaml.safe_dump({"defaults": [*defaults, "_self_"], **config}, sort_keys=False, allow_unicode=True)
    write_text(create_folder(sweep.folder / "experiment") / "best.yaml", head + text)


def command_of(sweep: Sweep) -> str:
    folder = shlex.quote(str(sweep.folder))
    return f"carvision train --config-dir {folder} experiment=best 'run.seeds=[0,1,2]'"
