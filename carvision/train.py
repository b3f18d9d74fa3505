"""carvision train [overrides]: train a classifier, test it, save it. See --help and conf/train.yaml."""

import os
import shlex
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from carvision.config.compose import choices, compose_alone, is_multirun, plain_config, run_command
from carvision.errors import InputError
from carvision.system.runtime import collection_paused, set_thread_defaults
from carvision.system.terminal import fold

if TYPE_CHECKING:
    from omegaconf import DictConfig


def train(cfg: "DictConfig") -> Path:
    """Train, test and save a classifier; return the run's folder."""
    config = plain_config(cfg)
    weights, trainer = config["model"]["weights"], config["trainer"]
    if weights not in ("pretrained", "random") and not Path(weights).exists():
        raise InputError(f"model.weights: {weights!r} is not pretrained, random, or a file or a run that exists")
    if is_multirun() and (trainer["devices"] not in (1, [0]) or trainer["num_nodes"] > 1):
        raise InputError(
            f"trainer.devices: {trainer['devices']}, and -m needs trainer.devices=1 on one machine: with more, every "
            "process would start all the runs. Start the runs one by one, or let carvision sweep sweep=grid do it"
        )
    # Imported here, as a mistake is reported without torch, and the agent of several processes needs no Lightning
    with collection_paused():
        from carvision.training.distributed.launch import start_processes
    start_processes(trainer)
    with collection_paused():
        from carvision.training.run.start import train as start_training

    name = choices().get("experiment") or choices()["data"]

    def finish(folder: Path) -> None:
        if config["run"]["report"]:
            write_pages(folder)
        print(next_commands(folder))

    return start_training(config, str(name), finish=finish)


def fit(overrides: list[str]) -> tuple[Path, dict]:
    """Train in this process as the command does with these overrides; return the folder and the contents of
    metrics.json, {} if the run is not finished. See carvision.fit."""
    set_thread_defaults()
    warnings.filterwarnings("ignore", "IProgress not found")  # tqdm's, of a notebook; can_show_bar says it
    cfg = compose_alone("train", overrides)
    devices = cfg.trainer.devices
    is_one = devices == 1 or (not isinstance(devices, str | int) and len(devices) == 1)
    if "RANK" not in os.environ and (not is_one or cfg.trainer.num_nodes > 1 or cfg.trainer.accelerator == "tpu"):
        raise InputError(
            f"trainer.devices: {devices}, and carvision.fit trains in its own process, with trainer.devices=1; "
            "the command carvision train starts several"
        )
    try:
        folder = train(cfg)
    except SystemExit as ended:
        if ended.code == 128 + signal.SIGINT:
            raise KeyboardInterrupt from None
        raise
    from carvision.files.log import start_log
    from carvision.training.run.folder import is_finished, read_metrics

    start_log(None)  # closes run.log
    return folder, (read_metrics(folder) or {}) if is_finished(folder) else {}


def write_pages(folder: Path) -> None:
    """Write report.html of a finished run, or of each of its folds or seeds."""
    from carvision.run_report.write import write_reports  # imports what training itself doesn't need

    for page in write_reports(folder):
        print(fold(f"page: {page}", sys.stdout))


def next_commands(folder: Path) -> str:
    """Return what to type after a run, for the terminal."""
    run = shlex.quote(str(folder))
    if not (folder / "model.json").exists():  # of several folds or seeds
        return f"next: carvision compare {run}"
    return f"next: carvision report {run}\n      carvision predict {run} photo.jpg"


if __name__ == "__main__":
    run_command(train, "train")
