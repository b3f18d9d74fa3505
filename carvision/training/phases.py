"""Fitting phase after phase, and going on where an earlier start ended."""

import contextlib
import logging
from pathlib import Path

import pytorch_lightning as pl
import torch

from carvision.data.datamodule import PhotoDataModule
from carvision.errors import InputError
from carvision.training.lit_classifier import LitClassifier

log = logging.getLogger(__name__)


def fit_phases(
    trainer: pl.Trainer,
    lit: LitClassifier,
    datamodule: PhotoDataModule,
    last: Path,
    resume: bool = False,
    max_epochs: int | None = None,
) -> bool:
    """Train; whether all phases have ended. Each has an optimizer and a schedule of its own and goes on with the
    weights of the one before. Raises KeyboardInterrupt after Ctrl-C.

    last: the checkpoint of the last epoch, from which `resume` goes on. max_epochs: of this start, all if None.
    """
    number, begun, epoch, stopped = _where_it_ended(last) if resume else (0, 0, 0, False)
    stop = epoch + (max_epochs or lit.num_epochs)
    while number < len(lit.hparams.phases):
        phase = lit.start_phase(number, begun)
        end = epoch if resume and stopped else begun + phase["epochs"]
        trainer.fit_loop.max_epochs = min(end, stop)
        for callback in trainer.early_stopping_callbacks:
            callback.wait_count = 0  # which a checkpoint sets again
        _log_phase(lit, number)
        with contextlib.suppress(SystemExit):  # so Lightning ends after Ctrl-C
            trainer.fit(lit, datamodule, ckpt_path=last if resume else None)
        resume = False
        if trainer.interrupted:
            log.warning(
                "interrupted in epoch %d; history.csv, the curves and checkpoints/ in %s hold the epochs before it",
                trainer.current_epoch + 1, last.parent.parent,
            )  # fmt: skip
            raise KeyboardInterrupt
        begun = trainer.current_epoch
        if trainer.should_stop and begun < end:
            log.info("stopped after epoch %d: no better %s", begun, trainer.checkpoint_callback.monitor)
        elif begun < end:
            return False
        number += 1
        if begun >= stop and number < len(lit.hparams.phases):
            return False
    return True


def _where_it_ended(last: Path) -> tuple[int, int, int, bool]:
    """The phase, the epoch with which it began, the epoch with which training goes on (all count from 0), and whether
    early stopping had ended the phase. Raises InputError for a file that is no checkpoint, and executes nothing."""
    try:
        state = torch.load(last, map_location="cpu", weights_only=True)
        places = state["phase"], state["phase_begun"], state["epoch"] + 1
    except Exception as error:  # of torch, of pickle, of what a file that is none makes of them
        text = " ".join(str(error).split())[:100]
        raise InputError(
            f"run.dir: {last} is no checkpoint of carvision ({text}); give another folder to begin anew"
        ) from None
    log.info("going on after epoch %d", state["epoch"] + 1)
    stopping = [values for name, values in state["callbacks"].items() if name.startswith("EarlyStopping")]
    stopped = any(values["wait_count"] >= values["patience"] for values in stopping)
    return *places, stopped


def _log_phase(lit: LitClassifier, number: int) -> None:
    phases, phase = lit.hparams.phases, lit.phase
    where = f"phase {number + 1} of {len(phases)}, {phase['name']}: " if len(phases) > 1 else ""
    trained = sum(p.numel() for p in lit.parameters() if p.requires_grad)
    log.info(
        "%s%d epochs, %s, lr %g; trained: %s (%s parameters)",
        where, phase["epochs"], phase["optimizer"]["name"], phase["optimizer"]["lr"], phase["train_layers"],
        f"{trained:,}",
    )  # fmt: skip
