"""Find and read the folders of runs, as far as a comparison needs them. Imports no torch."""

import csv
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from carvision.config.compose import flat_config
from carvision.data.table import SPLITS
from carvision.errors import InputError, one_line

log = logging.getLogger(__name__)

HISTORY, METRICS, CONFIG = "history.csv", "metrics.json", "config.yaml"
TRIALS, TRIALS_FOLDER = "trials.csv", "trials"  # of a search: its table, and the folder of its runs
CELL_KEY = "sweep.cells"  # in a run's config: the index of its grid cell
PART = re.compile(r"(fold|seed)_(\d+)")  # the folder of a run's part


@dataclass(frozen=True)
class RunPart:
    """A run without parts, or one fold or seed of a run.

    history: the rows of history.csv, epochs from 0. metrics: of metrics.json, None for an unfinished run. num_classes:
    of each head; {} if no model was saved yet.
    """

    history: pd.DataFrame
    metrics: dict | None
    num_parameters: float
    num_classes: dict[str, int]


@dataclass(frozen=True)
class Run:
    """A run, or a run of several folds or seeds.

    config: flat, {"optimizer.lr": 0.1}. parts: the run itself, or one per fold or seed. kind: "fold" or "seed", "" for
    a run without parts. num_parts: 0 for such a run. summary: metrics.json of all parts together.
    """

    folder: Path
    config: dict[str, object]
    parts: tuple[RunPart, ...]
    kind: str
    num_parts: int
    summary: dict | None

    @property
    def finished(self) -> bool:
        """True if the run is complete, with all its parts."""
        return bool(self.summary) if self.kind else self.parts[0].metrics is not None

    @property
    def history(self) -> pd.DataFrame:
        """The rows of history.csv; with several parts, their mean over the epochs that all of them have."""
        if len(self.parts) == 1:
            return self.parts[0].history
        rows = pd.concat([part.history for part in self.parts]).select_dtypes("number")
        if rows.empty:
            return rows
        epochs = rows.groupby("epoch")
        # Copied, or pandas warns that each of the many columns is in a block of its own
        return epochs.mean()[epochs.size() == len(self.parts)].copy().reset_index()


def find_runs(given: Iterable[Path]) -> list[Path]:
    """Return the runs in and below the given folders, each once, in the order given, by name within a folder.

    A run of several folds or seeds is one run. Raises InputError if there is none.
    """
    found: dict[Path, Path] = {}
    for folder in given:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder; give a run's folder, or a folder that holds runs")
        below = _runs_below(folder)
        if not below:
            raise InputError(f"{folder}: no run in it (a run's folder holds {HISTORY} or {METRICS})")
        for run in below:
            if run.resolve() in found:
                log.warning("%s was given twice, and is counted once", run)
            found.setdefault(run.resolve(), run)
    for path in [path for path in found if path.parent in found]:  # a part was given besides its run
        log.warning("%s is a part of %s, which is compared as a whole", found[path], found[path.parent])
        del found[path]
    return list(found.values())


def _runs_below(folder: Path) -> list[Path]:
    runs = []
    for path, folders, files in os.walk(folder):
        if HISTORY in files or METRICS in files or any(_is_part(Path(path, name)) for name in folders):
            runs.append(Path(path))
            folders.clear()  # a run's own folders contain no other runs
        elif CONFIG in files:
            log.warning("%s has not finished its first epoch and is left out", path)
        folders.sort(key=_natural)
    return runs


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that orders numbers in names by value: lr_8 before lr_16."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", name)]


def _is_part(folder: Path) -> bool:
    return PART.fullmatch(folder.name) is not None and (folder / HISTORY).is_file()


def read_run(folder: Path) -> Run:
    """Read a run. Raises InputError for a file that is not what a run writes."""
    folders = sorted((f for f in folder.iterdir() if _is_part(f)), key=lambda f: int(f.name.partition("_")[2]))
    summary = _read_metrics(folder)
    kind = next((kind for kind in ("fold", "seed") if f"{kind}s" in (summary or {})), "")
    kind = kind or (folders[0].name.partition("_")[0] if folders else "")
    if not kind:
        return Run(folder, _read_config(folder), (_read_part(folder),), "", 0, None)
    num_parts = int((summary or {}).get(f"{kind}s", len(folders)))
    parts = tuple(_read_part(part) for part in folders) or (RunPart(_no_history(), None, float("nan"), {}),)
    return Run(folder, _read_config(folder), parts, kind, num_parts, summary)


@contextmanager
def _leaving_out(file: Path, what: str = "this run") -> Iterator[None]:
    """Turn the errors of a file that is not what it should be into InputError."""
    try:
        yield
    except (ValueError, yaml.YAMLError, csv.Error) as error:
        raise InputError(f"{file} can't be read ({one_line(error, 120)}); leave {what} out") from None


def _no_history() -> pd.DataFrame:
    return pd.DataFrame({"epoch": [], "seconds": []})


def _read_part(folder: Path) -> RunPart:
    history = _no_history()
    file = folder / HISTORY
    if file.exists():
        with _leaving_out(file):
            history = pd.read_csv(file)
        if "epoch" not in history or not pd.api.types.is_numeric_dtype(history["epoch"]):
            raise InputError(f"{file} has no numeric column 'epoch', so it is not a run's; leave this folder out")
    return RunPart(history, _read_metrics(folder), _num_parameters(folder), _num_classes(folder))


def _read_metrics(folder: Path) -> dict | None:
    file = folder / METRICS
    if not file.exists():
        return None
    with _leaving_out(file):
        metrics = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(metrics, dict) or not all(isinstance(metrics.get(split, {}), dict) for split in SPLITS):
        raise InputError(f"{file} does not hold the metrics of a run; leave this folder out")
    return metrics


def _read_config(folder: Path) -> dict[str, object]:
    file = folder / CONFIG
    if not file.exists():
        return {}
    with _leaving_out(file):
        config = yaml.load(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return flat_config(config or {}) | _cell_of(folder)


def _cell_of(folder: Path) -> dict[str, object]:
    folder = folder.absolute()
    file = folder.parent.parent / TRIALS
    if folder.parent.name != TRIALS_FOLDER or not file.is_file():
        return {}
    with _leaving_out(file, "its runs"), file.open(encoding="utf-8", newline="") as rows:
        cells = [row.get("cell") for row in csv.DictReader(rows) if row.get("folder") == f"trials/{folder.name}"]
    cell = cells[-1] if cells else None
    return {CELL_KEY: int(cell)} if cell and cell.isdecimal() else {}


def _num_parameters(folder: Path) -> float:
    """Read the number of parameters from the line "all" of summary.txt."""
    file = folder / "summary.txt"
    line = re.search(r"^all +([\d,]+)", file.read_text(encoding="utf-8"), re.MULTILINE) if file.exists() else None
    return float(line[1].replace(",", "")) if line else float("nan")


def _num_classes(folder: Path) -> dict[str, int]:
    file = folder / "model.json"
    try:
        labels = json.loads(file.read_text(encoding="utf-8"))["labels"] if file.exists() else {}
        return {head: len(label["ids"]) for head, label in labels.items() if "ids" in label}
    except (ValueError, KeyError, TypeError):
        return {}  # only the choice of the finest head uses them, and it has a fallback
