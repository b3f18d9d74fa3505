"""Write the page of a search: search.html."""

from pathlib import Path

import optuna
import pandas as pd

from carvision.reports.comparison.frame import is_fraction
from carvision.reports.comparison.tables import title_of
from carvision.reports.page import write_template
from carvision.reports.tables import BEST, TextTable, percent
from carvision.search.build import Sweep
from carvision.search.page.charts import charts_of

LEFT_OUT = ("folder", "cell")  # columns of trials.csv that the trial's number tells, too


def write_search_page(
    file: Path, sweep: Sweep, study: optuna.Study, about: str, best: TextTable, trials: pd.DataFrame, command: str
) -> None:
    """Write search.html.

    best: the table of the best trials. trials: the rows of trials.csv. command: trains the best trial again.
    """
    write_template(
        file,
        "search.html",
        title=sweep.name,
        about=about,
        best=best,
        trials=trials_by_row(sweep, trials),
        charts=charts_of(sweep, study),
        command=command,
    )


def trials_by_row(sweep: Sweep, trials: pd.DataFrame) -> TextTable:
    """Return a table with a row for each trial, of the columns of which any value is known."""
    shown = trials.drop(columns=[name for name in LEFT_OUT if name in trials])
    shown = shown.dropna(axis="columns", how="all")
    columns = [str(name) for name in shown]
    rows = [
        [_text(name, value) for name, value in zip(columns, row, strict=True)] for row in shown.itertuples(index=False)
    ]
    marks = [[""] * len(columns) for _ in rows]
    for metric, mode in sweep.objective.items():
        values = shown[metric] if metric in shown else shown["trial"][:0]
        if values.count() > 1:
            best = values.min() if mode == "min" else values.max()
            for i in range(len(rows)):
                marks[i][columns.index(metric)] = BEST if values.iloc[i] == best else ""
    titles = [title_of(name) if name in (*sweep.objective, "best_epoch") else name for name in columns]
    return TextTable("All trials", titles, rows, marks)


def _text(name: str, value: object) -> str:
    if value is None or value is pd.NA or value != value:
        return ""
    if isinstance(value, float):
        return percent(value) if is_fraction(name) else f"{value:,.4g}"
    return f"{value:,}" if name == "parameters" else str(value)
