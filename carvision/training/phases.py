"""Fit the phases of a run in order, resuming where an earlier start ended."""

import logging

import pytorch_lightning as pl

from carvision.data.datamodule import PhotoDataModule
from carvision.errors import InputError
from carvision.training.lit_classifier import LitClassifier
from carvision.training.resuming import ResumePoint
from carvision.training.stopping import Stopping

log = logging.getLogger(__name__)


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
    for checkpoints in trainer.checkpoint_callbacks:
        checkpoints.forget_best = bool(resume_point and resume_point.best_lost)
    number, first_epoch, epoch = (
        (resume_point.phase, resume_point.phase_begun, resume_point.epochs_done) if resume_point else (0, 0, 0)
    )
    stop = epoch + (max_epochs or lit.num_epochs)
    while number < len(lit.hparams.phases):
        phase = lit.start_phase(number, first_epoch)
        end = epoch if resume_point and resume_point.stopped_early else first_epoch + phase["epochs"]
        trainer.fit_loop.max_epochs = min(end, stop)
        for callback in trainer.early_stopping_callbacks:
            callback.wait_count = 0  # a checkpoint restores its own
        _log_phase(lit, number)
        _fit(trainer, lit, datamodule, resume_point)
        resume_point = None
        first_epoch = trainer.current_epoch
        if trainer.should_stop and first_epoch < end:
            log.info("stopped after epoch %d: no better %s", first_epoch, trainer.early_stopping_callback.monitor)
        elif first_epoch < end:
            return False
        number += 1
        if first_epoch >= stop and number < len(lit.hparams.phases):
            return False
    stopping = next(hook for hook in trainer.callbacks if isinstance(hook, Stopping))
    stopping.stop_between_epochs()  # before the test, which may take long
    return True


def _fit(
    trainer: pl.Trainer, lit: LitClassifier, datamodule: PhotoDataModule, resume_point: ResumePoint | None
) -> None:
    try:
        trainer.fit(lit, datamodule, ckpt_path=resume_point and resume_point.file)
    except SystemExit:  # Lightning's response to a Ctrl-C before `Stopping` handles signals
        raise KeyboardInterrupt from None
    except Exception as error:
        if isinstance(error, InputError) or not (resume_point and lit.restoring):
            raise
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"run.dir: {resume_point.file} does not fit the changed configuration or is of another network ({text}); "
            "give another folder to start anew, there with "
            f"model.weights={resume_point.file} to keep the weights"
        ) from error


def _log_phase(lit: LitClassifier, number: int) -> None:
    phases, phase = lit.hparams.phases, lit.phase
    where = f"phase {number + 1} of {len(phases)}, {phase['name']}: " if len(phases) > 1 else ""
    trained = sum(p.numel() for p in lit.parameters() if p.requires_grad)
    log.info(
        "%s%d epochs, %s, lr %g; trained: %s (%s parameters)",
        where, phase["epochs"], phase["optimizer"]["name"],
        phase["schedule"].get("peak") or phase["optimizer"]["lr"], phase["train_layers"],
        f"{trained:,}",
    )  # fmt: skip
