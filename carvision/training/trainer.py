"""Build Lightning's Trainer with its callbacks, and fit the phases of a run one after another."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from carvision.data.loading.datamodule import PhotoDataModule
from carvision.errors import InputError, one_line, suggest
from carvision.files.atomic import create_folder
from carvision.files.progress import can_show_bar
from carvision.metrics import metric_names
from carvision.reports.comparison.frame import lower_is_better
from carvision.training.batch_size import FindBatchSize, require_gpu, with_batch_size
from carvision.training.callbacks import Clock, Curves, EpochLines, History, MovingAverage, Patience, ReadAhead
from carvision.training.compile import FirstStep, require_compiler
from carvision.training.distributed.fsdp import SyncStatistics, check_fsdp, create_strategy
from carvision.training.distributed.launch import create_environment, is_first_process, require_all_used
from carvision.training.hardware import SimpleProfile, TorchProfile, device_name, resolve_precision, uses_cuda
from carvision.training.module import LitClassifier, callbacks_of
from carvision.training.nonfinite import NonFiniteLoss
from carvision.training.optim import Phase, check_trainer, phase_key
from carvision.training.run.checkpoints import AtomicCheckpointIO, Checkpoints
from carvision.training.run.folder import write_config
from carvision.training.run.progress_bar import RunBar
from carvision.training.run.resume import ResumePoint
from carvision.training.run.stopping import Stopping

log = logging.getLogger(__name__)


def build_trainer(
    cfg: dict, folder: Path, lit: LitClassifier, clock: Clock, ends: float | None, callbacks: Sequence[pl.Callback] = ()
) -> pl.Trainer:
    """Build the Trainer for the run in `folder`.

    ends: time.monotonic() after which this start stops; None: never. callbacks: called before the run's own. Raises
    InputError for what this machine can't run.
    """
    monitors = monitors_of(cfg, lit.phases)
    check_monitors(monitors, metric_names(lit.labels, lit.metric_learning is not None, with_auc=True))
    lit.monitors = list(monitors.values())
    values = trainer_values(cfg, lit.phases)
    kind = cfg["trainer"]["profiler"]
    profile = {"simple": SimpleProfile, "torch": TorchProfile}[kind](folder) if kind else None
    hooks = [*([profile] if profile else []), *callbacks, *build_callbacks(cfg, folder, lit, clock, ends)]
    tensorboard = _create_tensorboard(folder) if cfg["logger"]["tensorboard"] else False
    try:
        trainer = pl.Trainer(
            **values,
            profiler=profile.profiler if isinstance(profile, SimpleProfile) else None,
            callbacks=hooks,
            logger=tensorboard,
            default_root_dir=folder,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the samplers of PhotoDataModule divide the photos themselves
            enable_model_summary=False,  # summary.txt has a better one
            enable_progress_bar=False,  # RunBar is ours
            log_every_n_steps=10,
        )
    except (MisconfigurationException, ModuleNotFoundError, ValueError, RuntimeError) as error:
        accelerator = f"trainer.accelerator={cfg['trainer']['accelerator']}"
        raise InputError(f"trainer: this machine can't run {accelerator} ({one_line(error, 300)})") from None
    trainer.fit_loop.epoch_loop, trainer._signal_connector = EpochLoop(trainer), NoSignals(trainer)
    if cfg["trainer"]["accelerator"] != "tpu":
        require_all_used(trainer.num_devices, trainer.num_nodes)
    origin = " (trainer.precision=auto)" if cfg["trainer"]["precision"] == "auto" else ""
    log.info("%s, precision %s%s", device_name(trainer.strategy.root_device), trainer.precision, origin)
    return trainer


class EpochLoop(_TrainingEpochLoop):
    """Lightning's loop of the batches of an epoch, without its question to the first of several processes, at every
    step, whether it got SIGTERM: each step would wait for the device. run.stopping asks now and then."""

    def _broadcast_sigterm_tensor(self) -> None:
        pass


class NoSignals(_SignalConnector):
    """Leave the signals to run.stopping: Lightning's handler broadcasts from wherever the process is, which can
    deadlock."""

    def register_signal_handlers(self) -> None:
        pass


def trainer_values(cfg: dict, phases: list[Phase]) -> dict:
    """Return the keys of conf/trainer as arguments of pl.Trainer, without the profiler. Raises InputError for what this
    machine or these phases can't run."""
    values = dict(cfg["trainer"])
    del values["profiler"]
    cuda = uses_cuda(values["accelerator"])
    wanted = (values[key] for key in ("precision", "accelerator", "devices", "strategy"))
    values["precision"] = resolve_precision(*wanted)
    check_trainer(phases, values)
    if cfg["compile"]:
        require_compiler(values["accelerator"], cuda)
    if cfg["data"]["batch_size"] == "auto":
        require_gpu(values)
    if cuda:  # TF32 (10 bits of mantissa) for float32 products, as torch allows it for convolutions by default
        torch.set_float32_matmul_precision("high")
    if values["strategy"] == "fsdp":
        check_fsdp(cfg, values["precision"])
        values["strategy"] = create_strategy()
    if values["accelerator"] == "tpu":
        from carvision.training.distributed import tpu

        values = tpu.trainer_arguments(values, AtomicCheckpointIO())
    else:
        values["plugins"] = [AtomicCheckpointIO(), create_environment()]
    # cuDNN's benchmark times the kernels of each new shape; a run has few shapes
    values |= {"deterministic": cfg["deterministic"] or None, "benchmark": cuda and not cfg["deterministic"]}
    return {**values, "max_epochs": 1}  # fit_phases sets it for each phase


