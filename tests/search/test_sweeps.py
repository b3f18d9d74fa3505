"""Whole searches, as users start them: what they write, and that no interruption loses anything."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from optuna.trial import TrialState

from carvision.files.locks import is_locked
from carvision.search import queue as queue_module
from carvision.search import worker as worker_module
from carvision.search.run import caches_features
from carvision.search.study import open_storage, open_study
from carvision.sweep import sweep
from tests import forked
from tests.forked import wait_until
from tests.search.small_sweeps import LR, claim_quietly, overrides_for, queue_of, small_sweep, table_of, trials_of
from tests.small_runs import demo

HEADS = ["~model/head@model.heads.make", "+model/head@model.heads.speed=linear"]
HYPERBAND = ["sweep=hyperband", "trainer.max_epochs=3", "sweep.reduction_factor=3", "sweep.keep=2", "sweep.trials=9"]
LOCKS = Path("/proc/locks")  # of Linux
HYPERBAND += ["optimizer.lr=tag(log,interval(1e-3,3))", "optimizer=choice(sgd,adamw)"]
HYPERBAND += ["optimizer.momentum=tag('optimizer==sgd',choice(0,0.9))"]
# Plots take a third of the time of so small a search
NO_PLOTS = """
from carvision.search import plots
plots.write_plots = lambda *_: None
"""


def start(folder: Path, *words: str, plots: bool = False):
    """Start carvision.sweep in its own process; return it with the file that its output goes to."""
    out = folder.with_name(f"{folder.name}.{time.monotonic_ns()}")
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    first = "" if plots else NO_PLOTS
    words = overrides_for(folder, *words)
    return forked.start("carvision.sweep", *words, cwd=folder.parent, env=variables, out=out, first=first), out


def search(folder: Path, *words: str, check: int = 0, plots: bool = False) -> subprocess.CompletedProcess:
    process, out = start(folder, *words, plots=plots)
    (done,) = forked.finish([process], [out])
    assert done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def hyperband(tmp_path_factory, demo_photos) -> tuple[Path, subprocess.CompletedProcess]:
    """Return the folder of a finished search, and its process."""
    folder = tmp_path_factory.mktemp("sweeps") / "hyperband"
    return folder, search(folder, *demo(demo_photos), *HYPERBAND, *HEADS, plots=True)


@pytest.mark.optuna
def test_the_value_is_the_best_validation_and_only_the_best_trials_keep_their_checkpoints(hyperband):
    folder, done = hyperband
    table = table_of(folder)
    assert len(table) == 9 and set(table["state"]) == {"complete", "pruned"}
    for number, row in table.iterrows():
        run = folder / row["folder"]
        history = pd.read_csv(run / "history.csv")
        assert run.name == f"{number:04d}" and len(history) == row["epochs"]
        if row["state"] == "complete":
            assert row["val/loss"] == pytest.approx(history["val/loss"].min(), rel=1e-4) and row["epochs"] == 3
            assert row["best_epoch"] == history["val/loss"].idxmin() + 1
            assert json.loads((run / "metrics.json").read_text())["test"] == {}
        else:
            assert row["epochs"] == 1 and not (run / "metrics.json").exists()
    assert [len(trial.intermediate_values) for trial in trials_of(folder)] == table["epochs"].tolist()
    assert "  bracket 1: 60%, about 5 trials; one of 3 continues after 1" in done.stderr
    assert done.stdout.splitlines()[-1] == f"sweep: {folder}" and "The best trials" in done.stdout
    saved = 2 * (table["state"] == "pruned").sum()
    assert f"epochs: {table['epochs'].sum()} spent, {saved} saved" in done.stderr
    best = table.dropna(subset="best_epoch").sort_values("val/loss")["folder"].tolist()[:2]
    for name in ("checkpoints/best.ckpt", "model.safetensors"):
        assert {file.relative_to(folder) for file in folder.rglob(name)} == {Path(run, name) for run in best}
    for name in ("history", "importance", "slices", "parallel"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
    page = (folder / "search.html").read_text()
    headings = {"All trials", *(f"Val loss by {what}" for what in ("trial", "epoch", "optimizer.lr"))}
    assert headings <= set(re.findall("<h2>(.*)</h2>", page)) and "://" not in page
    assert len(page) < 300_000  # no library is in it


def test_the_best_trial_is_an_experiment_of_its_own_over_several_seeds(hyperband, run_forked, tmp_path):
    folder, _ = hyperband
    best = table_of(folder).sort_values("val/loss").iloc[0]
    words = ["--config-dir", folder, "experiment=best", "run.seeds=[0,3]", f"run.dir={tmp_path / 'again'}"]
    run_forked("carvision.train", *words, "callbacks.progress_bar=false", "run.report=false", check=0)
    first, other = (json.loads((tmp_path / "again" / f"seed_{n}" / "metrics.json").read_text()) for n in (0, 3))
    assert first["val"]["loss"] == pytest.approx(best["val/loss"], rel=1e-4) and first["test"] and other["test"]
    runs = tmp_path / "again" / "seed_3", folder / best["folder"]
    own, trial = (yaml.safe_load((run / "config.yaml").read_text()) for run in runs)
    assert own["optimizer"]["name"] == best["optimizer"] and sorted(own["model"]["heads"]) == ["model", "speed"]
    assert ("momentum" in own["optimizer"]) == (best["optimizer"] == "sgd") and own.pop("seed") == 3
    del own["run"], trial["run"], trial["seed"]
    assert own == trial


def test_trials_without_memory_or_with_impossible_keys_fail_alone(tmp_path, demo_photos):
    """Three layers from 10 units, each half the one before: the third would have 2.5."""
    follows = "+sweep.follows={model.trunk.hidden: '${halving:${units},${layers}}'}"
    words = ["sweep=grid", "units=choice(10,4000000000,12)", "layers=range(1,4,step=2)", follows, "sweep.keep=1"]
    done = search(tmp_path / "sweep", *demo(demo_photos), *words)
    table = table_of(tmp_path / "sweep")
    assert table["state"].tolist() == ["complete", "fail", "fail", "fail", "complete", "complete"]
    assert "2.5 is not a whole number" in table["why"][1] and "memory" in table["why"][2]
    assert "6 of 6 trials have ended; 3 failed" in done.stderr


def test_a_worker_gives_up_after_three_failures_and_a_search_of_failed_trials_ends_with_status_1(tmp_path):
    words = ["data=folder", "data.root=nowhere", LR]
    done = search(tmp_path / "first", *words, check=1)
    assert "first 3 trials of this worker failed, the last with: data.root: /" in done.stderr.splitlines()[-1]
    for _ in range(2):  # the same command again finds nothing left to run
        done = search(tmp_path / "sweep", *words, "sweep.trials=2", check=1)
        [line] = [line for line in done.stderr.splitlines() if line.startswith("error")]
        assert "sweep: all 2 trials failed, the last with: data.root: /" in line and "sweep.dir=<folder>" in line
    assert table_of(tmp_path / "sweep")["state"].tolist() == ["fail", "fail"]


@pytest.mark.optuna
def test_a_killed_or_stopped_search_is_continued_by_the_same_command(tmp_path, demo_photos):
    words = [tmp_path / "sweep", *demo(demo_photos), LR, "trainer.max_epochs=30", "sweep.trials=1"]
    run, process = tmp_path / "sweep" / "trials" / "0000", start(*words)[0]
    wait_until(lambda: (run / "checkpoints" / "last.ckpt").exists() or not process.is_alive())
    process.kill()
    wait_until(lambda: is_locked(run) is False)  # its trial's process has ended, too
    epochs = len(pd.read_csv(run / "history.csv"))
    process, out = start(*words)
    wait_until(lambda: len(pd.read_csv(run / "history.csv")) > epochs or not process.is_alive())
    process.terminate()
    (done,) = forked.finish([process], [out])
    assert done.returncode == 143 and "Traceback" not in done.stderr and "interrupted after" in done.stderr
    assert "trial 0, which was interrupted, continues" in done.stderr and "the same command continues it" in done.stderr
    assert epochs < len(pd.read_csv(run / "history.csv")) < 30
    search(*words)
    (trial,) = trials_of(tmp_path / "sweep")
    assert trial.state == TrialState.COMPLETE and trial.user_attrs["deaths"] == 1
    assert len(trial.intermediate_values) == 30 == len(pd.read_csv(run / "history.csv"))
    assert (run / "run.log").read_text().count("resuming after") == 2


@pytest.mark.slow  # with a fork server of its own, which imports what all others have imported already
def test_ctrl_c_while_the_first_trial_starts_is_silent(tmp_path, demo_photos):
    words, err = overrides_for(tmp_path / "sweep", *demo(demo_photos), LR, "sweep.trials=1"), tmp_path / "err"
    command = [sys.executable, "-m", "carvision.sweep", *words]
    with err.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, start_new_session=True)
    wait_until(lambda: "trial 0: " in err.read_text() or process.poll() is not None)
    time.sleep(1)  # for the interpreter of the fork server to start
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(60) == 130 and "Traceback" not in err.read_text() and "will continue" in err.read_text()


@pytest.mark.optuna
def test_objectives_have_a_front_in_a_database_with_a_space_from_a_users_folder(tmp_path, demo_photos):
    folder = tmp_path / "sweep"
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    (tmp_path / "conf" / "sweep" / "mine.yaml").write_text(
        "defaults: [shared/base@_here_, _self_]\ntrials: 3\nfollows: {model.trunk.hidden: ['${width}']}\n"
        "objective: {val/model/top1: max, parameters: min}\n"
        "space: {width: 'range(8,5000)', optimizer.lr: 'interval(1e-3,1e-2)'}\n"
    )
    words = ["--config-dir", tmp_path / "conf", "sweep=mine", f"sweep.storage=sqlite:///{tmp_path / 'study.db'}"]
    search(folder, *demo(demo_photos), *words, plots=True)
    table = table_of(folder)
    assert table["state"].tolist() == ["complete"] * 3 and table["parameters"].nunique() == 3
    assert (folder / "pareto.png").exists() and not (folder / "journal.log").exists()
    for _, row in table.iterrows():
        metrics = json.loads((folder / row["folder"] / "metrics.json").read_text(encoding="utf-8"))
        assert (row["parameters"], row["val/model/top1"]) == (metrics["parameters"], metrics["val"]["model/top1"])


@pytest.mark.slow  # the workers are started as a user's are, and each starts a fork server of its own
def test_workers_of_one_command_share_the_search(tmp_path, demo_photos):
    folder = tmp_path / "sweep"
    done = search(folder, *demo(demo_photos), LR, "sweep.trials=4", "sweep.workers=2")
    assert table_of(folder)["state"].tolist() == ["complete"] * 4
    assert sum(" at epoch 1" in line for line in done.stderr.splitlines()) == 4


def test_features_of_a_frozen_backbone_are_computed_once_for_all_trials(tmp_path, demo_photos):
    words = [*demo(demo_photos), "model.train_layers=none", "augment=none", f"features.dir={tmp_path / 'features'}", LR]
    done = search(tmp_path / "sweep", *words, "optimizer=choice(sgd,adamw)", "sweep.trials=2", "sweep.sampler=random")
    first, second = ((tmp_path / "sweep" / "trials" / name / "run.log").read_text() for name in ("0000", "0001"))
    assert "computing the features of 168 photos, once" in first  # of 240: 72 are test photos
    assert "computing the features" not in second and "features of each backbone are computed once" in done.stderr
    assert not caches_features(small_sweep(tmp_path / "other", *words, "augment=choice(none,light)"))


@pytest.mark.slow
def test_the_first_process_of_a_trial_decides_about_pruning_for_all(tmp_path, demo_photos):
    folder = tmp_path / "sweep"
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=3", "data.batch_size=8"]
    words = [*demo(demo_photos), *ddp, "sweep.pruner=halving", "sweep=random", LR, "sweep.trials=2"]
    queue = queue_of(small_sweep(folder, *words))
    good = claim_quietly(queue)  # a trial that the next one can't be better than
    good.report(0.0, 1)
    queue.storage.set_trial_system_attr(good._trial_id, "completed_rung_0", 0.0)
    queue.study.tell(good, 0.0)
    search(folder, *words)
    second = trials_of(folder)[1]
    assert second.state == TrialState.PRUNED and list(second.intermediate_values) == [1]
    assert "pruned after epoch 1" in (folder / "trials" / "0001" / "run.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["journal", "postgresql"])
def test_killed_workers_and_servers_lose_no_trial(kind, request, tmp_path, demo_photos):
    folder, chance = tmp_path / "sweep", random.Random(0)
    server = request.getfixturevalue("postgres") if kind == "postgresql" else None
    words = [*demo(demo_photos), LR, "trainer.max_epochs=2", "sweep.trials=8", "sweep.retries=99"]
    words += [f"sweep.storage='{server.url}'"] if server else []
    workers, kills = [start(folder, *words) for _ in range(3)], 0
    while any(worker.exitcode != 0 for worker, _ in workers):
        time.sleep(chance.uniform(0.2, 2.0))
        if kills < 6 and (folder / "trials").is_dir():
            alive = [worker for worker, _ in workers if worker.is_alive()]
            for victim in alive if kills == 3 else alive[:1]:
                os.killpg(victim.pid, signal.SIGKILL) if chance.random() < 0.3 else os.kill(victim.pid, signal.SIGKILL)
            if kills == 4 and server:
                server.kill()
                time.sleep(1)  # some of its workers need it meanwhile
                server.restart()
            kills += 1
        for index, (worker, out) in enumerate(workers):
            if worker.exitcode == 1 and server:
                line = Path(f"{out}.stderr").read_text(encoding="utf-8").splitlines()[-1]
                assert "has failed (" in line or "can't be opened (" in line
            elif worker.exitcode:
                assert worker.exitcode == -signal.SIGKILL
            if worker.exitcode:
                workers[index] = start(folder, *words)
    trials = trials_of(folder, server and server.url)
    assert [trial.state for trial in trials[:8]] == [TrialState.COMPLETE] * 8 and kills == 6
    assert {trial.state for trial in trials[8:]} <= {TrialState.WAITING} and len(table_of(folder)) == 8
    for trial in trials[:8]:
        losses = pd.read_csv(folder / "trials" / f"{trial.number:04d}" / "history.csv")["val/loss"]
        assert trial.intermediate_values == pytest.approx(dict(enumerate(losses, 1)), rel=1e-4) and len(losses) == 2
        assert trial.value == pytest.approx(losses.min(), rel=1e-4)


@pytest.mark.skipif(not LOCKS.exists(), reason="the trial's process is found by its lock")
def test_a_worker_that_was_frozen_while_another_took_its_trial_writes_nothing(tmp_path, demo_photos, monkeypatch):
    words = [tmp_path / "sweep", *demo(demo_photos), LR, "trainer.max_epochs=500", "data.batch_size=2"]
    words += ["sweep.trials=1", "sweep.dead_after_s=1"]
    run, (process, out) = tmp_path / "sweep" / "trials" / "0000", start(*words)
    saved = run / "checkpoints" / "last.ckpt"
    wait_until(lambda: saved.exists() and time.time() - saved.stat().st_mtime > 0.3)  # in the next epoch
    locked = (run / ".lock").stat().st_ino
    lines = LOCKS.read_text(encoding="utf-8").splitlines()
    pids = [process.pid, *(int(line.split()[4]) for line in lines if f":{locked} " in line)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.name != "run.log"}
    monkeypatch.setattr(queue_module.platform, "node", lambda: "another machine")
    queue = queue_of(small_sweep(*words))
    wait_until(lambda: queue.trials()[0].user_attrs["worker"]["host"] == "another machine" or claim_quietly(queue))
    queue.study.tell(0, 1.0)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    (done,) = forked.finish([process], [out])
    assert done.returncode == 0 and "trial 0: another worker has taken it" in done.stderr and len(pids) > 1
    assert {file: file.read_bytes() for file in before} == before and not (run / "metrics.json").exists()
    (trial,) = trials_of(tmp_path / "sweep")
    assert trial.value == 1.0 and "epochs" not in trial.user_attrs


def test_a_trial_whose_run_another_process_holds_waits_for_it_and_does_not_fail(tmp_path, monkeypatch):
    sweep = small_sweep(tmp_path / "sweep", LR, "sweep.trials=1")
    metrics = sweep.folder / "trials" / "0000" / "metrics.json"

    def refuse(*_) -> SimpleNamespace:
        """Fail like a training whose folder is locked, while the other process completes its own."""
        metrics.parent.mkdir()
        metrics.write_text('{"seconds": {"total": 1}, "parameters": 1, "best_epoch": 0, "val": {"loss": 0.5}}')
        return SimpleNamespace(exitcode=1)

    held = iter([False, True, True, False])
    monkeypatch.setattr(worker_module, "TrialProcess", refuse)
    monkeypatch.setattr(worker_module, "is_locked", lambda run: next(held))
    storage = open_storage(None, sweep.folder)
    worker_module.Worker(sweep, open_study(sweep, storage), storage, lambda trial: None).work()
    (trial,) = trials_of(sweep.folder)
    assert trial.state == TrialState.COMPLETE and trial.value == 0.5


@pytest.mark.parametrize("words, message", [
    (["-m", LR], "-m: a search needs none"), ([LR, "--cfg=hydra"], "--cfg: 'hydra' is not job"),
    (["optimizer.momentum=interval(0,1)"], "such key; choose another with optimizer=<choice> (in a trial with"),
    (["run.dir=a,b"], "run.dir: can't be searched"), ([LR, "data.split.kind=kfold"], "fold: all is not for trials"),
    ([LR, "sweep.objective={test/loss: min}"], "training and test photos choose nothing"),
    (["optimizer=sgd,adam", "sweep.sampler=cmaes"], "cmaes searches numbers"),
    ([LR, "sweep.storage=nothing"], "nothing can't be opened"),
    ([LR, "sweep.dir=/proc/nothing"], "sweep.dir: /proc/nothing can't be made"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        sweep(words)
    [line] = str(ended.value).splitlines()
    assert line.startswith("error: ") and message in line and not list(tmp_path.iterdir())
