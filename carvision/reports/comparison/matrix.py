"""Arrange runs by their settings: a matrix of two settings, and a study of one numeric setting."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from carvision.errors import InputError, nearest
from carvision.reports.comparison.frame import lower_is_better
from carvision.reports.comparison.names import text_of
from carvision.reports.comparison.runs import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Matrix:
    """R4's table of networks by optimizers: each cell has the metric and the minutes of its best run."""

    rows: str
    columns: str
    metric: str
    values: pd.DataFrame
    minutes: pd.DataFrame
    counts: pd.DataFrame  # runs in each cell


def matrix_of(frame: pd.DataFrame, runs: Sequence[Run], rows: str, columns: str, metric: str) -> Matrix:
    """Arrange the runs by two settings.

    rows, columns: keys of the runs' configs, or several separated by commas: one row (column) for each combination of
    their values. Raises InputError if no run has such a key.
    """
    keys = {key: _values_of(runs, key, "--matrix") for key in (rows, columns)}
    labels = {key: list(dict.fromkeys(_in_order(values))) for key, values in keys.items()}
    shape = {"index": pd.Index(labels[rows], name=rows), "columns": pd.Index(labels[columns], name=columns)}
    values, minutes = (pd.DataFrame(float("nan"), **shape) for _ in range(2))
    counts = pd.DataFrame(0, **shape)
    sign = -1 if lower_is_better(metric) else 1
    for i, (row, column) in enumerate(zip(keys[rows], keys[columns], strict=True)):
        value = frame[metric].iloc[i]
        if row is None or column is None or math.isnan(value):
            continue
        counts.loc[row, column] += 1
        if counts.loc[row, column] == 1 or sign * value > sign * values.loc[row, column]:
            values.loc[row, column], minutes.loc[row, column] = value, frame["wall_min"].iloc[i]
    return Matrix(rows.replace(",", ", "), columns.replace(",", ", "), metric, values, minutes, counts)


def _values_of(runs: Sequence[Run], key: str, option: str) -> list[str | None]:
    """Return each run's value as text; None, with a warning, if its config lacks the key."""
    if "," in key:
        of_each = zip(*(_values_of(runs, each.strip(), option) for each in key.split(",")), strict=True)
        return [None if None in values else ", ".join(values) for values in of_each]
    known = {name for run in runs for name in run.config}
    if key not in known:
        raise InputError(f"{option}: {key!r} is not a key of these runs' config.yaml{nearest(key, known)}")
    for run in runs:
        if key not in run.config:
            log.warning("%s has no %s, and is left out of %s", run.folder, key, option)
    return [text_of(run.config[key]) if key in run.config else None for run in runs]


def _in_order(values: Sequence[str | None]) -> list[str]:
    """Sort numbers; keep other values in order of appearance."""
    known = [value for value in values if value is not None]
    try:
        return sorted(known, key=float)
    except ValueError:
        return known


def against_of(frame: pd.DataFrame, runs: Sequence[Run], key: str, groups: Sequence[str]) -> pd.DataFrame:
    """Return the frame with the new columns "group" and `key`, a numeric setting, sorted by both.

    groups: for each run the name of its other settings. Raises InputError if a value of the key is not a number.
    """
    values = _values_of(runs, key, "--against")
    try:
        numbers = [float("nan") if value is None else float(value) for value in values]
    except ValueError:
        wrong = next(value for value in values if value is not None and not _is_number(value))
        raise InputError(
            f"--against: {key} is {wrong!r} in a run, and must be a number; --matrix takes any values"
        ) from None
    table = frame.assign(**{"group": list(groups), key: numbers}).dropna(subset=[key])
    if (table[key] % 1 == 0).all():
        table[key] = table[key].astype(int)
    return table.sort_values(["group", key], kind="stable")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
