"""From the configuration to Lightning's Trainer with its callbacks."""

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from carvision.errors import InputError, nearest
from carvision.metrics import figure_names
from carvision.training.build_phases import build_phases, check_trainer, phase_key
from carvision.training.callbacks import Curves, EpochLines, History, MovingAverage, create_progress_bar
from carvision.training.launch import create_environment, require_all_used
from carvision.training.many_processes import let_steps_run
from carvision.training.sharding import SameStatistics, check_fsdp, create_strategy


def require_monitor(key: str, monitor: str, known: list[str]) -> None:
    if monitor not in known:
        raise InputError(f"{key}.monitor: {monitor!r} is no figure of this run{nearest(monitor, known)}")


def build_trainer(cfg: dict, folder: Path, labels: dict[str, dict]) -> pl.Trainer:
    let_steps_run()
    callbacks = cfg["callbacks"]
    known = [f"{split}/{name}" for split in ("val", "train") for name in figure_names(labels)]
    require_monitor("callbacks", callbacks["monitor"], known)
    check_trainer(build_phases(cfg), cfg["trainer"])
    for phase in build_phases(cfg):
        require_monitor(f"{phase_key(phase)}schedule", phase["schedule"].get("monitor", known[0]), known)
    monitor, mode = callbacks["monitor"], callbacks["mode"]
    # At the end of an epoch, when all else that belongs to it is done: "best" of the best epoch, "last" of every one.
    checkpoints = {"dirpath": folder / "checkpoints", "enable_version_counter": False, "save_on_train_epoch_end": True}
    hooks = [
        History(folder / "history.csv"),
        EpochLines(monitor, mode),
        Curves(folder),
        ModelCheckpoint(filename="best", monitor=monitor, mode=mode, **checkpoints),
        ModelCheckpoint(filename="last", **checkpoints),
    ]
    if callbacks["ema_decay"]:
        hooks.append(MovingAverage(callbacks["ema_decay"]))
    if callbacks["patience"]:
        hooks.append(EarlyStopping(monitor, patience=callbacks["patience"], mode=mode, check_on_train_epoch_end=False))
    if callbacks["progress_bar"]:
        hooks.append(create_progress_bar())
    arguments = {**cfg["trainer"], "max_epochs": 1}  # set anew for each phase
    if cfg["trainer"]["accelerator"] == "tpu":
        from carvision.training import xla  # only now: torch-xla lives in an environment of its own

        arguments |= xla.trainer_arguments(cfg["trainer"])
        hooks.insert(0, xla.Steps())
    else:
        arguments["plugins"] = [create_environment()]
    if cfg["trainer"]["strategy"] == "fsdp":
        check_fsdp(cfg)
        arguments["strategy"] = create_strategy()
        hooks.append(SameStatistics())
    tensorboard = TensorBoardLogger(folder, name="tensorboard", version="") if cfg["logger"]["tensorboard"] else False
    try:
        trainer = pl.Trainer(
            **arguments,
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
    require_all_used(trainer.num_devices, trainer.num_nodes)
    return trainer
