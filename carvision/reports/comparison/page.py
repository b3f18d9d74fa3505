"""The page of a comparison, compare.html: for each data set a table of its runs and charts; studies of settings."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from carvision.reports.charts import LOOKS, Axis, Line, line_chart
from carvision.reports.comparison.frame import finest_metric, is_fraction, lower_is_better, pareto_front, sort_by
from carvision.reports.comparison.plots import WIDE_RANGE, in_unit, is_wide
from carvision.reports.comparison.runs import Run
from carvision.reports.comparison.tables import (
    by_data_set,
    format_cells,
    format_value,
    name_of,
    run_names,
    shown_columns,
    title_of,
)
from carvision.reports.page import write_template
from carvision.reports.tables import JOINT, TextTable

WIDE_KEY = 4  # ratio of a key's largest to its smallest value above which its scale is logarithmic
AMOUNTS = {"training_s": "training time", "cost": "cost"}
MAX_LETTERS = 60  # of a run's name in a legend
ISOLATE, END = "\u2068", "\u2069"  # around a name, whose direction then does not turn what follows it


def write_compare_page(
    file: Path,
    title: str,
    about: str,
    frame: pd.DataFrame,
    runs: Sequence[Run],
    metric: str,
    notes: Sequence[str],
    studies: Mapping[str, Sequence[TextTable]],
    charts: Mapping[str, Markup],
) -> None:
    """Write compare.html.

    frame: of the runs, in their order. metric: by which runs are judged. notes: below the tables of runs. studies:
    {heading: tables}. charts: {heading of a study: chart above its tables}.
    """
    groups = []
    by_name = dict(zip(frame.index, runs, strict=True))
    for name, part in by_data_set(frame).items():
        own = [by_name[run] for run in part.index]
        judged = metric if metric in part and part[metric].notna().any() else finest_metric(part, own)
        groups.append({"name": name, "table": runs_by_row(part), "charts": [*curves(part, own, judged),
                       *trade_offs(part, judged)]})  # fmt: skip
    write_template(
        file, "compare.html", title=title, about=about, groups=groups, notes=notes, studies=studies, charts=charts
    )


def runs_by_row(frame: pd.DataFrame) -> TextTable:
    """Return a table with a row for each run: validation and test, the run's own columns, then training."""
    columns = [column for group in shown_columns(frame) for column in group]
    columns.sort(key=lambda column: column.startswith("train/"))
    rows, marks = format_cells(frame, columns)
    named = [[name, *row] for name, row in zip(run_names(frame), rows, strict=True)]
    return TextTable("Runs", ["run", *map(title_of, columns)], named, [["", *row] for row in marks])


def curves(frame: pd.DataFrame, runs: Sequence[Run], metric: str) -> list[tuple[str, Markup, str]]:
    """Return (heading, chart, note) of loss and accuracies by epoch, of the best runs if there are many."""
    histories = {str(name): run.history for name, run in zip(frame.index, runs, strict=True) if len(run.history)}
    shown = [str(name) for name in sort_by(frame, metric).index if str(name) in histories][:LOOKS]
    shown = [name for name in histories if name in shown]
    note = "Solid: validation; dashed: training."
    if len(shown) < len(histories):
        note += f" The best {len(shown)} of {len(histories)} runs by {name_of(metric)}."
    columns = dict.fromkeys(str(column) for history in histories.values() for column in history)
    heads = list(dict.fromkeys(c.split("/")[1] for c in columns if c.count("/") == 2 and c.endswith("/top1")))
    loss = Axis("loss", log=is_wide({name: histories[name] for name in shown}, "loss"))
    found = []
    for name in ["loss", *(f"{head}/top1" for head in heads if head != "joint" or len(heads) > 2)]:
        lines = []
        for look, run in enumerate(shown):
            for split in ("train", "val"):
                history = histories[run]
                if f"{split}/{name}" not in history:
                    continue
                epochs, values = (history["epoch"] + 1).tolist(), history[f"{split}/{name}"].tolist()
                what = "training" if split == "train" else "validation"
                texts = [
                    f"{run}, epoch {e:.0f}, {what}: {format_value(f'{split}/{name}', v)}"
                    for e, v in zip(epochs, values, strict=True)
                ]
                own = _short(run) if split == "val" or f"val/{name}" not in history else ""
                lines.append(Line(own, epochs, values, look, split == "train", texts))
        if lines:
            y = Axis("accuracy, %", percent=True, limits=(0, 1)) if name != "loss" else loss
            what = "Loss" if name == "loss" else f"Accuracy of {JOINT.get(name, name.removesuffix('/top1'))}"
            found.append(
                (f"{what} by epoch", line_chart(lines, Axis("epoch", whole=True), y, f"{what} by epoch"), note)
            )
    return found


