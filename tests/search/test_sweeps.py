"""Whole searches, as users start them: what they write, and that no interruption loses anything."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from optuna.trial import TrialState

from carvision.files.locks import is_locked
from carvision.search.run import caches_features
from carvision.sweep import sweep
from tests import forked
from tests.conftest import ROOT
from tests.forked import wait_until
from tests.search.small_sweeps import LR, claim_quietly, overrides_for, queue_of, small_sweep, table_of, trials_of
from tests.small_runs import demo

HEADS = ["~model/head@model.heads.make", "+model/head@model.heads.speed=linear"]
HYPERBAND = ["sweep=hyperband", "trainer.max_epochs=3", "sweep.reduction_factor=3", "sweep.keep=2", "sweep.trials=9"]
SPACE = ["optimizer.lr=tag(log,interval(1e-3,3))", "optimizer=choice(sgd,adamw)"]
SPACE += ["optimizer.momentum=tag('optimizer==sgd',choice(0,0.9))"]
# Plots take a third of the time of so small a search
NO_PLOTS = """
from carvision.search import plots
plots.write_plots, plots.interactive = lambda *_: None, lambda *_: []
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
    return folder, search(folder, *demo(demo_photos), *HYPERBAND, *SPACE, *HEADS, plots=True)


@pytest.mark.optuna
def test_the_value_is_the_best_validation_and_no_test_photo_is_read(hyperband):
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
            metrics = json.loads((run / "metrics.json").read_text())
            assert metrics["test"] == {} and metrics["parameters"] == row["parameters"]
        else:
            assert row["epochs"] == 1 and not (run / "metrics.json").exists()
    reported = [trial.intermediate_values for trial in trials_of(folder)]
    assert [len(values) for values in reported] == table["epochs"].tolist()
    assert "  bracket 1: 60%, about 5 trials; one of 3 continues after 1" in done.stderr
    assert done.stdout.splitlines()[-1] == f"sweep: {folder}" and "The best trials" in done.stdout
    saved = 2 * (table["state"] == "pruned").sum()
    assert f"epochs: {table['epochs'].sum()} spent, {saved} saved" in done.stderr


