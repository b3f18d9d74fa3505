"""Estimate how long a run's epochs take: before the first where a pass over the photos was timed, else soon after."""

import logging
import math
import time

import pytorch_lightning as pl

from carvision.training.features.cache import FeatureCache
from carvision.training.module import LitClassifier
from carvision.training.optim import Phase

log = logging.getLogger(__name__)

# How many passes through the backbone the step of a training photo takes as long as
TRAINED = 3.0  # a backward pass takes as long as two
CACHED = 0.01  # see docs/benchmarks/cached_features.md
MEASURE_S = 5.0  # of training steps, where no pass was timed
WORTH_S = 30.0  # less time than this is not announced after training has begun


class ExpectedTime(pl.Callback):
    """Log the expected time of the epochs, once a start.

    If the backbone's features were computed, now or earlier, their pass over the photos was timed, and the message
    comes before the first epoch; else after the first steps.
    """

    def __init__(self, cache: FeatureCache):
        self.cache, self.is_logged = cache, False
        split, fraction = cache.table.rows["split"], {"train": cache.epoch_fraction, "val": 1.0}
        self.num_photos = {name: share * (split == name).sum() for name, share in fraction.items()}

    def on_train_start(self, trainer: pl.Trainer, module: LitClassifier) -> None:
        self.began, self.first = math.nan, 0
        if self.cache.seconds_per_photo:
            self._log(module, trainer.current_epoch, self.cache.seconds_per_photo, at_least=0.0)

    def on_train_batch_end(self, trainer: pl.Trainer, module: LitClassifier, outputs, batch, batch_idx: int) -> None:
        if self.is_logged:
            return
        now, num_batches = time.monotonic(), int(trainer.num_training_batches)
        if math.isnan(self.began):  # the first batch prepares much and is not timed
            self.began, self.first = now, batch_idx
        elif now - self.began > MEASURE_S or batch_idx + 1 == num_batches:
            per_batch = (now - self.began) / max(1, batch_idx - self.first)
            done = trainer.current_epoch + (batch_idx + 1) / num_batches
            self._log(module, done, self.seconds_per_photo(trainer, module, per_batch), at_least=WORTH_S)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: LitClassifier) -> None:
        self.began = math.nan  # of an epoch of one batch

    def _log(self, module: LitClassifier, epochs_done: float, seconds_per_photo: float, at_least: float) -> None:
        seconds = self.seconds_from(module, epochs_done, seconds_per_photo)
        if not self.is_logged and seconds >= at_least:
            left = module.num_epochs - int(epochs_done)
            which = f"{left} epochs" if left > 1 else "epoch"
            begun = f"the other {which}" if int(epochs_done) else f"the {which}"
            log.info("expected time of %s: about %s", begun, duration(seconds))
        self.is_logged = True

    def seconds_per_photo(self, trainer: pl.Trainer, module: LitClassifier, per_batch: float) -> float:
        """Return the seconds of a photo's pass through the backbone. per_batch: seconds of a training batch."""
        factor, _ = self._passes(module.phase)
        if factor == CACHED and self.cache.seconds_per_photo:
            return self.cache.seconds_per_photo
        return per_batch * int(trainer.num_training_batches) / (factor * max(1.0, self.num_photos["train"]))

    def seconds_from(self, module: LitClassifier, epochs_done: float, seconds_per_photo: float) -> float:
        """Return the expected seconds of this phase and the later ones, from `epochs_done` on, a number of the whole
        run."""
        passes, begun = 0.0, module.phase_position["phase_begun"]
        for phase in module.phases[module.phase_position["phase"] :]:
            ends = begun + phase["epochs"]
            of_train, of_val = self._passes(phase)
            an_epoch = of_train * self.num_photos["train"] + of_val * self.num_photos["val"]
            passes += max(0.0, ends - max(begun, epochs_done)) * an_epoch
            begun = ends
        return passes * seconds_per_photo

    def seconds_after_phase(self, trainer: pl.Trainer, module: LitClassifier, per_batch: float) -> float:
        """Return the expected seconds of the phases after this one. per_batch: seconds of a training batch of this."""
        ends = module.phase_position["phase_begun"] + module.phase["epochs"]
        return self.seconds_from(module, ends, self.seconds_per_photo(trainer, module, per_batch))

    def _passes(self, phase: Phase) -> tuple[float, float]:
        """Return how many passes through the backbone a training and a validation photo take in the phase."""
        cached = self.cache.replaced(phase)
        of_train = CACHED if "train" in cached else 1.0 if phase["train_layers"] == "none" else TRAINED
        return of_train, CACHED if "val" in cached else 1.0


def duration(seconds: float) -> str:
    """Return a rounded number of seconds, minutes or hours: "8 s", "1.5 min", "12 min", "2.3 h"."""
    for unit, length in {"h": 3600, "min": 60}.items():
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}" if seconds >= 9.5 * length else f"{seconds / length:.1f} {unit}"
    return f"{max(1, round(seconds))} s"
