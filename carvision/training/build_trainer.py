"""From the configuration to Lightning's Trainer with its callbacks."""

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from carvision.errors import InputError, nearest
from carvision.metrics import figure_names
from carvision.training.batch_size import FindBatchSize, require_gpu, with_batch_size
from carvision.training.build_phases import build_phases, check_trainer, phase_key
from carvision.training.callbacks import Curves, EpochLines, History, MovingAverage, create_progress_bar
from carvision.training.compiling import FirstStep, require_compiler
from carvision.training.hardware import log_hardware, prepare_cuda, resolve_precision, uses_cuda
from carvision.training.profiling import SimpleProfile, create_profile
from carvision.training.run_folder import write_config


def require_monitor(key: str, monitor: str, known: list[str]) -> None:
    if monitor not in known:
        raise InputError(f"{key}.monitor: {monitor!r} is no figure of this run{nearest(monitor, known)}")


def trainer_values(cfg: dict) -> dict:
    """The keys of conf/trainer as Lightning takes them, but for the profiler. Raises InputError for what this machine
    can't do."""
    values = dict(cfg["trainer"])
    del values["profiler"]
    cuda = uses_cuda(values["accelerator"])
    values["precision"] = resolve_precision(values["precision"], values["accelerator"], values["devices"])
    check_trainer(build_phases(cfg), values)
    if cfg["compile"]:
        require_compiler(values["accelerator"], cuda)
    if cfg["data"]["batch_size"] == "auto":
        require_gpu(values)
    if cuda:
        prepare_cuda()
    # Convolutions are timed when a shape first occurs, to take the fastest; a run has few shapes
    return {**values, "benchmark": cuda and not values["deterministic"]}


def build_trainer(cfg: dict, folder: Path, labels: dict[str, dict]) -> pl.Trainer:
    callbacks = cfg["callbacks"]
    known = [f"{split}/{name}" for split in ("val", "train") for name in figure_names(labels)]
    require_monitor("callbacks", callbacks["monitor"], known)
    values = trainer_values(cfg)
    for phase in build_phases(cfg):
        require_monitor(f"{phase_key(phase)}schedule", phase["schedule"].get("monitor", known[0]), known)
    monitor, mode = callbacks["monitor"], callbacks["mode"]
    # At the end of an epoch, when all else that belongs to it is done: "best" of the best epoch, "last" of every one.
    checkpoints = {"dirpath": folder / "checkpoints", "enable_version_counter": False, "save_on_train_epoch_end": True}
    hooks = [
        History(folder / "history.csv"),
        EpochLines(monitor, mode),
        Curves(folder),
        FirstStep(cfg["compile"]),
        ModelCheckpoint(filename="best", monitor=monitor, mode=mode, **checkpoints),
        ModelCheckpoint(filename="last", **checkpoints),
    ]
    if callbacks["ema_decay"]:
        hooks.append(MovingAverage(callbacks["ema_decay"]))
    if cfg["data"]["batch_size"] == "auto":  # after the averages, which take memory too
        hooks.append(FindBatchSize(lambda number: write_config(with_batch_size(cfg, number), folder), cfg["compile"]))
    profile = create_profile(cfg["trainer"]["profiler"], folder)
    hooks += [profile] if profile else []
    if callbacks["patience"]:
        hooks.append(EarlyStopping(monitor, patience=callbacks["patience"], mode=mode, check_on_train_epoch_end=False))
    if callbacks["progress_bar"]:
        hooks.append(create_progress_bar())
    tensorboard = TensorBoardLogger(folder, name="tensorboard", version="") if cfg["logger"]["tensorboard"] else False
    try:
        trainer = pl.Trainer(
            **{**values, "max_epochs": 1},  # set anew for each phase
            profiler=profile.profiler if isinstance(profile, SimpleProfile) else None,
            callbacks=hooks,
            logger=tensorboard,
            default_root_dir=folder,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the samplers of PhotoDataModule divide the photos themselves
            enable_model_summary=False,  # summary.txt has a better one
            enable_progress_bar=callbacks["progress_bar"],
            log_every_n_steps=10,
        )
    except (MisconfigurationException, ModuleNotFoundError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())[:300]
        raise InputError(
            f"trainer: this machine can't run trainer.accelerator={cfg['trainer']['accelerator']} ({text})"
        ) from None
    log_hardware(trainer, cfg["trainer"]["precision"])
    return trainer
