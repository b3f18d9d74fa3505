"""torch-xla's counters: graphs compiled, and operators that fell back to the CPU."""

import torch_xla
from torch_xla.debug import metrics

from carvision.training.distributed.tpu import Steps


def counts() -> dict[str, int]:
    """So far: {"compiled": graphs, "aten::...": how often the CPU did that}. _local_scalar_dense: a number was read."""
    times = metrics.metric_data("CompileTime")
    aten = {name: metrics.counter_value(name) for name in metrics.counter_names() if name.startswith("aten::")}
    return {"compiled": times[0] if times else 0, **aten}


def grown(before: dict[str, int]) -> dict[str, int]:
    return {name: value - before.get(name, 0) for name, value in counts().items() if value != before.get(name, 0)}


def counted_steps(step, num: int = 5) -> list[dict[str, int]]:
    """Return what each call of step(0), step(1), ... adds to the counts."""
    found = []
    for number in range(num):
        before = counts()
        kept = step(number)  # what nothing holds is not computed
        torch_xla.sync()
        found.append(grown(before))
        del kept
    return found


class Counting(Steps):
    """Steps that record what each epoch, with its validation and checkpoints, and each step add to the counts."""

    def __init__(self):
        self.epochs, self.steps, self.begun = [], [], None

    def on_train_epoch_start(self, *_) -> None:
        self._close_epoch()
        self.begun = counts()
        self._end()

    def on_train_batch_start(self, *_) -> None:
        self._end()
        self.step_begun = counts()

    def on_train_batch_end(self, *_) -> None:
        self._end()
        self.steps.append(grown(self.step_begun))

    def on_train_end(self, *_) -> None:
        self._close_epoch()

    def _close_epoch(self) -> None:
        if self.begun is not None:
            self.epochs.append(grown(self.begun))