@pytest.mark.optuna
def test_only_the_best_trials_keep_their_checkpoints_and_the_page_is_self_contained(hyperband):
    folder, _ = hyperband
    best = table_of(folder).dropna(subset="best_epoch").sort_values("val/loss")["folder"].tolist()[:2]
    for name in ("checkpoints/best.ckpt", "model.safetensors"):
        assert {file.relative_to(folder) for file in folder.rglob(name)} == {Path(run, name) for run in best}
    for name in ("history", "importance", "slices", "parallel"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
    page = (folder / "search.html").read_text()
    assert page.count("plotly-graph-div") >= 4
    assert "<script src=" not in page.replace("<script src=\\", "")


def test_the_best_trial_is_an_experiment_of_its_own_over_several_seeds(hyperband, run_forked, tmp_path):
    folder, _ = hyperband
    best = table_of(folder).sort_values("val/loss").iloc[0]
    words = ["--config-dir", folder, "experiment=best", "run.seeds=[0,3]", f"run.dir={tmp_path / 'again'}"]
    done = run_forked("carvision.train", *words, "callbacks.progress_bar=false", check=0)
    first, other = (json.loads((tmp_path / "again" / f"seed_{n}" / "metrics.json").read_text()) for n in (0, 3))
    assert first["val"]["loss"] == pytest.approx(best["val/loss"], rel=1e-4) and first["test"]
    assert other["val"]["loss"] != first["val"]["loss"]
    summary = json.loads((tmp_path / "again" / "metrics.json").read_text())
    values = [first["test"]["model/top1"], other["test"]["model/top1"]]
    assert summary["test"]["model/top1"]["mean"] == pytest.approx(sum(values) / 2) and summary["seeds"] == 2
    assert "test/model/top1 over 2 seeds" in done.stderr
    runs = tmp_path / "again" / "seed_3", folder / best["folder"]
    own, trial = (yaml.safe_load((run / "config.yaml").read_text()) for run in runs)
    assert own["optimizer"]["name"] == best["optimizer"] and sorted(own["model"]["heads"]) == ["model", "speed"]
    assert ("momentum" in own["optimizer"]) == (best["optimizer"] == "sgd") and own.pop("seed") == 3
    del own["run"], trial["run"], trial["seed"]
    assert own == trial
    done = run_forked("carvision.compare", tmp_path / "again", "--out", tmp_path / "compared", check=0)
    assert "2 seeds" in (tmp_path / "compared" / "compare.md").read_text()


def test_trials_without_memory_or_with_impossible_keys_fail_alone(tmp_path, demo_photos):
    """Three layers from 10 units, each half the one before: the third would have 2.5."""
    folder = tmp_path / "sweep"
    follows = "+sweep.follows={model.trunk.hidden: '${halving:${units},${layers}}'}"
    words = ["sweep=grid", "units=choice(10,4000000000,12)", "layers=range(1,4,step=2)", follows, "sweep.keep=1"]
    done = search(folder, *demo(demo_photos), *words)
    table = table_of(folder)
    assert table["state"].tolist() == ["complete", "fail", "fail", "fail", "complete", "complete"]
    assert "2.5 is not a whole number" in table["why"][1] and "memory" in table["why"][2]
    assert "6 of 6 trials have ended; 3 failed" in done.stderr


def test_a_worker_gives_up_after_three_failures_and_a_search_of_failed_trials_ends_with_status_1(tmp_path):
    words = ["data=folder", "data.root=nowhere", LR]
    done = search(tmp_path / "first", *words, check=1)
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "first 3 trials of this worker failed, the last with: data.root: /" in line
    folder = tmp_path / "sweep"
    for _ in range(2):  # the same command again finds nothing left to run
        done = search(folder, *words, "sweep.trials=2", check=1)
        [line] = [line for line in done.stderr.splitlines() if line.startswith("error")]
        assert "sweep: all 2 trials failed, the last with: data.root: /" in line and "/nowhere does not exist" in line
        assert "sweep.dir=<folder>" in line and done.stdout.splitlines()[-1] == f"sweep: {folder}"
    assert table_of(folder)["state"].tolist() == ["fail", "fail"]


def test_cfg_job_prints_the_search_and_starts_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["sweep=hyperband", "trainer.max_epochs=9", *SPACE, "data=folder", "data.root=~/it's (1)", "sweep.seed=3"]
    sweep([*words, "--cfg", "job"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["sweep"]["space"] == {
        "optimizer.lr": "0.001 to 3.0, log", "optimizer": "choice(sgd,adamw)",
        "optimizer.momentum": "choice(0,0.9) if optimizer==sgd",
    }  # fmt: skip
    assert (shown["sweep"]["sampler"], shown["sweep"]["pruner"], shown["sweep"]["seed"]) == ("tpe", "hyperband", 3)
    assert shown["data"]["root"].endswith("/it's (1)") and shown["trainer"]["max_epochs"] == 9
    assert "optimizer" not in shown and not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="--cfg: 'hydra' is not job"):
        sweep([*words, "--cfg=hydra"])


@pytest.mark.optuna
def test_a_signal_stops_it_with_a_checkpoint_and_the_same_command_continues(tmp_path, demo_photos):
    folder = tmp_path / "sweep"
    words = [*demo(demo_photos), LR, "trainer.max_epochs=12", "sweep.trials=1"]
    process, out = start(folder, *words)
    history = folder / "trials" / "0000" / "history.csv"
    wait_until(lambda: history.exists() or not process.is_alive())
    os.kill(process.pid, signal.SIGTERM)
    (done,) = forked.finish([process], [out])
    assert done.returncode == 143 and "Traceback" not in done.stderr
    assert "interrupted after" in done.stderr and "the same command continues it" in done.stderr
    epochs = len(pd.read_csv(history))
    assert 1 <= epochs < 12
    done = search(folder, *words, "sweep.trials=1")
    (trial,) = trials_of(folder)
    assert trial.state == TrialState.COMPLETE and trial.user_attrs["deaths"] == 0
    assert len(trial.intermediate_values) == 12 == len(pd.read_csv(history))
    assert "trial 0, which was interrupted, continues" in done.stderr
    assert "resuming after" in (folder / "trials" / "0000" / "run.log").read_text()
    assert table_of(folder).shape[0] == 1


def test_a_killed_worker_ends_the_process_of_its_trial(tmp_path, demo_photos):
    folder = tmp_path / "sweep"
    words = [*demo(demo_photos), LR, "trainer.max_epochs=500", "sweep.trials=1"]
    process, _ = start(folder, *words)
    history = folder / "trials" / "0000" / "history.csv"
    wait_until(lambda: history.exists() or not process.is_alive())
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: is_locked(history.parent) is False)
    assert len(pd.read_csv(history)) < 500


@pytest.mark.optuna
def test_objectives_have_a_front_in_a_database_with_a_space_from_a_users_folder(tmp_path, demo_photos):
    folder = tmp_path / "sweep"
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    (tmp_path / "conf" / "sweep" / "mine.yaml").write_text(
        "defaults: [shared/base@_here_, _self_]\ntrials: 3\nfollows: {model.trunk.hidden: ['${width}']}\n"
        "objective: {val/model/top1: max, parameters: min}\n"
        "space: {width: 'range(8,5000)', optimizer.lr: 'interval(1e-3,1e-2)'}\n"
    )
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    words = [*demo(demo_photos), "--config-dir", tmp_path / "conf", "sweep=mine", f"sweep.storage={storage}"]
    search(folder, *words, plots=True)
    table = table_of(folder)
    assert table["state"].tolist() == ["complete"] * 3 and table["parameters"].nunique() == 3
    assert (folder / "pareto.png").exists() and not (folder / "journal.log").exists()
    for _, row in table.iterrows():
        run = folder / row["folder"]
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        assert row["parameters"] == metrics["parameters"]
        assert row["val/model/top1"] == pytest.approx(metrics["val"]["model/top1"])
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        assert config["model"]["trunk"]["hidden"] == [row["width"]]


@pytest.mark.slow  # the workers are started as a user's are, and each starts a fork server of its own
def test_workers_of_one_command_share_the_search(tmp_path, demo_photos):
    folder = tmp_path / "sweep"
    done = search(folder, *demo(demo_photos), LR, "sweep.trials=4", "sweep.workers=2")
    assert table_of(folder)["state"].tolist() == ["complete"] * 4
    assert sum(" at epoch 1" in line for line in done.stderr.splitlines()) == 4


def test_features_of_a_frozen_backbone_are_computed_once_for_all_trials(tmp_path, demo_photos):
    folder = tmp_path / "sweep"
    words = [*demo(demo_photos), "model.train_layers=none", "augment=none", f"features.dir={tmp_path / 'features'}", LR]
    done = search(folder, *words, "optimizer=choice(sgd,adamw)", "sweep.trials=2", "sweep.sampler=random")
    logs = [(folder / "trials" / f"{number:04d}" / "run.log").read_text() for number in range(2)]
    assert ["computing the features" in log for log in logs] == [True, False]
    assert "features of each backbone are computed once" in done.stderr
    assert "computing the features of 168 photos, once" in logs[0]  # of 240: 72 are test photos
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
def test_three_workers_killed_at_random_run_every_trial_once(tmp_path, demo_photos):
    folder, chance = tmp_path / "sweep", random.Random(0)
    words = [*demo(demo_photos), LR, "sweep.trials=16", "sweep.retries=99"]
    workers = [start(folder, *words)[0] for _ in range(3)]
    kills, until = 0, time.monotonic() + 280
    while any(worker.exitcode != 0 for worker in workers) and time.monotonic() < until:
        time.sleep(chance.uniform(0.2, 2.0))
        for index, worker in enumerate(workers):
            if worker.exitcode not in (None, 0):
                assert worker.exitcode == -signal.SIGKILL
                workers[index] = start(folder, *words)[0]
        if kills < 6:
            victim = chance.choice(workers)
            if victim.is_alive():
                os.killpg(victim.pid, signal.SIGKILL) if chance.random() < 0.3 else os.kill(victim.pid, signal.SIGKILL)
                kills += 1
    assert [worker.exitcode for worker in workers] == [0, 0, 0] and kills == 6
    trials = trials_of(folder)
    assert [trial.state for trial in trials[:16]] == [TrialState.COMPLETE] * 16
    runs = sorted((folder / "trials").iterdir())
    assert len(runs) == 16 and all(len(pd.read_csv(run / "history.csv")) == 1 for run in runs)
    assert len(table_of(folder)) == 16


def test_several_runs_of_several_processes_are_refused(run_forked):
    done = run_forked("carvision.train", "-m", "trainer=ddp", "seed=0,1")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "every process would start all the runs" in done.stderr


@pytest.mark.parametrize("words, message", [
    (["-m", LR], "-m: a search needs none"),
    (["optimizer.lr=0.1"], "nothing is searched; give a space such as"),
    (["optimizer.momentum=interval(0,1)"], "such key; choose another with optimizer=<choice> (in a trial with"),
    (["run.dir=a,b"], "run.dir: can't be searched"),
    ([LR, "run.dir=a"], "run.dir: a search has a folder for each trial; give sweep.dir=a"),
    ([LR, "data.split.kind=kfold"], "data.split.fold: all is not for trials"),
    ([LR, "sweep.objective={test/loss: min}"], "training and test photos choose nothing"),
    ([LR, "sweep=pareto", "sweep.pruner=median"], "judges by one objective"),
    ([LR, "sweep=grid"], "has infinitely many values"),
    (["optimizer.lr=0.1,0.2", "sweep=grid", "sweep.cells=[2]"], "2 is not one of the grid's 2 cells, from 0"),
    ([LR, "sweep.pruner=hyperband", "sweep.min_epochs=99"], "99 is more than the 14 epochs of a trial"),
    (["trainer.max_epochs=2,4", "sweep=hyperband"], "compares trials of the same number of epochs"),
    (["optimizer=sgd,adam", "sweep.sampler=cmaes"], "cmaes searches numbers"),
    ([LR, "sweep.storage=nothing"], "sweep.storage: nothing can't be opened"),
    ([LR, "sweep.dir=/proc/nothing"], "sweep.dir: /proc/nothing can't be made"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        sweep(words)
    [line] = str(ended.value).splitlines()
    assert line.startswith("error: ") and message in line and not list(tmp_path.iterdir())


def test_a_mistake_is_found_before_torch_and_optuna_are_imported():
    code = (
        "import sys, runpy\nsys.argv = ['carvision.sweep', 'optimizer.lr=interval(1,0)']\n"
        "try: runpy.run_module('carvision.sweep', run_name='__main__')\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'optuna', 'pandas', 'pytorch_lightning') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
