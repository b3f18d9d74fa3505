"""Report a search: its progress, as a live table on a terminal or a line for each event, and its results in its folder.

The results are trials.csv, plots, search.html, and the best trial as an experiment.
"""

import logging
import math
import shlex
import sys
import threading
from typing import NamedTuple

import optuna
import pandas as pd
import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from carvision.config.compose import choices_of
from carvision.files.atomic import create_folder, write_csv, write_text
from carvision.files.locks import lock_when_free
from carvision.reports.tables import TextTable, print_table
from carvision.search.build import Sweep, compose
from carvision.search.queue import (
    BEST_EPOCH,
    CELL,
    EPOCHS,
    PARAMETERS,
    SECONDS,
    WHY,
    best_first,
    folder_of,
    last_value,
    num_to_run,
    trials_of,
    values_of,
)

log = logging.getLogger(__name__)

MAX_ROWS = 15  # of the live table
REFRESH_S = 1.0
WIDTH = 120  # of the table without a terminal
MAX_SHOWN = 5  # best trials, as in report R0
OWN_GROUPS = ("sweep", "experiment", "hydra")  # groups that an experiment can't choose
ABOUT = (
    "Each value is that of the trial's best epoch, for a pruned trial of its last one, on validation photos; test "
    "photos are not used."
)


class Summary(NamedTuple):
    """The state of a search.

    total to failed: numbers of trials. best: so far. epochs: trained. saved: epochs, by pruning. seconds_left: NaN if
    unknown.
    """

    total: int
    ended: int
    running: int
    pruned: int
    failed: int
    best: FrozenTrial | None
    epochs: int
    saved: int
    seconds_left: float


def summarise(sweep: Sweep, trials: list[FrozenTrial]) -> Summary:
    """Summarise the search's trials."""
    ended = [trial for trial in trials if trial.state.is_finished()]
    pruned = [trial for trial in ended if trial.state == TrialState.PRUNED]
    running = sum(trial.state == TrialState.RUNNING for trial in trials)
    took = [t.duration.total_seconds() for t in ended if t.duration and t.state != TrialState.FAIL]
    total = num_to_run(sweep)
    left = (total - len(ended)) * sum(took) / len(took) / max(1, running) if took else math.nan
    best = best_first(sweep, trials)
    return Summary(
        total=total,
        ended=len(ended),
        running=running,
        pruned=len(pruned),
        failed=sum(trial.state == TrialState.FAIL for trial in ended),
        best=best[0] if best else None,
        epochs=sum(num_epochs(trial) for trial in trials),
        saved=sum(max(0, sweep.num_epochs - num_epochs(trial)) for trial in pruned),
        seconds_left=left,
    )


def num_epochs(trial: FrozenTrial) -> int:
    """Return how many epochs the trial trained."""
    return max(trial.user_attrs.get(EPOCHS, 0), trial.last_step or 0)


def line_of(summary: Summary, sweep: Sweep) -> str:
    """Return the summary as one line."""
    parts = [f"{summary.ended} of {summary.total} trials have ended"]
    parts += [f"{count} {what}" for count, what in ((summary.pruned, "pruned"), (summary.failed, "failed")) if count]
    if summary.running:
        parts.append(f"{summary.running} running")
    if summary.best:
        parts.append(f"best {values_text(summary.best, sweep)} (trial {summary.best.number})")
    parts.append(f"epochs: {summary.epochs} spent" + (f", {summary.saved} saved" if summary.saved else ""))
    if summary.ended < summary.total and not math.isnan(summary.seconds_left):
        parts.append(f"about {duration_text(summary.seconds_left)} left")
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


def values_text(trial: FrozenTrial, sweep: Sweep) -> str:
    """Format a completed trial's objectives."""
    return ", ".join(
        f"{metric} {number_text(value)}" for metric, value in zip(sweep.objective, values_of(trial), strict=True)
    )


