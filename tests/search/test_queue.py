"""Which trial comes next: each once, no more than asked for, and what broke off goes on, whoever else is at work."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from carvision.search import queue as alive
from carvision.search.build import build_sweep
from carvision.search.queue import (
    BROKEN,
    CELL,
    DEATHS,
    RETRY_OF,
    ROOT,
    SURPLUS,
    cells_of,
    folder_of,
    is_finished,
    latest,
)
from carvision.search.report import trials_frame
from tests import forked
from tests.search.small_sweeps import LR, queue_of, small_sweep, trials_of

pytestmark = pytest.mark.optuna
optuna.logging.set_verbosity(optuna.logging.ERROR)
GRID = ["sweep=grid", "optimizer=sgd,adam,adamw", "seed=range(4)"]


def take(queue):
    """One trial, drawn, with its sign of life."""
    claimed = queue.next()
    if claimed:
        queue.sweep.space.draw(claimed[0])
    return claimed


def work(folder: Path, words: list[str], pause: float) -> None:
    """A worker whose trials do nothing."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    queue = queue_of(small_sweep(folder, *words))
    while claimed := take(queue):
        time.sleep(pause)
        queue.study.tell(claimed[0], 1.0)
        claimed[1].end()


def start(count: int, folder: Path, words: list[str], pause: float = 0.0) -> list[multiprocessing.Process]:
    processes = [forked.process(work, folder, words, pause) for _ in range(count)]
    for process in processes:
        process.start()
    return processes


@pytest.mark.parametrize("words, num", [([LR, "sweep.trials=25"], 25), (GRID, 12)], ids=["drawn", "grid"])
def test_workers_that_know_nothing_of_each_other_run_each_trial_once(words, num, tmp_path):
    for process in start(3, tmp_path / "sweep", words):
        process.join()
        assert process.exitcode == 0
    trials = trials_of(tmp_path / "sweep")
    run = [trial for trial in trials if SURPLUS not in trial.user_attrs]
    assert [trial.state for trial in run] == [TrialState.COMPLETE] * num and len(latest(trials)) == num
    assert len({str(sorted(trial.params.items())) for trial in run}) == num  # nor are the same values drawn by two
    assert all(trial.state.is_finished() for trial in trials)


def test_a_dead_worker_of_this_machine_is_found_at_once_and_its_trial_goes_on(tmp_path):
    words = [LR, "sweep.trials=3", "sweep.dead_after_s=1000"]
    (process,) = start(1, tmp_path / "sweep", words, pause=1000)
    while process.is_alive() and (
        not (running := (tmp_path / "sweep" / "running").is_dir() and trials_of(tmp_path / "sweep"))
        or not running[0].params
    ):
        time.sleep(0.05)
    queue = queue_of(small_sweep(tmp_path / "sweep", *words))
    second, sign = take(queue)
    assert second.number == 1 and queue.others_running()["alive"][0].number == 0
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    sign.end()
    queue.study.tell(second, 1.0)
    again, sign = take(queue)
    sign.end()
    before, _, after = queue.trials()
    assert before.state == TrialState.FAIL and before.user_attrs[BROKEN] and again.number == 2
    assert after.user_attrs[RETRY_OF] == after.user_attrs[ROOT] == 0 and after.params == before.params
    assert folder_of(after) == folder_of(before)


class OtherMachine:
    """The sign of life of a worker on a machine of another name."""

    def __init__(self, queue, monkeypatch):
        monkeypatch.setattr(alive.platform, "node", lambda: "other")
        self.trial, self.sign = take(queue)
        monkeypatch.setattr(alive.platform, "node", lambda: "this")


def test_of_another_machine_only_a_sign_that_does_not_come_tells_that_it_has_died(tmp_path, monkeypatch):
    sweep = small_sweep(tmp_path / "sweep", LR, "sweep.dead_after_s=2")
    theirs, ours = queue_of(sweep), queue_of(sweep)
    other = OtherMachine(theirs, monkeypatch)
    assert [t.number for t in ours.others_running()["unknown"]] == [0]
    until = time.monotonic() + 60
    while not ours.others_running()["alive"] and time.monotonic() < until:
        time.sleep(0.1)
    ours.requeue_stale_trials()
    assert ours.trials()[0].state == TrialState.RUNNING
    other.sign.ended.set()  # no more signs
    while not ours.others_running()["dead"] and time.monotonic() < until:
        time.sleep(0.1)
    ours.requeue_stale_trials()
    assert ours.trials()[0].state == TrialState.FAIL and ours.trials()[1].state == TrialState.WAITING


def mark_interrupted(queue, death: bool = True):
    trial, sign = take(queue)
    sign.end()
    queue.mark_interrupted(queue.storage.get_trial(trial._trial_id), "gone", death)
    return trial.number


