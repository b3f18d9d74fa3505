"""Fitting phase after phase, and going on where an earlier start ended."""

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
    place: ResumePoint | None = None,
    max_epochs: int | None = None,
) -> bool:
    """Train; whether all phases have ended. Each has an optimizer and a schedule of its own and goes on with the
    weights of the one before. Raises Stopped where a signal or a limit of time ended it.

    place: from where to go on. max_epochs: of this start, all if None.
    """
    for checkpoints in trainer.checkpoint_callbacks:
        checkpoints.forget_best = bool(place and place.best_lost)
    number, begun, epoch = (place.phase, place.phase_begun, place.epochs_done) if place else (0, 0, 0)
    stop = epoch + (max_epochs or lit.num_epochs)
    while number < len(lit.hparams.phases):
        phase = lit.start_phase(number, begun)
        end = epoch if place and place.stopped_early else begun + phase["epochs"]
        trainer.fit_loop.max_epochs = min(end, stop)
        for callback in trainer.early_stopping_callbacks:
            callback.wait_count = 0  # which a checkpoint sets again
        _log_phase(lit, number)
        _fit(trainer, lit, datamodule, place)
        place = None
        begun = trainer.current_epoch
        if trainer.should_stop and begun < end:
            log.info("stopped after epoch %d: no better %s", begun, trainer.early_stopping_callback.monitor)
        elif begun < end:
            return False
        number += 1
        if begun >= stop and number < len(lit.hparams.phases):
            return False
    stopping = next(hook for hook in trainer.callbacks if isinstance(hook, Stopping))
    stopping.stop_between_epochs()  # before the test, which takes its time, too
    return True


def _fit(trainer: pl.Trainer, lit: LitClassifier, datamodule: PhotoDataModule, place: ResumePoint | None) -> None:
    try:
        trainer.fit(lit, datamodule, ckpt_path=place and place.file)
    except SystemExit:  # so Lightning ends after a Ctrl-C that came before `Stopping` was there to take it
        raise KeyboardInterrupt from None
    except Exception as error:
        if isinstance(error, InputError) or not (place and lit.restoring):
            raise
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"run.dir: {place.file} does not fit the changed configuration or is of another network ({text}); give "
            f"another folder to begin anew, there with model.weights={place.file} where the weights are to be kept"
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
