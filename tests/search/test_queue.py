"""The next trial: each runs once, no more than requested, and an interrupted one continues, whichever worker asks."""

import os
import random
import signal
import time
from collections import Counter
from multiprocessing import Process

import pytest
from optuna.trial import TrialState

from carvision.files.atomic import create_folder
from carvision.search import queue as queue_module
from carvision.search.build import Sweep, build_sweep
from carvision.search.queue import CELL, DEATHS, WHY, WORKER, Heartbeat, Queue, best_first
from carvision.search.report import trials_frame
from tests import forked
from tests.search.small_sweeps import LR, claim, claim_quietly, queue_of, small_sweep, study_of, trials_of

pytestmark = pytest.mark.optuna
GRID = ["sweep=grid", "optimizer=sgd,adam,adamw", "seed=range(4)"]
EPOCHS = 4
KILL_ROUNDS = int(os.environ.get("CARVISION_KILL_ROUNDS", "1"))


def work(sweep: Sweep, pause_s: float) -> None:
    """Run a worker whose epochs only wait. Each adds a line to the trial's file; a continued trial keeps its lines."""
    queue = queue_of(sweep)
    while not queue.is_over():
        if not (claimed := claim(queue)):
            time.sleep(0.05)
            continue
        trial, heartbeat = claimed
        file = create_folder(sweep.folder / "logs") / f"{trial.number}.txt"
        for epoch in range(len(file.read_text().splitlines()) if file.exists() else 0, EPOCHS):
            time.sleep(pause_s)
            queue.storage.set_trial_intermediate_value(trial._trial_id, epoch, 1.0)
            with file.open("a") as lines:
                lines.write(f"{epoch}\n")
        heartbeat.end()
        if heartbeat.is_ours():
            queue.study.tell(trial, 1.0)
            with (file.parent / "told.txt").open("a") as lines:
                lines.write(f"{trial.number}\n")
    queue.presence.end()


def start(sweep: Sweep, pause_s: float) -> Process:
    process = forked.process(work, sweep, pause_s)
    process.start()
    return process


def interrupt(queue: Queue, died: bool = True) -> int:
    """Claim a trial and put it back; return its number."""
    frozen = queue.storage.get_trial(claim_quietly(queue)._trial_id)
    queue.put_back(frozen, "gone", died)
    return frozen.number


@pytest.mark.parametrize("words, num", [([LR, "sweep.trials=15"], 15), (GRID, 12)], ids=["sampled", "grid"])
def test_independent_workers_run_each_trial_once(words, num, storage_words, tmp_path):
    sweep = small_sweep(tmp_path / "sweep", *words, *storage_words)
    for process in [start(sweep, pause_s=0.0) for _ in range(4)]:
        process.join()
        assert process.exitcode == 0
    trials = study_of(sweep).get_trials()
    assert [trial.state for trial in trials[:num]] == [TrialState.COMPLETE] * num
    assert {trial.state for trial in trials[num:]} <= {TrialState.WAITING}
    assert len({str(sorted(trial.params.items())) for trial in trials[:num]}) == num  # no two drew the same values
    assert not [path for path in (tmp_path / "sweep" / "running").iterdir() if path.is_dir()]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(KILL_ROUNDS))
def test_killed_workers_lose_and_repeat_nothing(seed, storage_words, tmp_path):
    """CARVISION_KILL_ROUNDS=50 repeats it, with kills at other moments."""
    words = [LR, "sweep.trials=12", "sweep.retries=99", "sweep.dead_after_s=10", "sweep.sampler=random", *storage_words]
    sweep, chance = small_sweep(tmp_path / "sweep", *words), random.Random(seed)
    workers, kills = [start(sweep, pause_s=0.05) for _ in range(4)], 0
    while any(worker.exitcode != 0 for worker in workers):
        time.sleep(chance.uniform(0, 0.1))
        for index, worker in enumerate(workers):
            if worker.exitcode == -signal.SIGKILL:
                workers[index] = start(sweep, pause_s=0.05)
            else:
                assert worker.exitcode in (None, 0)
        for worker in workers if chance.random() < 0.1 else [chance.choice(workers)]:
            if kills < 12 and worker.is_alive():
                worker.kill()
                worker.join()
                kills += 1
    trials = study_of(sweep).get_trials()
    assert [trial.state for trial in trials[:12]] == [TrialState.COMPLETE] * 12 and kills >= 4
    assert {trial.state for trial in trials[12:]} <= {TrialState.WAITING}
    undisturbed = queue_of(small_sweep(tmp_path / "undisturbed", *words[:2], words[4]))
    told = Counter((sweep.folder / "logs" / "told.txt").read_text().split())
    assert told.keys() <= {str(number) for number in range(12)} and max(told.values()) == 1
    for trial in trials[:12]:
        assert trial.params == claim_quietly(undisturbed).params
        lines = (sweep.folder / "logs" / f"{trial.number}.txt").read_text().split()
        assert lines == [*map(str, range(EPOCHS))] and sorted(trial.intermediate_values) == [*range(EPOCHS)]


