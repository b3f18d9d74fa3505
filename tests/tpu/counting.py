"""torch-xla's counters: graphs compiled, and operators that fell back to the CPU."""

from collections import Counter

import torch_xla
from torch_xla.debug import metrics

from carvision.training.distributed.tpu import Steps


def counts() -> Counter[str]:
    """So far: {"compiled": graphs, "aten::...": how often the CPU did that}. _local_scalar_dense: a number was read."""
    times = metrics.metric_data("CompileTime")
    aten = {name: metrics.counter_value(name) for name in metrics.counter_names() if name.startswith("aten::")}
    return Counter(compiled=times[0] if times else 0, **aten)


def check_steps(step, num: int, compiling: int = 1) -> None:
    """Call step(0), step(1), ...: only the first ones may compile, and none leaves the device."""
    for number in range(num):
        before = counts()
        kept = step(number)  # what nothing holds is not computed
        torch_xla.sync()
        assert set(counts() - before) <= ({"compiled"} if number < compiling else set()), number
        del kept


class Counting(Steps):
    """Steps that record what each epoch, with its validation and checkpoints, and each step add to the counts."""

    def __init__(self):
        self.epochs, self.steps, self.epoch_begun = [], [], None

    def on_train_epoch_start(self, *_) -> None:
        if self.epoch_begun is not None:
            self.on_train_end()
        self.epoch_begun = counts()
        self._end()

    def on_train_batch_start(self, *_) -> None:
        self._end()
        self.step_begun = counts()

    def on_train_batch_end(self, *_) -> None:
        self._end()
        self.steps.append(counts() - self.step_begun)

    def on_train_end(self, *_) -> None:
        self.epochs.append(counts() - self.epoch_begun)