def _create_tensorboard(folder: Path) -> TensorBoardLogger:
    if is_first_process():
        described = create_folder(folder / "tensorboard") / TensorBoardLogger.NAME_HPARAMS_FILE
        if described.is_symlink():  # Lightning would write through it
            described.unlink()
    return TensorBoardLogger(folder, name="tensorboard", version="")


def build_callbacks(cfg: dict, folder: Path, lit: LitClassifier, clock: Clock, ends: float | None) -> list[pl.Callback]:
    """Return the callbacks in call order. The last two save checkpoints, after all others have updated their state."""
    callbacks, run = cfg["callbacks"], cfg["run"]
    monitor, mode = callbacks["monitor"], callbacks["mode"]
    nonfinite = NonFiniteLoss(folder)
    checkpoints = Checkpoints(folder / "checkpoints", monitor, mode, before=nonfinite.check_all)
    hooks: list[pl.Callback] = [nonfinite, clock, FirstStep(cfg["compile"]), ReadAhead()]
    history = History(folder / "history.csv")
    hooks += [history, EpochLines(checkpoints.is_best), Curves(folder, history, cfg["run"]["keras_metrics"])]
    if cfg["trainer"]["accelerator"] == "tpu":
        from carvision.training.distributed import tpu  # late import: torch-xla has its own environment

        hooks.insert(0, tpu.Steps())
    if callbacks["ema_decay"]:
        hooks.append(MovingAverage(callbacks["ema_decay"]))
    # After MovingAverage, whose copy of the weights takes memory too
    hooks.append(FindBatchSize(lambda number: write_config(with_batch_size(cfg, number), folder)))
    if callbacks["patience"]:
        hooks.append(Patience(*stop_rule(callbacks), patience=callbacks["patience"]))
    if callbacks["progress_bar"] and can_show_bar() and is_first_process():
        hooks.append(RunBar())
    if cfg["trainer"]["strategy"] == "fsdp":
        hooks.append(SyncStatistics())
    stopping = Stopping(checkpoints, ends, run["checkpoint_every_minutes"])
    return [*hooks, stopping, checkpoints]


def stop_rule(callbacks: dict) -> tuple[str, str]:
    """Return the metric that early stopping watches and its mode, "min" or "max"."""
    monitor, mode = callbacks["stop_monitor"], callbacks["stop_mode"]
    if monitor is None:
        return callbacks["monitor"], mode or callbacks["mode"]
    return monitor, mode or ("min" if lower_is_better(monitor) else "max")


def monitors_of(cfg: dict, phases: list[Phase]) -> dict[str, str]:
    """Return {key: metric} of the metrics that choose epochs, stop training or change learning rates."""
    callbacks = cfg["callbacks"]
    found = {"callbacks.monitor": callbacks["monitor"]}
    if callbacks["stop_monitor"]:
        found["callbacks.stop_monitor"] = callbacks["stop_monitor"]
    for phase in phases:
        if "monitor" in phase["schedule"]:
            found[f"{phase_key(phase)}schedule.monitor"] = phase["schedule"]["monitor"]
    return found


