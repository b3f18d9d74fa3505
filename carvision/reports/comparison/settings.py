"""The settings of runs: names from those that differ, a matrix of two of them, and a study of a numeric one."""

import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from carvision.errors import InputError, suggest
from carvision.reports.comparison.frame import lower_is_better
from carvision.reports.comparison.runs import TRIALS_FOLDER, Run

log = logging.getLogger(__name__)

# Settings of where and how a run was made, not of what was trained
IGNORED = re.compile(r"run\.|sweep\.|logger\.|hydra\.|data\.(root|file|num_workers)$|callbacks\.progress_bar$")
# If several settings distinguish runs, those that people think of first
FIRST = (
    "experiment", "model.backbone", "model.weights", "model.train_layers", "optimizer.name", "optimizer.lr",
    "schedule.name", "loss.name", "data.name", "data.batch_size", "data.image_px", "trainer.max_epochs",
)  # fmt: skip
LAST = ("seed", "data.split.seed", "data.split.fold")
OF_THE_USER = ("folder", "manifest", "packed")  # data sets without a name of their own
CHOOSING = ("data.classes", "data.min_images_per_class", "data.one_against_rest", "data.images_per_model", "data.part")
TIME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d+)?")
MAX_SHOWN = 3  # settings in a name; if more differ, only as many as distinguish the runs
Config = dict[str, object]


def differing_keys(runs: Sequence[Run]) -> list[str]:
    """Return the settings that differ between the runs, the best known first; a missing setting differs."""
    known = {key: None for run in runs for key in run.config if not IGNORED.match(key)}
    keys = [key for key in known if len({text_of(run.config.get(key)) for run in runs}) > 1]
    return sorted(keys, key=_rank)


def _rank(key: str) -> int:
    return FIRST.index(key) if key in FIRST else len(FIRST) + LAST.index(key) + 1 if key in LAST else len(FIRST)


def name_runs(runs: Sequence[Run]) -> list[str]:
    """Return a unique name for each run: that of its folder, or of the folder above one that is named by its time.

    Runs of one name, and trials of a search, whose folders have numbers, are named by the settings that differ.
    """
    own = [_own_name(run) for run in runs]
    names = list(own)
    for name, count in Counter(own).items():
        if count > 1 or not name:
            group = [i for i, other in enumerate(own) if other == name]
            for i, settings in zip(group, name_by_settings([runs[i] for i in group]), strict=True):
                names[i] = name if settings == name else f"{name} {settings}".strip()
    for more in (lambda run: run.folder.name, lambda run: str(run.folder)):
        counts = Counter(names)
        names = [
            f"{name} {more(run)}".strip() if counts[name] > 1 and more(run) != name else name
            for name, run in zip(names, runs, strict=True)
        ]
    return names


def _own_name(run: Run) -> str:
    """Return the name of the run's folder, of the one above if that is a time; "" for a trial of a search."""
    folder = run.folder.absolute()
    if folder.parent.name == TRIALS_FOLDER:
        return ""
    return folder.parent.name if TIME.fullmatch(folder.name) else folder.name


def name_by_settings(runs: Sequence[Run], ignored: Sequence[str] = ()) -> list[str]:
    """Return a name for each run, from the settings that differ; equal runs have the same name.

    "optimizer=adam lr=0.001" if up to three settings differ; if more do, the experiment or the run's folder with as
    many settings as are needed to distinguish the runs. ignored: settings left out.
    """
    configs = [dict(run.config) for run in runs]
    keys = [key for key in differing_keys(runs) if key not in ignored]
    shared = [key for key in keys if all(key in config for config in configs)]  # not those of one optimizer alone
    if not 0 < len(shared) <= MAX_SHOWN or _num_apart(configs, shared) < _num_apart(configs, keys):
        for config, run in zip(configs, runs, strict=True):
            config["experiment"] = _own_name(run) or run.folder.name
        shared = _enough(configs, ["experiment", *keys])
    return _names(configs, shared)


def data_sets_of(runs: Sequence[Run]) -> list[str]:
    """Return the name of each run's data set; that of one's own photos has their folder or table, and its whole path if
    it takes that to tell two apart.

    Runs have the same name if their photos are of the same classes from the same data set, in whichever split.
    """
    keys = [key for key in differing_keys(runs) if key in CHOOSING]
    found = []
    for run in runs:
        name, of_user = (
            text_of(run.config.get("data.name", "data set not recorded")),
            run.config.get("data.name") in OF_THE_USER,
        )
        where = (run.config.get("data.file") or run.config.get("data.root")) if of_user else None
        settings = [f"{key.removeprefix('data.')}={text_of(run.config[key])}" for key in keys if key in run.config]
        found.append((name, str(where or ""), *settings))
    short = {each: " ".join(filter(None, (each[0], Path(each[1]).name, *each[2:]))) for each in found}
    counts = Counter(short.values())
    return [short[each] if counts[short[each]] == 1 else " ".join(filter(None, each)) for each in found]


