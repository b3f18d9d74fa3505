"""A run's folder: claimed by one run, its config and its metrics."""

import json
import os
import shutil
from pathlib import Path

import yaml

from carvision.errors import InputError


def is_first_process() -> bool:
    """Whether this is the only or the first of a run's processes, the one that writes and prints."""
    return int(os.environ.get("LOCAL_RANK") or 0) == 0 and int(os.environ.get("NODE_RANK") or 0) == 0


def is_unfinished(config: dict) -> bool:
    """Whether run.dir holds an earlier start of this very run, with an epoch at least, that has not come to its end.

    Raises InputError if it is a start of another run: with another configuration, but for `run` and what changes no
    result.
    """
    folder = Path(config["run"]["dir"] or "").expanduser()
    started = (folder / "checkpoints" / "last.ckpt").is_file() and not (folder / "metrics.json").exists()
    if not config["run"]["dir"] or not started:
        return False
    earlier = flat_config(yaml.safe_load((folder / "config.yaml").read_text()))
    now = flat_config(config)
    for key in sorted({*earlier, *now}):
        if key.startswith("run.") or key in ("data.num_workers", "callbacks.progress_bar"):
            continue
        if key == "data.batch_size" and now.get(key) == "auto":
            continue  # the number that was found then is taken again
        if earlier.get(key) != now.get(key):
            raise InputError(
                f"run.dir: {folder} holds the beginning of another run, with {key}={earlier.get(key)} instead of "
                f"{now.get(key)}; give the same values to go on with it, or another folder"
            )
    return True


def flat_config(config: dict, prefix: str = "") -> dict:
    """{"data.root": ...} of a nested configuration."""
    values = {}
    for key, value in config.items():
        values |= (
            flat_config(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
        )
    return values


def require_space(folder: Path, num_parameters: int) -> None:
    """Raises InputError if the run's files would not fit: best and last checkpoint, one in writing, and the model."""
    # float32 weights, and two moments for each in a checkpoint
    needed_mb = (3 * 3 + 1) * 4 * num_parameters / 1e6
    free_mb = shutil.disk_usage(folder).free / 1e6
    if free_mb < needed_mb:
        raise InputError(
            f"run.dir: {folder} has {free_mb:,.0f} MB free, and the checkpoints of this network need about "
            f"{needed_mb:,.0f} MB; free some, or choose another disk with run.dir="
        )


def write_config(config: dict, folder: Path) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def write_metrics(metrics: dict, folder: Path) -> None:
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1))
