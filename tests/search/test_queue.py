"""The next trial: each runs once, no more than requested, and an interrupted one continues, whichever worker asks."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState

from carvision.search import queue as queue_module
from carvision.search.build import build_sweep
from carvision.search.queue import BROKEN, CELL, DEATHS, RETRY_OF, ROOT, SURPLUS, Queue, cells_of, is_finished, latest
from carvision.search.report import trials_frame
from tests import forked
from tests.search.small_sweeps import LR, claim, claim_quietly, queue_of, small_sweep, trials_of

pytestmark = pytest.mark.optuna
GRID = ["sweep=grid", "optimizer=sgd,adam,adamw", "seed=range(4)"]


def work(folder: Path, words: list[str], pause_s: float) -> None:
    """Run a worker whose trials only wait."""
    queue = queue_of(small_sweep(folder, *words))
    while claimed := claim(queue):
        time.sleep(pause_s)
        queue.study.tell(claimed[0], 1.0)
        claimed[1].end()


def start(count: int, folder: Path, words: list[str], pause_s: float = 0.0) -> list[multiprocessing.Process]:
    processes = [forked.process(work, folder, words, pause_s) for _ in range(count)]
    for process in processes:
        process.start()
    return processes


def interrupt(queue: Queue, death: bool = True) -> int:
    """Claim a trial and mark it as interrupted; return its number."""
    trial = claim_quietly(queue)
    queue.mark_interrupted(queue.storage.get_trial(trial._trial_id), "gone", death)
    return trial.number


@pytest.mark.parametrize("words, num", [([LR, "sweep.trials=15"], 15), (GRID, 12)], ids=["sampled", "grid"])
def test_independent_workers_run_each_trial_once(words, num, tmp_path):
    for process in start(3, tmp_path / "sweep", words):
        process.join()
        assert process.exitcode == 0
    trials = trials_of(tmp_path / "sweep")
    run = [trial for trial in trials if SURPLUS not in trial.user_attrs]
    assert [trial.state for trial in run] == [TrialState.COMPLETE] * num and len(latest(trials)) == num
    assert len({str(sorted(trial.params.items())) for trial in run}) == num  # no two drew the same values
    assert all(trial.state.is_finished() for trial in trials)


def test_a_killed_worker_on_this_machine_is_detected_at_once_and_its_trial_continues(tmp_path):
    folder, words = tmp_path / "sweep", [LR, "sweep.trials=3", "sweep.dead_after_s=1000"]
    (process,) = start(1, folder, words, pause_s=1000)
    forked.wait_until(lambda: (folder / "running").is_dir() and any(trial.params for trial in trials_of(folder)))
    queue = queue_of(small_sweep(folder, *words))
    second, heartbeat = claim(queue)
    assert second.number == 1 and queue.others_running()["alive"][0].number == 0
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    heartbeat.end()
    queue.study.tell(second, 1.0)
    assert claim_quietly(queue).number == 2
    before, _, after = queue.trials()
    assert before.state == TrialState.FAIL and before.user_attrs[BROKEN]
    assert after.user_attrs[RETRY_OF] == after.user_attrs[ROOT] == 0 and after.params == before.params
    assert queue_module.folder_of(after) == queue_module.folder_of(before)


def test_a_worker_on_another_machine_is_dead_when_its_heartbeat_stops(tmp_path, monkeypatch):
    sweep = small_sweep(tmp_path / "sweep", LR, "sweep.dead_after_s=2")
    theirs, ours = queue_of(sweep), queue_of(sweep)
    monkeypatch.setattr(queue_module.platform, "node", lambda: "theirs")
    _, heartbeat = claim(theirs)
    monkeypatch.setattr(queue_module.platform, "node", lambda: "ours")
    assert [trial.number for trial in ours.others_running()["unknown"]] == [0]
    forked.wait_until(lambda: ours.others_running()["alive"])
    ours.requeue_stale_trials()
    assert ours.trials()[0].state == TrialState.RUNNING
    heartbeat.ended.set()
    forked.wait_until(lambda: ours.others_running()["dead"])
    ours.requeue_stale_trials()
    assert [trial.state for trial in ours.trials()] == [TrialState.FAIL, TrialState.WAITING]


def test_a_trial_fails_after_its_last_retry(tmp_path):
    queue = queue_of(small_sweep(tmp_path / "sweep", LR, "sweep.trials=1", "sweep.retries=2"))
    assert [interrupt(queue, death=False), *(interrupt(queue) for _ in range(3))] == [0, 1, 2, 3]
    assert claim(queue) is None
    trials = queue.trials()
    assert [trial.user_attrs[DEATHS] for trial in trials] == [0, 1, 2, 3]
    assert [trial.user_attrs.get(ROOT, 0) for trial in trials] == [0, 0, 0, 0] and len(latest(trials)) == 1
    assert len({trial.params["optimizer.lr"] for trial in trials}) == 1
    assert is_finished(trials[-1], 2) and not is_finished(trials[-2], 2)


def test_a_cell_whose_worker_died_before_drawing_is_drawn_by_the_next(tmp_path):
    queue = queue_of(small_sweep(tmp_path / "sweep", *GRID, "sweep.cells=[5]"))
    for _ in range(2):
        trial, heartbeat = queue.next()
        heartbeat.end()
        queue.mark_interrupted(queue.storage.get_trial(trial._trial_id), "gone")
    trial = claim_quietly(queue)
    assert trial.user_attrs[ROOT] == 0 and trial.params == queue.sweep.space.grid()[5]


def test_requesting_fewer_trials_and_then_more_loses_none(tmp_path):
    words = [tmp_path / "sweep", LR]
    queue = queue_of(small_sweep(*words, "sweep.trials=3"))
    for _ in range(2):
        queue.study.tell(claim_quietly(queue), 1.0)
    interrupt(queue)
    assert claim(queue_of(small_sweep(*words, "sweep.trials=1"))) is None
    assert claim_quietly(queue_of(small_sweep(*words, "sweep.trials=3"))).user_attrs[ROOT] == 2


def test_a_trial_that_two_workers_requeue_at_once_continues_once(tmp_path):
    queue = queue_of(small_sweep(tmp_path / "sweep", LR, "sweep.trials=1"))
    interrupt(queue)
    queue.requeue_stale_trials()
    requeued = queue.trials()[1]
    queue.study.enqueue_trial(requeued.params, dict(requeued.user_attrs))  # as the other worker does
    trial = claim_quietly(queue)
    assert trial.number == 1
    queue.study.tell(trial, 1.0)
    assert claim(queue) is None
    assert queue.trials()[2].user_attrs[SURPLUS] and queue.trials()[2].state == TrialState.FAIL


def test_a_trial_that_another_worker_marked_as_interrupted_is_left_alone(tmp_path):
    queue = queue_of(small_sweep(tmp_path / "sweep", LR))
    frozen = queue.storage.get_trial(claim_quietly(queue)._trial_id)
    queue.mark_interrupted(frozen, "one")
    queue.mark_interrupted(frozen, "two")
    assert queue.trials()[0].user_attrs["why"] == "one"


def test_a_fraction_of_the_grid_is_the_same_cells_for_every_network(tmp_path):
    words = ["sweep=grid", "optimizer.lr=0.1,0.01,0.001", "seed=range(24)", "sweep.grid_fraction=0.2"]
    cells = [cells_of(small_sweep(tmp_path, *words, f"model.backbone={name}")) for name in ("test_resnet", "resnet18")]
    assert cells[0] == cells[1] and len(set(cells[0])) == 14 and max(cells[0]) > 35
    assert cells_of(small_sweep(tmp_path, *words, "sweep.seed=1")) != cells[0]
    queue = queue_of(small_sweep(tmp_path / "sweep", *words))
    assert claim_quietly(queue).user_attrs[CELL] == cells[0][0] and len(queue.trials()) == 14
    assert trials_frame(queue.sweep, queue.trials())["cell"].tolist() == cells[0]  # for carvision.compare --matrix


R4_SGD = {0: (0.1, 0.5, "True", 0.01), 3: (0.1, 0.9, "False", 0.1), 12: (0.001, 0.9, "True", 0.1)}
R4_RMSPROP = {0: (0.1, 0.5, 1e-4, 0.2), 4: (0.1, 0.9, 1e-4, 0.001), 13: (0.01, 0.75, 1e-4, 0.1)}


@pytest.mark.parametrize("name, printed", [("r4_sgd", R4_SGD), ("r4_rmsprop", R4_RMSPROP)])
def test_the_cells_of_report_r4_are_those_in_its_tables(name, printed):
    sweep = build_sweep([f"sweep={name}", "data.root=flowers"])
    grid, cells = sweep.space.grid(), cells_of(sweep)
    assert {index: tuple(grid[cells[index]].values()) for index in printed} == printed
