"""Callbacks: the moving average of the weights, recomputed."""

import pytorch_lightning as pl
import torch

from carvision.training.callbacks import MovingAverage
from tests.training.test_module import batch_of, fit, lit_classifier

DECAY = 0.5  # reached at the eighth update


class Naive(pl.Callback):
    """{name: the average}, from the weights and statistics after each step."""

    def __init__(self):
        self.num, self.average = 0, {}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        decay = min(DECAY, (1 + self.num) / (10 + self.num)) if self.num else 0.0
        for name, value in module.model.state_dict().items():
            if value.is_floating_point():
                before = self.average.get(name, torch.zeros_like(value))
                self.average[name] = decay * before + (1 - decay) * value
            else:
                self.average[name] = value.clone()
        self.num += 1


def test_weights_and_statistics_are_averaged_with_a_decay_that_is_warmed_up():
    lit, naive = lit_classifier(), Naive()
    fit(lit, [batch_of(8, seed=seed) for seed in range(10)], 1, naive, MovingAverage(DECAY))
    assert naive.num == 10
    for name, value in lit.model.state_dict().items():
        torch.testing.assert_close(value, naive.average[name], rtol=1e-4, atol=1e-6)
    counters = [value for name, value in lit.model.state_dict().items() if name.endswith("num_batches_tracked")]
    assert counters and all(counter == 10 for counter in counters)