def test_a_killed_worker_on_this_machine_is_detected_at_once_and_its_trial_continues(tmp_path):
    sweep = small_sweep(tmp_path / "sweep", LR, "sweep.trials=2", "sweep.dead_after_s=1000")
    process = start(sweep, pause_s=1000)
    running = sweep.folder / "running"
    forked.wait_until(lambda: running.is_dir() and any(trial.params for trial in trials_of(sweep.folder)))
    queue = queue_of(sweep)
    before, second = queue.trials()[0], claim_quietly(queue)
    assert second.number == 1 and claim(queue) is None and not queue.is_over()
    process.kill()
    process.join()
    queue.study.tell(second, 1.0)
    after = queue.storage.get_trial(claim_quietly(queue)._trial_id)
    assert after.number == 0 and after.params == before.params and len(queue.trials()) == 2
    assert after.user_attrs[DEATHS] == 1 and after.user_attrs[WORKER]["id"] == queue.presence.worker["id"]
    queue.study.tell(0, 1.0)
    assert queue.is_over()


def test_a_worker_on_another_machine_is_dead_when_its_heartbeat_stops_and_notices_it(tmp_path, monkeypatch):
    sweep = small_sweep(tmp_path / "sweep", LR, "sweep.trials=1", "sweep.dead_after_s=1")
    monkeypatch.setattr(queue_module.platform, "node", lambda: "theirs")
    theirs = queue_of(sweep)
    monkeypatch.setattr(queue_module.platform, "node", lambda: "ours")
    ours = queue_of(sweep)
    trial, heartbeat = claim(theirs)
    beats = [0]
    while beats[-1] < 8:  # two seconds
        assert ours.next() is None
        beats.append(theirs.trials()[0].user_attrs.get("beat", 0))
    monkeypatch.setattr(heartbeat, "storage", None)  # as if cut off from it
    taken = []
    forked.wait_until(lambda: any(taken) or taken.append(claim_quietly(ours)) or any(taken))
    assert taken[-1].number == 0 and taken[-1].params == trial.params
    monkeypatch.undo()
    forked.wait_until(heartbeat.lost.is_set)
    assert not heartbeat.is_ours() and not heartbeat.thread.is_alive()
    assert ours.trials()[0].user_attrs[WORKER]["host"] == "ours"


def test_a_stopped_worker_on_this_machine_is_dead_when_its_heartbeat_stops(tmp_path):
    sweep = small_sweep(tmp_path / "sweep", LR, "sweep.trials=1", "sweep.dead_after_s=1")
    process = start(sweep, pause_s=1000)
    forked.wait_until(lambda: (sweep.folder / "running").is_dir() and any(t.params for t in trials_of(sweep.folder)))
    os.kill(process.pid, signal.SIGSTOP)  # as by Ctrl-Z
    queue, taken = queue_of(sweep), []
    forked.wait_until(lambda: any(taken) or taken.append(claim_quietly(queue)) or any(taken))
    assert taken[-1].number == 0 and queue.trials()[0].user_attrs[DEATHS] == 1
    process.kill()


def test_of_two_workers_that_took_a_trial_the_first_notices(tmp_path):
    """As may happen where disks have no locks."""
    one, two = (queue_of(small_sweep(tmp_path / "sweep", LR)) for _ in range(2))
    trial, first = one.next()
    second = Heartbeat(two.storage, trial._trial_id, two.presence.worker)
    assert second.is_ours() and not first.is_ours() and first.lost.is_set()
    first.end(), second.end()


