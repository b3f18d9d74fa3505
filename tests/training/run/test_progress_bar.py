"""The bar of a run: epochs counted as in the lines, running metrics, and the time left of all epochs."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pandas as pd
import pytest
from pytorch_lightning.trainer.states import TrainerFn

from carvision.files import progress
from carvision.files.progress import can_show_bar
from carvision.training.run import expected_time, progress_bar
from carvision.training.run.expected_time import ExpectedTime, duration
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
        state=SimpleNamespace(fn=TrainerFn.FITTING), callbacks=[],
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


def run_of(num_batches: int, seconds_per_photo: float | None = None, cached: tuple[str, ...] = ()):
    """A run of 3 epochs with a frozen backbone, `cached` splits of which have features, and 2 of all layers, on 100
    training photos and 50 others."""
    head, fine = ({**phases()[0], "epochs": n, "train_layers": layers} for n, layers in ((3, "none"), (2, "all")))
    lit = lit_classifier(phases=[head, fine])
    table = SimpleNamespace(rows=pd.DataFrame({"split": ["train"] * 200 + ["val"] * 50}))
    cache = SimpleNamespace(
        table=table, epoch_fraction=0.5, seconds_per_photo=seconds_per_photo,
        replaced=lambda phase: {*cached} if phase["train_layers"] == "none" else set(),
    )  # fmt: skip
    trainer = SimpleNamespace(
        current_epoch=0, num_training_batches=num_batches, num_val_batches=[5], callbacks=[ExpectedTime(cache)],
        state=SimpleNamespace(fn=TrainerFn.FITTING),
    )  # fmt: skip
    return lit, trainer


@pytest.mark.parametrize(("cached", "seconds"), [
    ((), 3 * (100 + 50) + 2 * (3 * 100 + 50)), (("val",), 3 * (100 + 0.5) + 2 * (3 * 100 + 50)),
    (("train", "val"), 3 * 1.5 + 2 * (3 * 100 + 50)),
])  # fmt: skip
def test_the_expected_time_counts_passes_through_the_backbone(cached, seconds, caplog):
    lit, trainer = run_of(10, 0.1, cached)
    caplog.set_level("INFO")
    trainer.callbacks[0].on_train_start(trainer, lit)
    assert caplog.messages == [f"expected time of the 5 epochs: about {seconds / 600:.1f} min"]
    trainer.current_epoch = 3
    lit.start_phase(1, 3)
    trainer.callbacks[0].on_train_start(trainer, lit)
    assert len(caplog.messages) == 1  # once a start
    lit, trainer = run_of(10, 0.1, cached)
    trainer.current_epoch = 4
    lit.start_phase(1, 3)
    trainer.callbacks[0].on_train_start(trainer, lit)
    assert caplog.messages[1:] == ["expected time of the other epoch: about 35 s"]


def test_without_features_the_first_steps_are_timed(monkeypatch, caplog):
    caplog.set_level("INFO")
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(expected_time, "time", SimpleNamespace(monotonic=lambda: clock.now))
    for seconds, batches, expected in [(2.0, 4, True), (0.1, 10, False)]:
        lit, trainer = run_of(10)
        (shown,) = trainer.callbacks
        shown.on_train_start(trainer, lit)
        for i in range(batches):
            clock.now += 9.0 if i == 0 else seconds  # the first batch prepares much
            shown.on_train_batch_end(trainer, lit, None, None, i)
        # 10 photos a batch: 0.2 s a photo; 2.6 epochs of 150 passes, and 2 of 350
        assert caplog.messages == ["expected time of the 5 epochs: about 3.6 min"] * expected
        caplog.clear()  # 11 s in all are not worth a message


def test_the_bar_estimates_later_phases_at_their_own_pace(clock):
    for seconds_per_photo, cached, of_head in [(None, (), 2.0), (0.2, ("train", "val"), 0.01)]:
        lit, trainer = run_of(10, seconds_per_photo, cached)
        bar = RunBar()
        bar.on_train_start(trainer, lit)
        bar.on_train_epoch_start(trainer, lit)
        lit.train_metrics.reset()
        for i in range(2):
            clock.now += of_head
            lit.training_step(batch_of(), i)
            bar.on_train_batch_end(trainer, lit, None, None, i)
        left = (28 + 0.3 * 15) * of_head + 0.2 * 2 * (3 * 100 + 50)
        minutes, seconds = divmod(round(left), 60)
        assert bar.bar.tasks[0].fields["after"].endswith(f"  {minutes}:{seconds:02} left")
        bar.on_train_end(trainer, lit)


def test_a_notebook_without_ipywidgets_is_told_once_and_needs_no_terminal(monkeypatch, caplog):
    caplog.set_level("INFO")
    assert not can_show_bar() and not caplog.messages  # pytest's captured output
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    for found in (None, ModuleSpec("ipywidgets", None)):
        monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name, found=found: found)
        assert can_show_bar() == (found is not None)
    assert caplog.messages == ["no progress bar: in a notebook it needs ipywidgets (%pip install ipywidgets)"]


def test_a_duration_is_rounded():
    seconds = [0.1, 8.4, 59, 60, 90, 569, 570, 3500, 3600, 8280, 86400]
    expected = ["1 s", "8 s", "59 s", "1.0 min", "1.5 min", "9.5 min", "10 min", "58 min", "1.0 h", "2.3 h", "24 h"]
    assert [duration(each) for each in seconds] == expected