def drawn_text(trial: FrozenTrial) -> str:
    """Format a trial's drawn values as overrides."""
    return ", ".join(
        f"{key}={value if isinstance(value, str) else f'{value:.4g}'}" for key, value in trial.params.items()
    )


def event_text(trial: FrozenTrial, sweep: Sweep, best: FrozenTrial | None) -> str:
    """Return a line about a trial that started or ended."""
    name, attributes = f"trial {trial.number}", trial.user_attrs
    seconds = f", {duration_text(attributes[SECONDS])}" if SECONDS in attributes else ""
    if trial.state == TrialState.RUNNING:
        again = ", which was interrupted, continues" if WHY in attributes else ""
        return f"{name}{again}: {drawn_text(trial)}"
    if trial.state == TrialState.COMPLETE:
        is_best = ", best so far" if best is not None and best.number == trial.number else ""
        return f"{name}: {values_text(trial, sweep)} at epoch {attributes[BEST_EPOCH]}{seconds}{is_best}"
    if trial.state == TrialState.PRUNED:
        outcome = f"{sweep.monitor[0]} {number_text(last_value(trial))}"
        return f"{name}: pruned after {num_epochs(trial)} of {sweep.num_epochs} epochs, {outcome}{seconds}"
    if trial.state == TrialState.WAITING:
        return f"{name}: interrupted after {num_epochs(trial)} epochs ({attributes.get(WHY)}); it will continue"
    return f"{name}: failed: {attributes.get(WHY)}"


class Progress:
    """Show the table on a terminal while entered as a context manager; report() logs lines otherwise."""

    def __init__(self, sweep: Sweep, study: optuna.Study):
        self.sweep, self.study = sweep, study
        self.console = Console(stderr=True)
        self.live: Live | None = None
        self.ended = threading.Event()

    def report(self, trial: FrozenTrial) -> None:
        if self.console.is_terminal:
            return
        trials = trials_of(self.sweep, self.study)
        summary = summarise(self.sweep, trials)
        log.info("%s", event_text(trial, self.sweep, summary.best))
        if trial.state != TrialState.RUNNING:
            log.info("  %s", line_of(summary, self.sweep))

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self.live = Live(self._table(), console=self.console, auto_refresh=False, transient=True)
            self.live.start()
            self.thread = threading.Thread(target=self._refresh, args=[self.live], daemon=True, name="table-of-trials")
            self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        if self.live:
            self.ended.set()
            self.thread.join()
            self.live.stop()

    def _refresh(self, live: Live) -> None:
        while not self.ended.wait(REFRESH_S):
            live.update(self._table(), refresh=True)

    def _table(self) -> Group:
        trials = trials_of(self.sweep, self.study)
        line = line_of(summarise(self.sweep, trials), self.sweep)
        return Group(trials_table(self.sweep, trials, MAX_ROWS), Text(line))


