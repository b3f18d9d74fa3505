"""The runs of a comparison in one pandas frame, and what follows from it: heads, order, the Pareto front."""

import logging
from collections.abc import Sequence
from typing import cast

import numpy as np
import pandas as pd

from carvision.errors import InputError, suggest
from carvision.reports.comparison.runs import SPLITS, Run, RunPart

log = logging.getLogger(__name__)

# Columns without a best value
DATA_SET = "data_set"  # a column that write_comparison adds
NOT_METRICS = ("folder", DATA_SET, "state", "folds", "seeds", "epochs", "best_epoch", "epoch", "parameters")
TIMES = ("wall_min", "cpu_min", "cost", "training_s", "best_after_s", "epoch_s")
SPREAD = "/std"  # suffix of the column with the standard deviation over the folds
NAN = float("nan")


def runs_frame(
    runs: Sequence[Run], names: Sequence[str], epoch: int | None = None, price_per_hour: float | None = None
) -> pd.DataFrame:
    """Return one row per run, indexed by name: values as in its files (epochs from 0, accuracies as fractions).

    epoch (from 1): metrics of the end of that epoch instead of the best one, and the training time until then.
    price_per_hour: replaces the run's own. Raises InputError if no run has that epoch.
    """
    frame = pd.DataFrame([_row(run, epoch, price_per_hour) for run in runs], index=pd.Index(names, name="run"))
    if epoch is not None and "epoch" not in frame.dropna(axis="columns", how="all"):
        longest = max((len(run.history) for run in runs), default=0)
        raise InputError(f"--epoch {epoch}: no run has as many epochs; the longest has {longest}")
    if epoch is not None:
        for name in frame.index[frame["epoch"].isna()]:
            log.warning("%s has no epoch %d: its metrics are empty", name, epoch)
    facts = [name for name in (*NOT_METRICS, *TIMES, "lowest_val_loss") if name in frame]
    metrics = [name for split in SPLITS for name in map(str, frame) if name.startswith(f"{split}/")]
    return frame[facts + metrics]


def _row(run: Run, epoch: int | None, price_per_hour: float | None) -> dict[str, object]:
    parts = pd.DataFrame([_part_row(part, run.config, epoch) for part in run.parts])
    row = parts.iloc[0].to_dict()
    if run.kind:
        numbers = parts.select_dtypes("number")
        row = numbers.mean().to_dict()
        row |= {f"{name}{SPREAD}": value for name, value in numbers.std(ddof=1).items() if "/" in str(name)}
        for name in ("wall_min", "cpu_min", "training_s", "cost"):
            row[name] = numbers[name].sum(min_count=len(parts)) if name in numbers else NAN
        for name, value in ((run.summary or {}).get("test", {}) if epoch is None else {}).items():
            row[f"test/{name}"], row[f"test/{name}{SPREAD}"] = value["mean"], value["std"]
    if run.summary and "cost" in run.summary and epoch is None:
        row["cost"] = run.summary["cost"]
    if price_per_hour is None and np.isnan(row.get("cost", NAN)):
        price_per_hour = cast("float | None", run.config.get("run.price_per_hour"))
    if price_per_hour is not None:
        row["cost"] = row["wall_min"] / 60 * float(price_per_hour)
    state = f"epoch {epoch}" if epoch is not None else "finished" if run.finished else "unfinished"
    return {"folder": str(run.folder), "state": state, "folds": NAN, "seeds": NAN, **row} | (
        {f"{run.kind}s": run.num_parts} if run.kind else {}
    )