def test_a_trial_fails_after_its_last_retry(tmp_path):
    queue = queue_of(small_sweep(tmp_path / "sweep", LR, "sweep.trials=1", "sweep.retries=2"))
    assert [interrupt(queue, died=False), *(interrupt(queue) for _ in range(3))] == [0, 0, 0, 0]
    assert claim(queue) is None and queue.is_over()
    (trial,) = queue.trials()
    assert trial.state == TrialState.FAIL and trial.user_attrs[DEATHS] == 3 and trial.user_attrs[WHY] == "gone"
    queue.put_back(trial, "late", died=True)  # as another worker does that saw it running
    assert queue.trials()[0].user_attrs[WHY] == "gone"


def test_requesting_fewer_trials_and_then_more_loses_none(tmp_path):
    words = [tmp_path / "sweep", LR]
    queue = queue_of(small_sweep(*words, "sweep.trials=3"))
    for _ in range(2):
        queue.study.tell(claim_quietly(queue), 1.0)
    interrupt(queue)
    assert claim(queue_of(small_sweep(*words, "sweep.trials=1"))) is None
    assert claim_quietly(queue_of(small_sweep(*words, "sweep.trials=3"))).number == 2


def test_a_trial_too_many_waits_until_more_are_requested(tmp_path, monkeypatch):
    queue = queue_of(small_sweep(tmp_path / "sweep", LR, "sweep.trials=1"))
    queue.study.ask()  # by another machine's worker, after we have looked and before we ask
    monkeypatch.setattr(queue, "_can_start", lambda: True)
    assert queue.next() is None
    assert [trial.state for trial in queue.trials()] == [TrialState.RUNNING, TrialState.WAITING]
    assert claim_quietly(queue_of(small_sweep(tmp_path / "sweep", LR, "sweep.trials=2"))).number == 1


def test_the_best_trials_are_those_of_the_pareto_front_then_by_the_first_objective(tmp_path):
    study = study_of(small_sweep(tmp_path / "sweep", LR, "sweep.objective={val/loss: min, val/model/top1: max}"))
    for values in ((3.0, 0.1), (1.0, 0.5), (2.0, 0.9), (1.5, 0.5), (1.0, 0.5), (2.0, 0.8)):
        study.tell(study.ask(), values)
    assert [trial.number for trial in best_first(study)] == [1, 4, 2, 3, 5, 0]
    study = study_of(small_sweep(tmp_path / "other", LR, "callbacks.mode=max"))
    for value in (1.0, 3.0, 2.0, 3.0):
        study.tell(study.ask(), value)
    study.ask()
    assert [trial.number for trial in best_first(study)] == [1, 3, 2, 0]


def test_a_fraction_of_the_grid_is_the_same_cells_for_every_network(tmp_path):
    words = ["sweep=grid", "optimizer.lr=0.1,0.01,0.001", "seed=range(24)", "sweep.grid_fraction=0.2"]
    cells = [small_sweep(tmp_path, *words, f"model.backbone={name}").cells for name in ("test_resnet", "resnet18")]
    assert cells[0] == cells[1] and len(set(cells[0])) == 14 and max(cells[0]) > 35
    assert small_sweep(tmp_path, *words, "sweep.seed=1").cells != cells[0]
    queue = queue_of(small_sweep(tmp_path / "sweep", *words))
    for cell in cells[0][:3]:
        trial = claim_quietly(queue)
        assert trial.user_attrs[CELL] == cell and trial.params == queue.sweep.space.grid()[cell]
    assert trials_frame(queue.sweep, queue.trials())["cell"].tolist() == cells[0][:3]  # for carvision.compare --matrix


@pytest.mark.parametrize("name, printed", [
    ("r4_sgd", {0: (0.1, 0.5, "True", 0.01), 3: (0.1, 0.9, "False", 0.1), 12: (0.001, 0.9, "True", 0.1)}),
    ("r4_rmsprop", {0: (0.1, 0.5, 1e-4, 0.2), 4: (0.1, 0.9, 1e-4, 0.001), 13: (0.01, 0.75, 1e-4, 0.1)}),
])  # fmt: skip
def test_the_cells_of_report_r4_are_those_in_its_tables(name, printed):
    sweep = build_sweep([f"sweep={name}", "data.root=flowers"])
    grid = sweep.space.grid()
    assert {index: tuple(grid[sweep.cells[index]].values()) for index in printed} == printed
