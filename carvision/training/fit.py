"""One run: fit, test the best weights, save the model and the figures."""

import contextlib
import errno
import json
import logging
import os
import time
import warnings
from pathlib import Path

import pandas as pd
import pytorch_lightning as pl
import torch

from carvision import portable
from carvision.data.datamodule import PhotoDataModule
from carvision.data.images import Preprocessing
from carvision.data.splits import write_splits
from carvision.errors import InputError
from carvision.reports.summary import print_closing, summarise_network
from carvision.training.batch_size import with_batch_size, with_found_batch_size
from carvision.training.build import build_datamodule, build_lit_classifier
from carvision.training.build_trainer import build_trainer
from carvision.training.compiling import first_step_seconds
from carvision.training.hardware import hardware_used
from carvision.training.lit_classifier import LitClassifier
from carvision.training.phases import fit_phases
from carvision.training.run_folder import is_first_process, require_space, write_config, write_metrics

log = logging.getLogger(__name__)


def run_training(cfg: dict, folder: Path, fold: int | None = None, resume: bool = False) -> dict | None:
    """Train as `cfg` (plain and checked) says, into the folder. Returns what metrics.json holds; None where
    run.max_epochs_per_start ended it before.

    resume: the folder holds an earlier start of this run, which is gone on with.
    """
    _quiet_libraries()
    first = is_first_process()
    if resume:
        cfg = with_found_batch_size(cfg, folder)
    clock = Clock(folder / "seconds.json")
    if first and not resume:
        write_config(cfg, folder)
    datamodule = build_datamodule(cfg, fold)
    table = datamodule.table
    if first:
        write_splits(table, folder / "splits.csv")
    counts = table.rows["split"].value_counts()
    log.info("%s: %s", table.name, ", ".join(f"{counts.get(split, 0):,} {split}" for split in ("train", "val", "test")))
    clock.lap("reading")
    lit = build_lit_classifier(cfg, table)
    if first:
        (folder / "summary.txt").write_text(summarise_network(lit.model) + "\n")
    total = sum(p.numel() for p in lit.parameters())
    heads = ", ".join(f"{n} ({len(v['ids'])})" if "ids" in v else n for n, v in lit.labels.items())
    log.info("%s: %s parameters; heads: %s", cfg["model"]["backbone"], f"{total:,}", heads)
    asked = sum(phase["epochs"] for phase in (cfg["phases"] or {}).values())
    if asked > lit.num_epochs:
        log.warning("trainer.max_epochs ends the phases after %d of their %d epochs", lit.num_epochs, asked)
    require_space(folder, total)
    trainer = build_trainer(cfg, folder, lit.labels)
    clock.lap("building")
    with full_disk_is_an_input_error(folder):
        last = folder / "checkpoints" / "last.ckpt"
        try:
            ended = fit_phases(trainer, lit, datamodule, last, resume, cfg["run"]["max_epochs_per_start"])
        finally:
            clock.lap("training")
            if first:
                clock.save()  # for the start that goes on, if this one does not come to its end
        if not ended:
            log.info(
                "%d of %d epochs (run.max_epochs_per_start); the same command with run.dir=%s goes on from there",
                trainer.current_epoch, lit.num_epochs, folder,
            )  # fmt: skip
            return None
        metrics = _test(trainer, lit, datamodule, folder)
        clock.lap("test")
        metrics["seconds"] = clock.seconds | {"first_step": first_step_seconds(trainer)}
        metrics["hardware"] = hardware_used(trainer)
        cfg = with_batch_size(cfg, datamodule.batch_size)
        price = cfg["run"]["price_per_hour"]
        if price is not None:
            metrics |= {"cost": clock.seconds["total"] / 3600 * price, "price_per_hour": price}
        if first:
            _save(lit, cfg, metrics, folder)
            clock.file.unlink()
    if first:
        print_closing(metrics, lit.labels, folder)
        _report_bad_images(datamodule, folder)
    return metrics


