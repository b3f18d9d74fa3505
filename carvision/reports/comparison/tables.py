"""The tables of a comparison: the metrics of the runs, their settings, matrices, and studies of one setting."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from rich.console import Console

from carvision.reports.comparison.frame import (
    DATA_SET,
    NOT_METRICS,
    SPREAD,
    TIMES,
    heads_of,
    is_fraction,
    lower_is_better,
)
from carvision.reports.comparison.runs import SPLITS, Run
from carvision.reports.comparison.settings import SEVERAL, Matrix, text_of
from carvision.reports.tables import BEST, OVERALL, TextTable, fits, print_table

RUN_TITLES = {
    "best_epoch": "best epoch", "epochs": "epochs", "parameters": "parameters", "wall_min": "wall minutes",
    "cpu_min": "CPU minutes", "cost": "cost", "epoch_s": "seconds an epoch", "best_after_s": "minutes to best",
    "lowest_val_loss": "lowest val loss", "training_s": "training seconds",
}  # fmt: skip
MAX_UPRIGHT = 6  # runs shown as columns; more are shown as rows


def title_of(column: str) -> str:
    """Return a readable title of a column with its unit: "val make top-1, %" for "val/make/top1"."""
    return f"{name_of(column)}, %" if is_fraction(column) else name_of(column)


def name_of(column: str) -> str:
    """Return a readable name of a column: "val make top-1" for "val/make/top1"."""
    if column in RUN_TITLES:
        return RUN_TITLES[column]
    words = {"top1": "top-1", "top3": "top-3", "top5": "top-5", "mae": "mean error", "auc": "AUC", "f1": "F1"}
    text = column.replace("joint/top1", "all heads").replace("loss_total", "loss with penalties")
    return " ".join(words.get(word, word.replace("_", " ")) for word in text.split("/"))


def _as_shown(column: str, value: float) -> tuple[float, int]:
    """Return a value in the unit in which it is shown (%, minutes, epochs from 1), and its digits after the point."""
    if is_fraction(column):
        return 100 * value, 1
    if column in ("best_epoch", "epoch"):
        return value + 1, 1
    if column == "best_after_s":
        return value / 60, 2
    if column == "cost":
        return value, 2 if value >= 1 else 4  # a small run costs less than a cent
    if column in NOT_METRICS or column.endswith("_s"):
        return value, 0 if column == "parameters" else 1
    return value, 2 if column in TIMES else 4


def round_value(column: str, value: float) -> float:
    """Round as format_value displays. Values displayed the same count as equal."""
    return round(*_as_shown(column, value))


def format_value(column: str, value: float, spread: float = float("nan")) -> str:
    """Format a value of the column, with its standard deviation if given; "" for NaN."""
    if pd.isna(value):
        return ""
    number, digits = _as_shown(column, value)
    shown = f"{number:,.{digits}f}"
    if column in NOT_METRICS:
        shown = shown.removesuffix(".0")
    return shown if pd.isna(spread) else f"{shown} ± {_as_shown(column, spread)[0]:.{digits}f}"


def by_data_set(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the runs on each data set, in their order; all of them as "" if the frame does not name data sets."""
    if DATA_SET not in frame:
        return {"": frame}
    return {name: frame[frame[DATA_SET] == name] for name in dict.fromkeys(frame[DATA_SET])}


def best_marks(frame: pd.DataFrame) -> pd.DataFrame:
    """Return whether each number is the best of its column among the runs on its data set, ties included.

    A column with a single number has no best, nor is the time or cost of an unfinished run one.
    """
    marks = pd.DataFrame(False, index=frame.index, columns=frame.columns)
    parts = [part.index for part in by_data_set(frame).values()]
    for column in map(str, frame.select_dtypes("number")):
        if column in NOT_METRICS or column.endswith(SPREAD):
            continue
        values = frame[column].map(lambda value, column=column: round_value(column, value))
        if column in TIMES and "state" in frame:
            values = values.where(frame["state"] != "unfinished")
        for part in parts:
            known = values[part]
            if known.count() > 1:
                marks.loc[part, column] = known == (known.min() if lower_is_better(column) else known.max())
    return marks


