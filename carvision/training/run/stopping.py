"""Stop a start of a run early, with a checkpoint, after a signal or a time limit."""

import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn

from carvision.system.runtime import STOP_SIGNALS
from carvision.training.distributed.collectives import any_process, broadcast_object, num_processes
from carvision.training.distributed.launch import hold_signals
from carvision.training.run.checkpoints import Checkpoints

log = logging.getLogger(__name__)

AGREE_EVERY_S = 5.0  # interval at which several processes agree whether to stop
# Before a checkpoint, checks run (is the loss finite?); this is how often they run between checkpoints
CHECK_EVERY_S = 60.0

if hasattr(os, "register_at_fork"):  # a forked process would pass the signals that it gets to this one
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


class Stopped(BaseException):
    """Raised to end this start; last.ckpt holds all that was done. Not an Exception, so that no handler takes it for an
    error.

    signal: the signal's number; None for a time limit.
    """

    def __init__(self, reason: str, number: int | None = None):
        super().__init__(reason)
        self.signal = number


class Stopping(Callback):
    """Write last.ckpt and raise Stopped after SIGINT, SIGTERM, SIGUSR1, or once time.monotonic() passes `ends`.

    Within an epoch this happens after the current step. During validation the epoch is completed first; a signal during
    the final test ends it at once, and the next start repeats it. checkpoint_every_minutes: also write last.ckpt within
    an epoch.
    """

    def __init__(self, checkpoints: Checkpoints, ends: float | None, checkpoint_every_minutes: float | None):
        self.checkpoints = checkpoints
        self.ends = math.inf if ends is None else ends
        self.every_s = math.inf if checkpoint_every_minutes is None else 60 * checkpoint_every_minutes
        self.received: int | None = None
        self.agreed_at, self.steps, self.steps_between = time.monotonic(), 0, 1
        self.has_begun = False
        self.checked_at = time.monotonic()
        self.previous_handlers: dict = {}
        self.wakeup: socket.socket | None = None

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._set_handlers(lambda number, frame: None)  # signals are received by a thread
        if self.previous_handlers:
            ours, self.wakeup = socket.socketpair()
            self.wakeup.setblocking(False)
            self.previous_wakeup = signal.set_wakeup_fd(self.wakeup.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=(ours,), daemon=True).start()

    def _listen(self, numbers: socket.socket) -> None:
        """Receive the signals that Python writes to the socket. The main thread would handle them only between two of
        its own instructions: not while it waits for a photo, a device or another process, when the system may also have
        given the signal to another thread."""
        with numbers:
            while number := numbers.recv(1):
                if number[0] in STOP_SIGNALS:
                    self._receive(number[0])

    def on_test_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._set_handlers(self._end_at_once if trainer.world_size == 1 else signal.SIG_DFL)

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self.on_test_start(trainer, module)

    def _set_handlers(self, handler: Callable | signal.Handlers) -> None:
        if threading.current_thread() is threading.main_thread():
            self.previous_handlers = {number: signal.signal(number, handler) for number in STOP_SIGNALS}

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)
        self.previous_handlers = {}
        if self.wakeup:
            signal.set_wakeup_fd(self.previous_wakeup)
            self.wakeup.shutdown(socket.SHUT_RDWR)  # ends the thread, though forked processes may have a copy
            self.wakeup.close()
            self.wakeup = None

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, module, "")
        if num_processes() > 1 and not isinstance(exception, Stopped):
            hold_signals(self.received)

    def _receive(self, number: int) -> None:
        if number == self.received:
            os._exit(128 + number)  # a second signal ends at once, even if reading photos hangs
        self.received = number
        if num_processes() > 1:  # who passes the signal on to all processes says so
            return
        hint = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
        log.info(
            "%s: stopping with a checkpoint after this step, or after the validation that is running%s",
            signal.Signals(number).name, hint,
        )  # fmt: skip

    def _end_at_once(self, number: int, frame) -> None:
        raise Stopped(signal.Signals(number).name, number)  # last.ckpt holds all of the training

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs, batch, batch_idx) -> None:
        # After an epoch's last batch, validation and the epoch's checkpoint follow. Checkpoints don't hold accumulated
        # gradients.
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
        """Stop if asked to during a validation; the epoch's checkpoint, written last of all, exists now."""
        if any_process(self._wants_to_stop()):
            self._stop()

    def _schedule_next_check(self) -> None:
        """Choose the step of the next check, the same in all processes: agreeing at every step would make each wait."""
        now = time.monotonic()
        fitting = AGREE_EVERY_S * self.steps / max(now - self.agreed_at, 1e-6)
        self.steps_between = broadcast_object(min(max(1, int(fitting)), 10 * self.steps_between))
        self.steps, self.agreed_at = 0, now

    def _wants_to_stop(self) -> bool:
        # At least one step a start, or repeated starts would never progress
        return self.received is not None or (self.has_begun and time.monotonic() > self.ends)

    def _stop(self) -> None:
        for number in STOP_SIGNALS:
            if any_process(self.received == number):
                raise Stopped(signal.Signals(number).name, number)
        raise Stopped("run.max_minutes")