def _part_row(part: RunPart, config: dict, epoch: int | None) -> dict[str, float]:
    history, saved = part.history, part.metrics
    seconds = history["seconds"] if "seconds" in history else pd.Series(dtype=float)
    spent = (saved or {}).get("seconds", {})
    row: dict[str, float] = {"epochs": len(history) or NAN, "parameters": part.num_parameters}
    if epoch is not None:
        at = history[history["epoch"] == epoch - 1]
        row["epoch"] = epoch - 1 if len(at) else NAN
        row["training_s"] = seconds[history["epoch"] < epoch].sum() if len(at) else NAN
        row["wall_min"] = row["training_s"] / 60
        metrics = _row_metrics(at.iloc[0]) if len(at) else {}
    else:
        at = _best_epoch(part, config)
        row["best_epoch"] = at
        row["training_s"] = spent.get("training", seconds.sum() if len(seconds) else NAN)
        stages = [value for name, value in spent.items() if name not in ("total", "cpu")]
        row["wall_min"] = spent.get("total", sum(stages) if stages else row["training_s"]) / 60
        row["cpu_min"] = spent.get("cpu", NAN) / 60
        row["cost"] = (saved or {}).get("cost", NAN)
        row["best_after_s"] = seconds[history["epoch"] <= at].sum() if len(seconds) else NAN
        if saved:
            metrics = {f"{split}/{name}": v for split in SPLITS for name, v in saved.get(split, {}).items()}
        else:
            metrics = _row_metrics(history[history["epoch"] == at].iloc[0]) if len(history) else {}
    row["epoch_s"] = seconds.mean() if len(seconds) else NAN
    row["lowest_val_loss"] = history["val/loss"].min() if "val/loss" in history else NAN
    return row | {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def _row_metrics(epoch: pd.Series) -> dict[str, float]:
    return {str(k): v for k, v in epoch.items() if str(k).split("/")[0] in SPLITS and not pd.isna(v)}


def _best_epoch(part: RunPart, config: dict) -> float:
    """Return the best epoch, from 0; for an unfinished run, the best so far by its callbacks.monitor."""
    if part.metrics and "best_epoch" in part.metrics:
        return part.metrics["best_epoch"]
    history, monitor = part.history, config.get("callbacks.monitor", "val/loss")
    if monitor not in history or history[monitor].isna().all():
        return history["epoch"].max() if len(history) else NAN
    values = history[monitor]
    return history.loc[values.idxmax() if config.get("callbacks.mode") == "max" else values.idxmin(), "epoch"]


def lower_is_better(column: str) -> bool:
    """Return whether smaller values of the column are better: times, losses, errors."""
    last = column.rsplit("/", 1)[-1]
    return column in TIMES or "loss" in last or last.startswith(("fpr", "fnr", "mae", "rmse"))


def is_fraction(column: str) -> bool:
    """Return whether a metric is shown in %: all are, except losses and errors in a unit."""
    last = column.rsplit("/", 1)[-1]
    return column.split("/")[0] in SPLITS and "/" in column and "loss" not in last and last not in ("mae", "rmse")


def heads_of(frame: pd.DataFrame) -> list[str]:
    """Return the heads of which a run has metrics, in the order of the runs' files."""
    names = [column.split("/") for column in map(str, frame.dropna(axis="columns", how="all"))]
    heads = (n[1] for n in names if len(n) == 3 and n[0] in SPLITS and n[2] in ("top1", "mae") and n[1] != "joint")
    return list(dict.fromkeys(heads))


def finest_metric(frame: pd.DataFrame, runs: Sequence[Run]) -> str:
    """Return validation top-1 of the head that most runs have; among these the one with most classes, else the last."""
    num_classes = {head: n for run in runs for part in run.parts for head, n in part.num_classes.items()}
    for split in ("val", "test", "train"):
        heads = [head for head in heads_of(frame) if f"{split}/{head}/top1" in frame]
        if heads:
            rank = {h: (frame[f"{split}/{h}/top1"].count(), num_classes.get(h, 0), i) for i, h in enumerate(heads)}
            return f"{split}/{max(heads, key=rank.__getitem__)}/top1"
    return next((f"{split}/loss" for split in ("val", "test", "train") if f"{split}/loss" in frame), "wall_min")


def check_column(frame: pd.DataFrame, column: str, option: str) -> str:
    """Return the column. Raises InputError unless the frame has numbers in it."""
    columns = list(map(str, frame.select_dtypes("number").dropna(axis="columns", how="all")))
    if column not in columns:
        shown = ", ".join(c for c in columns if c.endswith(("val/loss", "/top1")) or c in ("wall_min", "cost"))
        raise InputError(
            f"{option}: {column!r} is not a metric of these runs, as {shown} are{suggest(column, columns)}"
        )
    return column


def sort_by(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """Sort by the column, best first; runs without a value last, ties in their order."""
    return frame.sort_values(column, ascending=lower_is_better(column), kind="stable", na_position="last")


def pareto_front(amounts: np.ndarray, values: np.ndarray, lower: bool = False) -> np.ndarray:
    """Return the indices of the runs that no other run dominates, int (K,), ordered by amount; amounts, values: (N,).

    Less of the amount (time, money) is better, and more of the value, or less if `lower`. A run dominates another if it
    is better in one and at least as good in the other; of two equal runs both are returned. NaN is never on the front.
    """
    values = values * (-1 if lower else 1)
    known = np.flatnonzero(~(np.isnan(amounts) | np.isnan(values)))
    order = known[np.lexsort((-values[known], amounts[known]))]
    front: list[int] = []
    for index in order:
        same = front and (amounts[index], values[index]) == (amounts[front[-1]], values[front[-1]])
        if not front or values[index] > values[front[-1]] or same:
            front.append(int(index))
    return np.array(front, dtype=int)