def shown_columns(frame: pd.DataFrame) -> list[list[str]]:
    """Return groups of non-empty columns: for each split the loss and accuracy of every head, then the run's own."""
    heads = heads_of(frame)
    penalised = any(
        (frame[f"{s}/loss_total"] - frame[f"{s}/loss"]).abs().max() > 1e-6
        for s in SPLITS
        if f"{s}/loss_total" in frame and f"{s}/loss" in frame
    )
    metrics = ["loss", *(["loss_total"] if penalised else [])]
    metrics += [f"{head}/loss" for head in heads] if len(heads) > 1 else []
    metrics += [f"{head}/{name}" for head in heads for name in ("top1", "mae")]
    metrics += ["joint/top1"] if len(heads) > 1 else []  # with one head it equals that head's
    groups = [[f"{split}/{metric}" for metric in metrics] for split in SPLITS]
    groups.append(["best_epoch", "epochs", "parameters", "wall_min", "cpu_min", "cost"])
    kept = [[c for c in group if c in frame and frame[c].notna().any()] for group in groups]
    return [group for group in kept if group]


def format_cells(frame: pd.DataFrame, columns: Sequence[str]) -> tuple[list[list[str]], list[list[str]]]:
    """Return texts and marks, one row per run."""
    marks = best_marks(frame)
    rows = [
        [format_value(c, run[c], run.get(c + SPREAD, float("nan"))) for c in columns] for _, run in frame.iterrows()
    ]
    return rows, [[BEST if marks.loc[name, c] else "" for c in columns] for name in frame.index]


def run_names(frame: pd.DataFrame) -> list[str]:
    """Return the names, with the number of folds or seeds and whether the run is unfinished."""
    extras = []
    for _, run in frame.iterrows():
        parts = [f"{run[kind]:.0f} {kind}" for kind in ("folds", "seeds") if pd.notna(run[kind])]
        extras.append(parts + (["unfinished"] if run["state"] == "unfinished" else []))
    return [f"{n} ({', '.join(e)})" if e else str(n) for n, e in zip(frame.index, extras, strict=True)]


def runs_table(
    frame: pd.DataFrame, title: str, notes: list[str], upright: bool | None = None, only: Sequence[str] | None = None
) -> TextTable:
    """Return the main table.

    upright: one column per run, as in the reports; None: if there are few. only: restrict the columns.
    """
    groups = [[c for c in group if only is None or c in only] for group in shown_columns(frame)]
    columns = [column for group in groups for column in group]
    rows, marks = format_cells(frame, columns)
    names = run_names(frame)
    if upright is None:
        upright = len(frame) <= MAX_UPRIGHT
    if not upright:
        named = [[name, *row] for name, row in zip(names, rows, strict=True)]
        return TextTable(title, ["run", *map(title_of, columns)], named, [["", *m] for m in marks], notes=notes)
    starts = {sum(map(len, groups[:i])) for i in range(1, len(groups))}
    turned = [[title_of(c), *(row[i] for row in rows)] for i, c in enumerate(columns)]
    turned_marks = [["", *(row[i] for row in marks)] for i in range(len(columns))]
    return TextTable(title, ["", *names], turned, turned_marks, starts, notes)


def print_runs(frame: pd.DataFrame, title: str, console: Console, first: Sequence[str]) -> None:
    """Print the main table: one column per run if that fits, else one row per run with as many columns as fit.

    first: the columns with priority.
    """
    upright = runs_table(frame, title, [], upright=True)
    if fits(upright, console):
        print_table(upright, console)
        return
    every = [column for group in shown_columns(frame) for column in group]
    ranked = [*first, *sorted(every, key=lambda column: column.startswith("train/"))]  # train last
    chosen: list[str] = []
    for column in dict.fromkeys(column for column in ranked if column in every):
        if fits(runs_table(frame, title, [], upright=False, only=[*chosen, column]), console):
            chosen.append(column)
    num_left = len(every) - len(chosen)
    notes = [f"{num_left} more columns are in compare.html, compare.md and compare.csv."] if num_left else []
    print_table(runs_table(frame, title, notes, upright=False, only=chosen), console)