def test_a_trial_goes_on_so_often_and_then_counts_as_failed(tmp_path):
    queue = queue_of(small_sweep(tmp_path / "sweep", LR, "sweep.trials=1", "sweep.retries=2"))
    assert [mark_interrupted(queue, death=False), *(mark_interrupted(queue) for _ in range(3))] == [0, 1, 2, 3]
    assert take(queue) is None
    trials = queue.trials()
    assert [trial.user_attrs[DEATHS] for trial in trials] == [0, 1, 2, 3]
    assert [trial.user_attrs.get(ROOT, 0) for trial in trials] == [0, 0, 0, 0] and len(latest(trials)) == 1
    assert len({trial.params["optimizer.lr"] for trial in trials}) == 1
    assert is_finished(trials[-1], 2) and not is_finished(trials[-2], 2)


def test_a_cell_whose_worker_died_before_it_drew_is_drawn_by_the_next(tmp_path):
    queue = queue_of(small_sweep(tmp_path / "sweep", *GRID, "sweep.cells=[5]"))
    for _ in range(2):
        trial, sign = queue.next()
        sign.end()
        queue.mark_interrupted(queue.storage.get_trial(trial._trial_id), "gone")
    trial, sign = take(queue)
    sign.end()
    assert trial.user_attrs[ROOT] == 0 and trial.params == queue.sweep.space.grid()[5]


def test_fewer_trials_and_then_more_again_lose_none(tmp_path):
    words = [tmp_path / "sweep", LR]
    queue = queue_of(small_sweep(*words, "sweep.trials=3"))
    for _ in range(2):
        trial, sign = take(queue)
        sign.end()
        queue.study.tell(trial, 1.0)
    mark_interrupted(queue)
    assert take(queue_of(small_sweep(*words, "sweep.trials=1"))) is None
    trial, sign = take(queue_of(small_sweep(*words, "sweep.trials=3")))
    sign.end()
    assert trial.user_attrs[ROOT] == 2


def test_what_two_workers_bring_back_at_the_same_moment_goes_on_once(tmp_path):
    queue = queue_of(small_sweep(tmp_path / "sweep", LR, "sweep.trials=1"))
    mark_interrupted(queue)
    queue.requeue_stale_trials()
    known = queue.trials()[1]
    queue.study.enqueue_trial(known.params, dict(known.user_attrs))  # as the other one does
    trial, sign = take(queue)
    sign.end()
    assert trial.number == 1
    queue.study.tell(trial, 1.0)
    assert take(queue) is None
    assert queue.trials()[2].user_attrs[SURPLUS] and queue.trials()[2].state == TrialState.FAIL


def test_a_trial_that_others_took_over_is_not_broken_off_twice(tmp_path):
    queue = queue_of(small_sweep(tmp_path / "sweep", LR))
    trial, sign = take(queue)
    sign.end()
    frozen = queue.storage.get_trial(trial._trial_id)
    queue.mark_interrupted(frozen, "one")
    queue.mark_interrupted(frozen, "two")
    assert queue.trials()[0].user_attrs["why"] == "one"


def test_a_share_of_the_grid_is_the_same_draw_for_every_network(tmp_path):
    words = ["sweep=grid", "optimizer.lr=0.1,0.01,0.001", "seed=range(24)", "sweep.grid_fraction=0.2"]
    cells = [cells_of(small_sweep(tmp_path, *words, f"model.backbone={name}")) for name in ("test_resnet", "resnet18")]
    assert cells[0] == cells[1] and len(set(cells[0])) == 14 and max(cells[0]) > 35
    assert cells_of(small_sweep(tmp_path, *words, "sweep.seed=1")) != cells[0]
    queue = queue_of(small_sweep(tmp_path / "sweep", *words))
    trial, sign = take(queue)
    sign.end()
    assert trial.user_attrs[CELL] == cells[0][0] and len(queue.trials()) == 14
    assert trials_frame(queue.sweep, queue.trials())["cell"].tolist() == cells[0]  # for carvision.compare --matrix


@pytest.mark.parametrize(
    "name, printed",
    [
        (
            "r4_sgd",
            {
                0: (0.1, 0.5, "True", 0.01),
                1: (0.1, 0.75, "True", 0.2),
                3: (0.1, 0.9, "False", 0.1),
                10: (0.01, 0.9, "False", 0.001),
                11: (0.001, 0.75, "False", 0.001),
                12: (0.001, 0.9, "True", 0.1),
            },
        ),
        ("r4_rmsprop", {0: (0.1, 0.5, 1e-4, 0.2), 4: (0.1, 0.9, 1e-4, 0.001), 13: (0.01, 0.75, 1e-4, 0.1)}),
    ],
)
def test_the_cells_of_report_r4_are_those_that_its_tables_print(name, printed):
    sweep = build_sweep([f"sweep={name}", "data.root=flowers"])
    grid = sweep.space.grid()
    for place, values in printed.items():
        assert tuple(grid[cells_of(sweep)[place]].values()) == values
