"""The bar of a run: epochs counted as in the lines, running metrics, and the time left of all epochs."""

from types import SimpleNamespace

import pytest
from pytorch_lightning.trainer.states import TrainerFn

from carvision.training.run import progress_bar
from carvision.training.run.progress_bar import RunBar
from tests.training.test_module import batch_of, lit_classifier, phases


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress_bar, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.mark.parametrize(("columns", "shown"), [(120, ["loss", "make", "model"]), (80, ["loss", "make", "model"]),
                                                (64, ["loss", "model"]), (30, ["loss"])])  # fmt: skip
def test_the_bar_counts_epochs_and_estimates_the_whole_run(clock, columns, shown, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    lit = lit_classifier(phases=[{**phases()[0], "epochs": 6}])
    trainer = SimpleNamespace(
        current_epoch=0, num_training_batches=10, num_val_batches=[4], num_test_batches=[5],
        state=SimpleNamespace(fn=TrainerFn.FITTING),
    )  # fmt: skip
    bar = RunBar()
    bar.on_train_start(trainer, lit)
    bar.on_train_epoch_start(trainer, lit)
    lit.train_metrics.reset()
    for i in range(10):
        clock.now += 9.0 if i == 0 else 2.0  # the first batch prepares much
        lit.on_train_batch_start(batch_of(), i)
        lit.training_step(batch_of(), i)
        bar.on_train_batch_end(trainer, lit, None, None, i)
        (task,) = bar.bar.tasks
        if i == 0:
            assert (task.description, task.completed, task.total) == ("epoch 1/6", 1, 10)
    metrics, left = lit.train_metrics.compute(), task.fields["after"].split("  ")[-1]
    expected = {"loss": f"loss {metrics['loss']:.3f}"}
    expected |= {head: f"{head} {100 * metrics[f'{head}/top1']:.1f} %" for head in ("make", "model")}
    assert task.fields["after"].split("  ")[:-1] == [expected[name] for name in shown]
    # 50 batches of 2 s, and 24 of validation, which are taken to need 0.3 of that
    assert left == "1:54 left"
    for i in range(4):
        clock.now += 0.5
        bar.on_validation_batch_end(trainer, lit, None, None, i)
    assert (task.description, task.completed, task.total) == ("validation", 4, 4)
    assert task.fields["after"].endswith("1:50 left")  # 50 of 2 s, 20 of 0.5 s
    trainer.current_epoch = 5
    bar.on_train_epoch_start(trainer, lit)
    clock.now += 2
    bar.on_train_batch_end(trainer, lit, None, None, 9)
    assert task.description == "epoch 6/6" and task.fields["after"].endswith("0:02 left")
    bar.on_train_end(trainer, lit)
    assert bar.bar is None
    trainer.state.fn = TrainerFn.VALIDATING
    bar.on_validation_batch_end(trainer, lit, None, None, 0)  # of the best weights, after training
    assert bar.bar is None
    bar.on_test_batch_end(trainer, lit, None, None, 4)
    assert bar.bar.tasks[0].description == "test" and bar.bar.finished
    bar.on_exception(trainer, lit, KeyboardInterrupt())
    assert bar.bar is None
