"""Ending a start of a run before the run is over, with a checkpoint: signals, and limits of time."""

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn

from carvision.training.checkpoints import Checkpoints
from carvision.training.many_processes import any_process, broadcast_object

log = logging.getLogger(__name__)

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
AGREE_EVERY_S = 5.0  # several processes ask each other so often whether to stop
CHECK_EVERY_S = 60.0  # so often what a checkpoint waits for is asked without one: is the loss still a number?


class Stopped(BaseException):
    """The start ends here, and last.ckpt holds all that was done. No Exception, so that nothing takes it for an error.

    signal: the one that asked for it, or None where a limit of time did.
    """

    def __init__(self, reason: str, number: int | None = None):
        super().__init__(reason)
        self.signal = number


class Stopping(Callback):
    """Writes last.ckpt and raises Stopped after SIGINT, SIGTERM, SIGUSR1, or when time.monotonic() is past `ends`.

    Within an epoch that is after the step at hand; in a validation, which is then brought to its end, after the epoch.
    The test after training ends at once: the next start begins it anew.
    checkpoint_every_minutes: also writes last.ckpt within an epoch, and goes on.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        ends: float | None,
        checkpoint_every_minutes: float | None,
    ):
        self.checkpoints = checkpoints
        self.ends = math.inf if ends is None else ends
        self.every_s = math.inf if checkpoint_every_minutes is None else 60 * checkpoint_every_minutes
        self.received: int | None = None
        self.asked_at, self.steps, self.steps_between = time.monotonic(), 0, 1
        self.has_begun = False
        self.checked_at = time.monotonic()
        self.before: dict = {}

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._listen(self._receive)

    def on_test_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._listen(self._end_at_once if trainer.world_size == 1 else signal.SIG_DFL)

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self.on_test_start(trainer, module)

    def _listen(self, handler: Callable | signal.Handlers) -> None:
        # After Lightning has set its own, which broadcast inside of a handler, and could hang there
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, handler) for number in SIGNALS}

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, module, "")

    def _receive(self, number: int, frame) -> None:
        if number == self.received:
            os._exit(128 + number)  # the second one waits for nothing, not even for photos that do not come
        self.received = number
        again = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
        log.info(
            "%s: the start ends with a checkpoint after this step, or the validation that is running%s",
            signal.Signals(number).name, again,
        )  # fmt: skip

    def _end_at_once(self, number: int, frame) -> None:
        raise Stopped(signal.Signals(number).name, number)  # all of training is in last.ckpt

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs, batch, batch_idx) -> None:
        # The last batch of an epoch is followed by validation and the epoch's own checkpoint. Gradients that are being
        # accumulated are in no checkpoint.
        self.steps += 1
        self.has_begun = True
        last = batch_idx + 1 == trainer.num_training_batches
        if last or (batch_idx + 1) % trainer.accumulate_grad_batches or self.steps < self.steps_between:
            return
        if trainer.world_size > 1:
            self._schedule_next_check()
        stop = any_process(self._wants_to_stop())
        if stop or any_process(time.monotonic() - self.checkpoints.saved_at > self.every_s):
            self.checkpoints.save(trainer)
        elif any_process(time.monotonic() - self.checked_at > CHECK_EVERY_S):
            self.checkpoints.before(trainer)
            self.checked_at = time.monotonic()
        if stop:
            self._stop()

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.stop_between_epochs()

    def stop_between_epochs(self) -> None:
        """What a validation let wait; the epoch's checkpoint, written last of all that ends an epoch, is there now."""
        if any_process(self._wants_to_stop()):
            self._stop()

    def _schedule_next_check(self) -> None:
        """At the same step in all processes, for which none may wait at every step."""
        now = time.monotonic()
        fitting = AGREE_EVERY_S * self.steps / max(now - self.asked_at, 1e-6)
        self.steps_between = broadcast_object(min(max(1, int(fitting)), 10 * self.steps_between))
        self.steps, self.asked_at = 0, now

    def _wants_to_stop(self) -> bool:
        # A start takes one step at least, or ever so many starts would come no further
        return self.received is not None or (self.has_begun and time.monotonic() > self.ends)

    def _stop(self) -> None:
        for number in SIGNALS:
            if any_process(self.received == number):
                raise Stopped(signal.Signals(number).name, number)
        raise Stopped("run.max_minutes")