def settings_table(runs: Sequence[Run], names: Sequence[str], keys: Sequence[str]) -> TextTable:
    """Return the settings in which the runs differ, one row per key, or one row per run if there are many."""
    rows = [[key, *(text_of(run.config[key]) if key in run.config else "" for run in runs)] for key in keys]
    header = ["", *names]
    if len(runs) > MAX_UPRIGHT:
        header, *rows = [list(row) for row in zip(header, *rows, strict=True)]
        header[0] = "run"
    return TextTable("Settings that differ", header, rows)


def matrix_tables(matrix: Matrix) -> list[TextTable]:
    """Return the tables of the metric and of the minutes; the best are marked as by matrix_marks."""
    by, minutes = f"by {matrix.rows} and {matrix.columns}", matrix.minutes.to_numpy(float)
    values = _matrix_table(matrix, matrix.values, matrix.metric, f"{title_of(matrix.metric)} {by}")
    for row, counts in zip(values.rows, matrix.counts.to_numpy(), strict=True):
        row[1:] = [f"{text} (of {count})" if count > 1 else text for text, count in zip(row[1:], counts, strict=True)]
    if (matrix.counts > 1).to_numpy().any():
        values.notes.append("(of n): the best of n runs in this cell.")
    times = _matrix_table(matrix, matrix.minutes, "wall_min", f"Wall minutes {by}, of the same runs")
    if minutes.size > 1:
        row, column = map(int, np.unravel_index(np.nanargmax(minutes), minutes.shape))
        where = f"{matrix.minutes.index[row]} and {matrix.minutes.columns[column]}"
        times.notes.append(f"Slowest: {where}, {format_value('wall_min', minutes[row, column])} minutes.")
    return [values, times]


def _matrix_table(matrix: Matrix, frame: pd.DataFrame, column: str, title: str) -> TextTable:
    texts = frame.map(lambda value: format_value(column, value)).to_numpy().tolist()
    rows = [[str(name), *row] for name, row in zip(frame.index, texts, strict=True)]
    values = frame.to_numpy(float)
    low, high = np.nanmin(values, initial=np.inf), np.nanmax(values, initial=-np.inf)
    return TextTable(
        title, ["", *map(str, frame.columns)], rows, [["", *row] for row in matrix_marks(matrix, frame, column)],
        shades=((values - low) / max(high - low, 1e-12)).tolist(),
    )  # fmt: skip


def matrix_marks(matrix: Matrix, frame: pd.DataFrame, column: str) -> list[list[str]]:
    """Return a mark for each cell of the frame, the matrix' values or minutes: "best" for the best of its row,
    "overall" for that of all cells, else "".

    Runs on different data sets are never compared: "best" is then the best of the cells of its row on the same data
    set, "overall" that of all cells on it. A single cell, and one with runs on several data sets, has no mark.
    """
    shown = frame.map(lambda value: round_value(column, value)).to_numpy(float)
    data_sets, marks = matrix.data_sets.to_numpy(object), np.full(shown.shape, "", object)
    extreme = np.nanmin if lower_is_better(column) else np.nanmax
    for data_set in {*data_sets[~np.isnan(shown)]} - {SEVERAL}:
        of_set = (data_sets == data_set) & ~np.isnan(shown)
        for row in range(len(shown)):
            if of_set[row].sum() > 1:
                marks[row][of_set[row] & (shown[row] == extreme(shown[row][of_set[row]]))] = BEST
        if of_set.sum() > 1:
            marks[of_set & (shown == extreme(shown[of_set]))] = OVERALL
    return marks.tolist()


def against_table(table: pd.DataFrame, key: str, metric: str) -> TextTable:
    """Return R4's table of one setting: time to best, best metric and lowest loss; the best of each group is marked."""
    columns = ["epoch_s", "best_after_s", metric, "lowest_val_loss"]
    columns = [column for column in dict.fromkeys(columns) if table[column].notna().any()]
    rows, marks, breaks = [], [], set()
    groups = list(table.groupby("group", sort=False))
    for group, part in groups:
        breaks |= {len(rows)} if rows else set()
        texts, group_marks = format_cells(part, columns)
        named = [str(group)] if len(groups) > 1 else []
        rows += [[*named, text_of(value), *row] for value, row in zip(part[key], texts, strict=True)]
        marks += [[""] * (len(named) + 1) + row for row in group_marks]
    header = [*(["runs"] if len(groups) > 1 else []), key, *map(title_of, columns)]
    return TextTable(f"By {key}", header, rows, marks, breaks)
