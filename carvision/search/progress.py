"""Show a search's progress: a live table on a terminal, else a line for each event."""

import logging
import math
import threading
from typing import NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from carvision.search.build import Sweep
from carvision.search.queue import num_to_run
from carvision.search.trials import (
    BEST_EPOCH,
    BROKEN,
    EPOCHS,
    RETRY_OF,
    SECONDS,
    WHY,
    best_first,
    is_finished,
    latest,
    root_of,
)

log = logging.getLogger(__name__)

MAX_ROWS = 15
REFRESH_S = 1.0


class Summary(NamedTuple):
    """Progress of a search: counts of trials; best: the best so far; epochs trained, and saved by pruning;
    seconds_left: nan if unknown."""

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
    shown = latest(trials)
    ended = [trial for trial in shown if is_finished(trial, sweep.settings["retries"])]
    pruned = [trial for trial in ended if trial.state == TrialState.PRUNED]
    running = sum(trial.state == TrialState.RUNNING for trial in shown)
    took = [t.duration.total_seconds() for t in ended if t.duration and t.state != TrialState.FAIL]
    total = num_to_run(sweep)
    left = (total - len(ended)) * sum(took) / len(took) / max(1, running) if took else math.nan
    best = best_first(sweep, shown)
    return Summary(
        total=total,
        ended=len(ended),
        running=running,
        pruned=len(pruned),
        failed=sum(trial.state == TrialState.FAIL for trial in ended),
        best=best[0] if best else None,
        epochs=sum(num_epochs(trial) for trial in shown),
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
        parts.append(f"best {values_text(summary.best, sweep)} (trial {root_of(summary.best)})")
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
        f"{metric} {number_text(value)}" for metric, value in zip(sweep.objective, trial.values, strict=True)
    )


def drawn_text(trial: FrozenTrial) -> str:
    """Format a trial's drawn values as overrides."""
    return ", ".join(
        f"{key}={value if isinstance(value, str) else f'{value:.4g}'}" for key, value in trial.params.items()
    )


def event_text(trial: FrozenTrial, sweep: Sweep, best: FrozenTrial | None) -> str:
    """Return a line about a trial that started or ended."""
    name, attributes = f"trial {root_of(trial)}", trial.user_attrs
    seconds = f", {duration_text(attributes[SECONDS])}" if SECONDS in attributes else ""
    if trial.state == TrialState.RUNNING:
        again = ", which was interrupted, continues" if RETRY_OF in attributes else ""
        return f"{name}{again}: {drawn_text(trial)}"
    if trial.state == TrialState.COMPLETE:
        is_best = ", best so far" if best is not None and best.number == trial.number else ""
        return f"{name}: {values_text(trial, sweep)} at epoch {attributes[BEST_EPOCH]}{seconds}{is_best}"
    if trial.state == TrialState.PRUNED:
        last = trial.intermediate_values.get(trial.last_step, math.nan)
        outcome = f"{sweep.monitor[0]} {number_text(last)}"
        return f"{name}: pruned after {num_epochs(trial)} of {sweep.num_epochs} epochs, {outcome}{seconds}"
    if BROKEN in attributes and not is_finished(trial, sweep.settings["retries"]):
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
        trials = self.study.get_trials(deepcopy=False)
        summary = summarise(self.sweep, trials)
        log.info("%s", event_text(trial, self.sweep, summary.best))
        if trial.state != TrialState.RUNNING:
            log.info("  %s", line_of(summary, self.sweep))

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self.live = Live(self._picture(), console=self.console, auto_refresh=False, transient=True)
            self.live.start()
            self.thread = threading.Thread(target=self._refresh, daemon=True, name="table-of-trials")
            self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        if self.live:
            self.ended.set()
            self.thread.join()
            self.live.stop()

    def _refresh(self) -> None:
        while not self.ended.wait(REFRESH_S):
            self.live.update(self._picture(), refresh=True)

    def _picture(self) -> Group:
        trials = self.study.get_trials(deepcopy=False)
        return Group(
            trials_table(self.sweep, trials, MAX_ROWS), Text(line_of(summarise(self.sweep, trials), self.sweep))
        )


def trials_table(sweep: Sweep, trials: list[FrozenTrial], most: int) -> Table:
    """Return a table of the best trials and the latest ones, at most `most` rows."""
    shown = latest(trials)
    best = best_first(sweep, shown)[: most // 3]
    last = [t for t in shown if t not in best and t.state != TrialState.WAITING][-(most - len(best)) :]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("trial", "", *sweep.objective, "epochs"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_column("values", overflow="ellipsis", no_wrap=True)
    for trial in [*best, *last]:
        running = trial.state == TrialState.RUNNING
        values = trial.values or [trial.intermediate_values.get(trial.last_step, math.nan)]
        texts = [number_text(value) for value in values][: len(sweep.objective)]
        texts += [""] * (len(sweep.objective) - len(texts))
        state = "best" if best and trial is best[0] else trial.state.name.lower()
        style = "bold green" if state == "best" else "cyan" if running else "dim" if not trial.values else ""
        epochs = f"{num_epochs(trial)}/{sweep.num_epochs}"
        table.add_row(str(root_of(trial)), state, *texts, epochs, drawn_text(trial), style=style)
    return table