def trials_table(sweep: Sweep, trials: list[FrozenTrial], most: int) -> Table:
    """Return a table of the best trials and the latest ones, at most `most` rows."""
    best = best_first(sweep, trials)[: most // 3]
    last = [t for t in trials if t not in best and t.state != TrialState.WAITING][-(most - len(best)) :]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("trial", "", *sweep.objective, "epochs"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_column("values", overflow="ellipsis", no_wrap=True)
    for trial in [*best, *last]:
        running = trial.state == TrialState.RUNNING
        values = trial.values or [last_value(trial)]
        texts = [number_text(value) for value in values][: len(sweep.objective)]
        texts += [""] * (len(sweep.objective) - len(texts))
        state = "best" if best and trial is best[0] else trial.state.name.lower()
        style = "bold green" if state == "best" else "cyan" if running else "dim" if not trial.values else ""
        epochs = f"{num_epochs(trial)}/{sweep.num_epochs}"
        table.add_row(str(trial.number), state, *texts, epochs, drawn_text(trial), style=style)
    return table


def write_report(sweep: Sweep, study: optuna.Study) -> None:
    """Write the report, also for a search that is still running.

    Holds a lock, as several workers may finish at the same time.
    """
    # matplotlib and jinja2, which only the end of a search needs
    from markupsafe import Markup

    from carvision.reports.page import Section, sections_of, write_page
    from carvision.search.plots import interactive, write_plots

    with lock_when_free(sweep.folder):
        trials = trials_of(sweep, study)
        write_csv(sweep.folder / "trials.csv", trials_frame(sweep, trials))
        best = best_first(sweep, trials)
        if not best:
            return
        table = best_table(sweep, best[:MAX_SHOWN])
        write_best(sweep, best[0])
        write_plots(sweep, study)
        about = f"{line_of(summarise(sweep, trials), sweep)}. {ABOUT}"
        sections = sections_of([table], {})
        if plots := interactive(sweep, study):
            sections.append(Section("Interactive plots", markup=Markup("\n".join(plots))))
        write_page(sweep.folder / "search.html", sweep.name, about, sections)
    print_table(table, Console(width=None if sys.stdout.isatty() else WIDTH))
    print(f"the best trial, {best[0].number}, over three seeds: {command_of(sweep)}")


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
            "best_epoch": known.get(BEST_EPOCH),
            "epochs": num_epochs(trial),
            "seconds": known.get(SECONDS),
            "parameters": known.get(PARAMETERS),
            **{key: trial.params.get(key) for key in keys},
            **({"cell": known.get(CELL)} if sweep.settings["sampler"] == "grid" else {}),
            "folder": folder_of(trial.number).as_posix(),
            "why": known.get(WHY) if trial.state in (TrialState.FAIL, TrialState.WAITING) else None,
        })  # fmt: skip
    frame = pd.DataFrame(rows)
    whole = [name for name in ("best_epoch", "parameters", "cell") if name in frame]
    return frame.astype(dict.fromkeys(whole, "Int64"))


def best_table(sweep: Sweep, best: list[FrozenTrial]) -> TextTable:
    """Return the best trials, with one row per sampled key."""
    keys = list(dict.fromkeys(key for trial in best for key in trial.params))
    rows = [[metric, *(number_text(values_of(trial)[i]) for trial in best)] for i, metric in enumerate(sweep.objective)]
    rows.append(["at epoch", *(str(trial.user_attrs.get(BEST_EPOCH, "")) for trial in best)])
    rows.append(["seconds", *(number_text(trial.user_attrs.get(SECONDS, math.nan)) for trial in best)])
    below = len(rows)
    rows += [[key, *(value_text(trial.params.get(key)) for trial in best)] for key in keys]
    return TextTable(
        "The best trials",
        ["trial", *(str(trial.number) for trial in best)],
        rows,
        breaks={below},
    )


def value_text(value) -> str:
    return "" if value is None else value if isinstance(value, str) else number_text(value)


def write_best(sweep: Sweep, trial: FrozenTrial) -> None:
    """Write experiment/best.yaml, which carvision.train finds with --config-dir <the search's folder>."""
    config, _, groups = compose(sweep.overrides_for(trial.params))
    chosen = {group: name for group, name in groups.items() if not group.startswith(OWN_GROUPS)}
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
        f"{trial.user_attrs.get(BEST_EPOCH)}.\n# {drawn_text(trial)}\n"
        f"#   {command_of(sweep)}\n"
    )
    text = yaml.safe_dump({"defaults": [*defaults, "_self_"], **config}, sort_keys=False, allow_unicode=True)
    write_text(create_folder(sweep.folder / "experiment") / "best.yaml", head + text)


def command_of(sweep: Sweep) -> str:
    folder = shlex.quote(str(sweep.folder))
    return f"python -m carvision.train --config-dir {folder} experiment=best 'run.seeds=[0,1,2]'"
