"""Train a single run: read the photos, build, fit, test the best weights, save the model and its metrics."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytorch_lightning as pl

from carvision.data.build import folds_of
from carvision.data.loading.datamodule import PhotoDataModule
from carvision.data.splits import write_splits
from carvision.data.table import SPLITS, Table
from carvision.files.atomic import link_or_copy, write_csv, write_json, write_text
from carvision.files.folders import LAST
from carvision.inference import model_file
from carvision.reports.summary import print_closing, summarise_network
from carvision.training.batch_size import with_batch_size
from carvision.training.build import build_datamodule, build_lit_classifier
from carvision.training.callbacks import Clock
from carvision.training.compile import FirstStep
from carvision.training.distributed.collectives import gather_objects
from carvision.training.distributed.fsdp import enable_sharding, unshard
from carvision.training.distributed.launch import first_process_first, is_first_process
from carvision.training.features.cache import FeatureCache
from carvision.training.features.linear_start import LinearStart, wants_linear_start
from carvision.training.hardware import hardware_used, set_deterministic
from carvision.training.module import LitClassifier, callbacks_of
from carvision.training.optim import Phase
from carvision.training.run.checkpoints import require_space
from carvision.training.run.expected_time import ExpectedTime
from carvision.training.run.folder import EXTENDING, METRICS, write_config
from carvision.training.run.provenance import write_environment
from carvision.training.run.resume import (
    EarlierRun,
    changed_step_settings,
    load_best,
    require_same_photos,
    resume_point_of,
)
from carvision.training.trainer import build_trainer, fit_phases, splits_needed

log = logging.getLogger(__name__)


def train_single_run(
    cfg: dict,
    folder: Path,
    phases: list[Phase],
    earlier: EarlierRun | None = None,
    ends: float | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> dict | None:
    """Train as `cfg` (plain and checked) says, into the folder. Return the contents of metrics.json; None if
    run.max_epochs_per_start ended this start earlier. Raise Stopped after a signal or run.max_minutes.

    phases: of cfg. earlier: what earlier starts of this run left in the folder, which is resumed. ends:
    time.monotonic() after which this start stops; None: never. callbacks: called before the run's own.
    """
    quiet_libraries()
    set_deterministic(cfg["deterministic"])
    first = is_first_process()
    resume_point, extended, settings_changed = None, None, ""
    if earlier:
        extended = earlier.metrics  # of a finished run, which is trained further
        if cfg["data"]["batch_size"] == "auto":
            cfg = with_batch_size(cfg, earlier.config["data"]["batch_size"])  # the one found, if any
        resume_point = resume_point_of(earlier, phases, cfg["callbacks"]["patience"])
        settings_changed = changed_step_settings(cfg, earlier)
    clock = Clock(folder / "seconds.json", extended and extended.get("seconds"))
    if first and not extended:
        write_config(cfg, folder)
    datamodule, table = _read_photos(cfg, folder, earlier is not None, write=first and not extended)
    clock.lap("reading")
    lit = build_lit_classifier(cfg, datamodule, phases)
    datamodule.require_usable(splits_needed(cfg, phases), list(lit.labels))
    _log_network(cfg, lit)
    lit.step_settings_changed = settings_changed
    require_space(folder, lit, averaged=cfg["callbacks"]["ema_decay"] is not None)
    trainer = build_trainer(cfg, folder, lit, clock, ends, callbacks)
    if cfg["trainer"]["strategy"] == "fsdp":
        enable_sharding(trainer, lit)
    if first:
        if extended and resume_point:  # the run counts as unfinished until its new end
            write_json(folder / EXTENDING, {"epochs": resume_point.epochs_done})
            write_config(cfg, folder)
            write_splits(table, folder / "splits.csv")
        if resume_point and resume_point.file.name != LAST:  # the last one is damaged, or a kill prevented it
            link_or_copy(resume_point.file, folder / "checkpoints" / LAST)
        write_text(folder / "summary.txt", summarise_network(lit.model) + "\n")
        write_environment(folder, cfg, trainer)
    linear = wants_linear_start(cfg, lit.model)
    datamodule.cached_features = cache = FeatureCache(cfg, lit, datamodule, clock, linear)
    hooks: list[pl.Callback] = trainer.callbacks  # pyrefly: ignore[missing-attribute] - see callbacks_of
    hooks[:0] = [*([LinearStart(cache, clock, cfg["seed"])] if linear else []), ExpectedTime(cache)]
    clock.lap("building")
    try:
        ended = fit_phases(trainer, lit, datamodule, resume_point, cfg["run"]["max_epochs_per_start"])
    finally:
        clock.lap("training")
        clock.add("first_step", callbacks_of(trainer, FirstStep)[0].seconds)
        if first:
            clock.save()  # for the next start, if this one does not finish
    if not ended:
        text = "stopping after %d of %d epochs, as run.max_epochs_per_start asks"
        log.info(text, trainer.current_epoch, lit.num_epochs)
        return None
    return _finish(cfg, folder, trainer, lit, datamodule, clock)


def _read_photos(cfg: dict, folder: Path, resume: bool, write: bool) -> tuple[PhotoDataModule, Table]:
    """Return the datamodule and its table. Raise InputError if a resumed run had other photos.

    write: the table's splits are written to the folder.
    """
    with first_process_first():  # it may draw the demo data or download
        datamodule = build_datamodule(cfg, folds_of(cfg["data"]["split"])[0])
    table = datamodule.table
    assert table is not None  # the datamodule is set up
    if resume:
        require_same_photos(table, folder, cfg["run"]["allow_changes"])
    if write:
        write_splits(table, folder / "splits.csv")
    counts = table.rows["split"].value_counts()
    log.info("%s: %s", table.name, ", ".join(f"{counts.get(split, 0):,} {split}" for split in SPLITS))
    if not resume:
        log.info("training into %s", folder)
    return datamodule, table


def _log_network(cfg: dict, lit: LitClassifier) -> None:
    heads = ", ".join(f"{n} ({len(v['ids'])})" if "ids" in v else n for n, v in lit.labels.items())
    log.info("%s: %s parameters; heads: %s", cfg["model"]["backbone"], f"{num_parameters(lit):,}", heads)
    wanted = sum(phase["epochs"] for phase in (cfg["phases"] or {}).values())
    if wanted > lit.num_epochs:
        log.warning("trainer.max_epochs ends the phases after %d of their %d epochs", lit.num_epochs, wanted)


def num_parameters(lit: LitClassifier) -> int:
    return sum(p.numel() for p in lit.parameters())


def _finish(
    cfg: dict, folder: Path, trainer: pl.Trainer, lit: LitClassifier, datamodule: PhotoDataModule, clock: Clock
) -> dict:
    """Test the best weights, and write the model file and the metrics; return the contents of metrics.json."""
    parameters = num_parameters(lit)  # before a sharded network is replaced by a whole one
    metrics = _test(trainer, lit, datamodule, folder, with_test=cfg["run"]["test"])
    clock.lap("test")
    metrics |= {"parameters": parameters, "seconds": clock.seconds, "hardware": hardware_used(trainer)}
    price = cfg["run"]["price_per_hour"]
    if price is not None:
        metrics |= {"cost": clock.seconds["total"] / 3600 * price, "price_per_hour": price}
    bad = {path: reason for part in gather_objects(datamodule.bad_images) for path, reason in part.items()}
    if is_first_process():
        print_closing(metrics, cast(Any, lit.labels), folder, keras=cfg["run"]["keras_metrics"])
        if bad:
            file = folder / "bad_images.csv"
            write_csv(file, pd.DataFrame({"path": list(bad), "reason": list(bad.values())}))
            text = "%d photos could not be read (data.on_bad_image=%s; first: %s); all are in %s"
            log.warning(text, len(bad), datamodule.on_bad_image, next(iter(bad)), file)
        model_file.save(
            lit.model, folder, lit.labels, lit.preprocessing, lit.decoding, metrics,
            with_batch_size(cfg, datamodule.batch_size),
            crop_to_box=cfg["data"]["crop_to_box"],
            averaged=cfg["callbacks"]["ema_decay"] is not None,
            epoch=metrics["best_epoch"],
        )  # fmt: skip
        write_json(folder / METRICS, metrics)  # last: with it the run is finished
        clock.file.unlink(missing_ok=True)
        (folder / EXTENDING).unlink(missing_ok=True)
    return metrics


def _test(trainer: pl.Trainer, lit: LitClassifier, datamodule: PhotoDataModule, folder: Path, with_test: bool) -> dict:
    """Return the metrics of the best epoch: train and val from its checkpoint, test measured now with its weights.
    Undefined metrics, for which no photo counted, are None."""
    unshard(lit)
    best = load_best(folder / "checkpoints", lit)
    metrics: dict = {"best_epoch": best["epoch"], **metrics_of(best), "test": {}, "decodings": {}}
    several_rules = len(lit.val_metrics.rules) > 1
    if several_rules:
        metrics["decodings"]["val"] = best["decodings"]
    if with_test and "test" in datamodule.datasets:
        trainer.test(lit, datamodule=datamodule, verbose=False)
        found = lit.metrics.get("test", {})
        if any(f"{name}/loss" in found for name in lit.labels):
            metrics["test"] = found
            metrics["decodings"] |= {"test": lit.test_metrics.compute_rules()} if several_rules else {}
        else:  # unreadable photos, or all of unknown classes
            datamodule.require_usable(["test"], list(lit.labels))
    return metrics


def metrics_of(checkpoint: dict) -> dict[str, dict[str, float | None]]:
    """Return the metrics {"train", "val"} of a checkpoint's epoch."""
    if "metrics" in checkpoint:
        return checkpoint["metrics"]
    row = checkpoint["callbacks"]["History"]["rows"][-1]  # an earlier version's
    of_split = {split: {k: v for k, v in row.items() if k.startswith(f"{split}/")} for split in ("train", "val")}
    return {split: {k.removeprefix(f"{split}/"): v for k, v in found.items()} for split, found in of_split.items()}


def quiet_libraries() -> None:
    """Silence Lightning's messages that a user can't act on."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*The number of training batches.*is smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*Trying to infer the `batch_size`.*",
        ".*sync_dist=True.*",
        ".*LeafSpec.*",
        ".*module.s. in eval mode at the start of training.*",
        ".*lr_scheduler.step.*before.*optimizer.step.*",
        ".*callbacks used to create the checkpoint need to be provided.*",  # allow_changes may drop a callback
    ):
        warnings.filterwarnings("ignore", message)