def check_monitors(monitors: dict[str, str], names: list[str]) -> None:
    """Raise InputError if a monitor is not a metric of this run. monitors: {key: metric}. names: without the split."""
    known = [f"{split}/{name}" for split in ("val", "train") for name in names]
    for key, monitor in monitors.items():
        if monitor not in known:
            raise InputError(f"{key}: {monitor!r} is no metric of this run{suggest(monitor, known)}")


def splits_needed(cfg: dict, phases: list[Phase]) -> list[str]:
    """Return the splits that need at least one usable photo for the run to finish."""
    monitored = any(monitor.startswith("val/") for monitor in monitors_of(cfg, phases).values())
    return ["train", *(["val"] if monitored else []), *(["test"] if cfg["run"]["test"] else [])]


def fit_phases(
    trainer: pl.Trainer,
    lit: LitClassifier,
    datamodule: PhotoDataModule,
    resume_point: ResumePoint | None = None,
    max_epochs: int | None = None,
) -> bool:
    """Fit all phases; return whether all have ended. Each has its own optimizer and schedule and continues with the
    previous phase's weights. Raise Stopped after a signal or a time limit.

    resume_point: None for a new run. max_epochs: of this start; None: all.
    """
    for checkpoints in callbacks_of(trainer, Checkpoints):
        checkpoints.forget_best = bool(resume_point and resume_point.best_lost)
    # Epochs are counted over the whole run
    number, first_epoch, epochs_done = 0, 0, 0
    if resume_point:
        number, first_epoch, epochs_done = resume_point.phase, resume_point.phase_begun, resume_point.epochs_done
    start_ends = epochs_done + (max_epochs or lit.num_epochs)
    while number < len(lit.phases):
        phase = lit.start_phase(number, first_epoch)
        phase_ends = epochs_done if resume_point and resume_point.stopped_early else first_epoch + phase["epochs"]
        trainer.fit_loop.max_epochs = min(phase_ends, start_ends)
        for patience in callbacks_of(trainer, Patience):
            patience.wait_count = 0  # a checkpoint restores its own
        _log_phase(lit, number)
        _fit(trainer, lit, datamodule, resume_point)
        resume_point = None
        first_epoch = trainer.current_epoch
        if trainer.should_stop and first_epoch < phase_ends:
            log.info("stopped after epoch %d: no better %s", first_epoch, callbacks_of(trainer, Patience)[0].monitor)
        elif first_epoch < phase_ends:
            return False
        number += 1
        if first_epoch >= start_ends and number < len(lit.phases):
            return False
    callbacks_of(trainer, Stopping)[0].stop_between_epochs()  # before the test, which may take long
    return True


def _fit(
    trainer: pl.Trainer, lit: LitClassifier, datamodule: PhotoDataModule, resume_point: ResumePoint | None
) -> None:
    try:
        trainer.fit(lit, datamodule, ckpt_path=resume_point.file if resume_point else None)
    except SystemExit:  # Lightning's response to a Ctrl-C before `Stopping` handles signals
        raise KeyboardInterrupt from None
    except Exception as error:
        if isinstance(error, InputError) or not (resume_point and lit.restoring):
            raise
        text = one_line(error, 200)
        raise InputError(
            f"run.dir: {resume_point.file} does not fit the changed configuration or is of another network ({text}); "
            f"use a new run.dir to start anew, with model.weights={resume_point.file} to keep the weights"
        ) from error


def _log_phase(lit: LitClassifier, number: int) -> None:
    phase, optimizer = lit.phase, lit.phase["optimizer"]
    where = f"phase {number + 1} of {len(lit.phases)}, {phase['name']}: " if len(lit.phases) > 1 else ""
    trained = sum(p.numel() for p in lit.parameters() if p.requires_grad)
    lr, layers = phase["schedule"].get("peak") or optimizer["lr"], f"{phase['train_layers']} ({trained:,} parameters)"
    epochs = f"{phase['epochs']} epoch{'s' * (phase['epochs'] != 1)}"
    log.info("%s%s, %s, lr %g; trained: %s", where, epochs, optimizer["name"], lr, layers)