def _test(trainer: pl.Trainer, lit: LitClassifier, datamodule: PhotoDataModule, folder: Path) -> dict:
    """Figures of the best epoch: train and val from the history, test measured now with the best weights."""
    history = pd.read_csv(folder / "history.csv")
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    lit.load_state_dict(best["state_dict"])
    row = history[history["epoch"] == best["epoch"]].iloc[0].dropna()
    metrics: dict = {"best_epoch": int(row["epoch"])}
    for split in ("train", "val"):
        metrics[split] = {k.removeprefix(f"{split}/"): float(v) for k, v in row.items() if k.startswith(f"{split}/")}
    metrics["test"], metrics["decodings"] = {}, {}
    evaluated = {}
    if len(lit.val_metrics.rules) > 1:  # else the history has all of val already
        evaluated["val"] = (trainer.validate, lit.val_metrics)
    if "test" in datamodule.photos:
        evaluated["test"] = (trainer.test, lit.test_metrics)
    for split, (evaluate, counters) in evaluated.items():
        figures = evaluate(lit, datamodule=datamodule, verbose=False)[0]
        if split == "test":
            metrics["test"] = {name.removeprefix("test/"): value for name, value in figures.items()}
        if len(counters.rules) > 1:
            metrics["decodings"][split] = counters.compute_rules()
    return metrics


def _save(lit: LitClassifier, cfg: dict, metrics: dict, folder: Path) -> None:
    portable.save(
        lit.model, folder, lit.labels, Preprocessing(**lit.hparams.preprocessing), lit.hparams.decoding, metrics, cfg,
        crop_to_box=cfg["data"]["crop_to_box"],
        averaged=cfg["callbacks"]["ema_decay"] is not None,
        epoch=metrics["best_epoch"],
    )  # fmt: skip
    write_metrics(metrics, folder)


def _report_bad_images(datamodule: PhotoDataModule, folder: Path) -> None:
    bad = datamodule.bad_images
    if bad:
        file = folder / "bad_images.csv"
        pd.DataFrame({"path": list(bad), "reason": list(bad.values())}).to_csv(file, index=False)
        log.warning(
            "%d photos could not be read (data.on_bad_image=%s; first: %s); all are in %s",
            len(bad), datamodule.on_bad_image, next(iter(bad)), file,
        )  # fmt: skip


class Clock:
    """Seconds of each stage; "total" of all, and "cpu" of this process and those that read its photos.

    file: what an earlier start of the run took, which is added.
    """

    def __init__(self, file: Path):
        self.file = file
        self.seconds: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
        self.last, self.last_cpu = time.perf_counter(), _cpu_seconds()

    def lap(self, stage: str) -> None:
        now, cpu = time.perf_counter(), _cpu_seconds()
        for name, passed in {stage: now - self.last, "total": now - self.last, "cpu": cpu - self.last_cpu}.items():
            self.seconds[name] = round(self.seconds.pop(name, 0.0) + passed, 3)
        self.last, self.last_cpu = now, cpu

    def save(self) -> None:
        self.file.write_text(json.dumps(self.seconds))


def _cpu_seconds() -> float:
    times = os.times()  # of children: of those that have ended, as Lightning ends its readers after each stage
    return times.user + times.system + times.children_user + times.children_system


@contextlib.contextmanager
def full_disk_is_an_input_error(folder: Path):
    """A full disk ends as one line; checkpoints are written beside the earlier ones, which stay whole."""
    try:
        yield
    except Exception as error:  # safetensors has its own exception, which carries the system's words
        if getattr(error, "errno", None) == errno.EDQUOT or os.strerror(errno.ENOSPC) in str(error):
            raise InputError(
                f"run.dir: no space is left on the disk of {folder}; checkpoints that were complete are still "
                "there. Free some space, or choose another disk with run.dir="
            ) from None
        raise


def _quiet_libraries() -> None:
    """Messages of Lightning that tell a user nothing they could act on."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*The number of training batches.*is smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*Trying to infer the `batch_size`.*",
        ".*sync_dist=True.*",
        ".*LeafSpec.*",
        ".*module.s. in eval mode at the start of training.*",
        ".*lr_scheduler.step.*before.*optimizer.step.*",
    ):
        warnings.filterwarnings("ignore", message)