def _enough(configs: Sequence[Config], keys: Sequence[str]) -> list[str]:
    """Return the first keys that distinguish as many configs as all keys do."""
    chosen: list[str] = []
    for key in keys:
        if _num_apart(configs, [*chosen, key]) > _num_apart(configs, chosen):
            chosen.append(key)
    return chosen or list(keys[:1])


def _num_apart(configs: Sequence[Config], keys: Sequence[str]) -> int:
    return len({tuple(text_of(config.get(key)) for key in keys) for config in configs})


def _names(configs: Sequence[Config], keys: Sequence[str]) -> list[str]:
    """Return "lr=0.1 resnet50" for each config: values after the last part of their keys, where they need one."""
    short = {key: f"{key.removesuffix('.name').rsplit('.', 1)[-1]}=" for key in keys}
    short |= {key: "" for key in ("experiment", "model.backbone") if key in short}
    doubled = Counter(short.values())
    shown = {key: name if doubled[name] == 1 else f"{key}=" for key, name in short.items()}
    return [" ".join(f"{shown[key]}{text_of(config.get(key))}" for key in keys) for config in configs]


def text_of(value: object) -> str:
    """Return the value as it would be typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return f"[{','.join(map(text_of, value))}]"
    return str(value)


SEVERAL = "several data sets"


@dataclass(frozen=True)
class Matrix:
    """A table of runs by two settings, such as R4's networks by optimizers.

    rows, columns: the settings. values, minutes: the metric and the wall minutes of the best run of each cell; counts:
    the number of its runs. data_sets: of its runs, SEVERAL if they differ, "" for none.
    """

    rows: str
    columns: str
    metric: str
    values: pd.DataFrame
    minutes: pd.DataFrame
    counts: pd.DataFrame
    data_sets: pd.DataFrame


def matrix_of(frame: pd.DataFrame, runs: Sequence[Run], rows: str, columns: str, metric: str) -> Matrix:
    """Arrange the runs by two settings.

    rows, columns: keys of the runs' configs, or several separated by commas: one row (column) for each combination of
    their values. Raises InputError if no run has such a key.
    """
    keys = {key: _values_of(runs, key, "--matrix") for key in (rows, columns)}
    labels = {key: list(dict.fromkeys(_in_order(values))) for key, values in keys.items()}
    values = np.full((len(labels[rows]), len(labels[columns])), np.nan)
    minutes, counts, data_sets = values.copy(), np.zeros(values.shape, np.int64), np.full(values.shape, "", object)
    of_run = data_sets_of(runs)
    sign = -1 if lower_is_better(metric) else 1
    for i, (row, column) in enumerate(zip(keys[rows], keys[columns], strict=True)):
        value = float(frame[metric].iloc[i])
        if row is None or column is None or math.isnan(value):
            continue
        at = labels[rows].index(row), labels[columns].index(column)
        counts[at] += 1
        data_sets[at] = of_run[i] if data_sets[at] in ("", of_run[i]) else SEVERAL
        if counts[at] == 1 or sign * value > sign * values[at]:
            values[at], minutes[at] = value, frame["wall_min"].iloc[i]
    index, header = pd.Index(labels[rows], name=rows), pd.Index(labels[columns], name=columns)
    frames = (pd.DataFrame(cells, index, header) for cells in (values, minutes, counts, data_sets))
    return Matrix(rows.replace(",", ", "), columns.replace(",", ", "), metric, *frames)


def _values_of(runs: Sequence[Run], key: str, option: str) -> list[str | None]:
    """Return each run's value as text; None, with a warning, if its config lacks the key."""
    if "," in key:
        of_each = zip(*(_values_of(runs, each.strip(), option) for each in key.split(",")), strict=True)
        return [None if None in values else ", ".join(values) for values in of_each]
    known = {name for run in runs for name in run.config}
    if key not in known:
        raise InputError(f"{option}: {key!r} is not a key of these runs' config.yaml{suggest(key, known)}")
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
    """Return the frame sorted by two new columns: "group", and `key`, a numeric setting.

    groups: for each run the name of its other settings. Raises InputError if a value of the key is not a number.
    """
    values = _values_of(runs, key, "--against")
    numbers = pd.to_numeric(pd.Series(values, frame.index, dtype=object), errors="coerce")
    wrong = [value for value, is_wrong in zip(values, numbers.isna(), strict=True) if is_wrong and value is not None]
    if wrong:
        raise InputError(f"--against: {key} is {wrong[0]!r} in a run, and must be a number; --matrix takes any values")
    table = frame.assign(**{"group": list(groups), key: numbers}).dropna(subset=[key])
    if (table[key] % 1 == 0).all():
        table[key] = table[key].astype(int)
    return table.sort_values(["group", key], kind="stable")