def _short(name: object) -> str:
    text = str(name)
    return text if len(text) <= MAX_LETTERS else f"{text[: MAX_LETTERS - 1]}\u2026"


def trade_offs(frame: pd.DataFrame, metric: str) -> list[tuple[str, Markup, str]]:
    """Return (heading, chart, note) of the metric against time and cost, a point for each run, and the Pareto front."""
    found = []
    for amount, noun in AMOUNTS.items():
        known = frame.dropna(subset=[amount, metric]) if amount in frame else frame[:0]
        if len(known) < 2:
            continue
        amounts, unit = known[amount].to_numpy(float), ""
        if amount == "training_s":
            amounts, unit = in_unit(amounts)
        values, is_open = known[metric].to_numpy(float), (known["state"] == "unfinished").to_numpy()
        front = pareto_front(np.where(is_open, np.nan, amounts), values, lower_is_better(metric))
        percent = " %" if is_fraction(metric) else ""
        spent = [f"{value:,.3g} {unit}" if unit else f"cost {format_value('cost', value)}" for value in amounts]
        texts = [
            f"{ISOLATE}{name}{END}: {format_value(metric, value)}{percent}, {each}{', unfinished' * bool(unfinished)}"
            for name, value, each, unfinished in zip(known.index, values, spent, is_open, strict=True)
        ]
        lines = []
        if len(front) > 1:
            lines.append(Line("best for its " + ("time" if unit else "cost"), *_steps(amounts[front], values[front]), 1,
                              marked=False))  # fmt: skip
        of_front = np.isin(np.arange(len(known)), front)
        kinds = {"on the Pareto front": of_front, "others": ~of_front & ~is_open, "unfinished, so far": is_open}
        for (name, chosen), look in zip(kinds.items(), (1, 0, 5), strict=True):
            rows = np.flatnonzero(chosen)
            if len(rows):
                lines.append(Line(name, amounts[rows].tolist(), values[rows].tolist(), look,
                                  texts=[texts[i] for i in rows], joined=False))  # fmt: skip
        is_log = amounts.min() > 0 and amounts.max() > WIDE_RANGE * amounts.min()
        x = Axis(f"{noun}, {unit}" if unit else noun, log=bool(is_log),
                 limits=None if is_log else (0, 1.05 * max(amounts.max(), 1e-9)))  # fmt: skip
        what = f"{name_of(metric)} against {noun}"
        y = Axis(title_of(metric), percent=is_fraction(metric))
        note = f"No run is both better and {'faster' if unit else 'cheaper'} than one of the Pareto front: "
        note += "; ".join(texts[i] for i in front) + "."
        found.append((what[:1].upper() + what[1:], line_chart(lines, x, y, what), note if len(front) else ""))
    return found


def _steps(x: np.ndarray, y: np.ndarray) -> tuple[list[float], list[float]]:
    """Return a line that keeps each value until the next x."""
    return np.repeat(x, 2)[1:].tolist(), np.repeat(y, 2)[:-1].tolist()


def against_charts(table: pd.DataFrame, key: str, metric: str) -> Markup:
    """Return charts of the metric, the lowest loss and the time to the best epoch by a setting, a line for each group.

    table: from `against_of`. Runs that differ in their seeds are points around the line of their mean.
    """
    titles = {metric: title_of(metric), "lowest_val_loss": "lowest validation loss"}
    titles |= {"best_after_s": "minutes to the best epoch"}
    groups = list(table.groupby("group", sort=False))
    points = sorted(map(float, table[key].unique()))
    x = Axis(key, log=points[0] > 0 and points[-1] > WIDE_KEY * points[0], ticks=tuple(points))
    parts = []
    for column, title in titles.items():
        lines = []
        for look, (group, rows) in enumerate(groups[:LOOKS]):
            values = rows[column].astype(float) / (60 if column == "best_after_s" else 1)
            mean = values.groupby(rows[key]).mean()
            name = _short(group) if len(groups) > 1 else ""
            several = len(mean) < len(values)
            lines.append(Line(name, mean.index.tolist(), mean.tolist(), look, marked=not several))
            if several:
                texts = [f"{run}: {format_value(column, value)}" for run, value in rows[column].items()]
                lines.append(Line("", rows[key].tolist(), values.tolist(), look, texts=texts, joined=False))
        if table[column].notna().any():
            parts.append(Markup("<h3>{}</h3>{}").format(title, line_chart(
                lines, x, Axis(title, percent=is_fraction(column)), f"{title} by {key}")))  # fmt: skip
    if len(groups) > LOOKS:
        parts.append(Markup('<p class="note">The first {} of {} groups of runs; the table has all.</p>').format(
            LOOKS, len(groups)))  # fmt: skip
    return Markup("").join(parts)
