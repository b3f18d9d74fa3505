"""Whole searches, as people start them: what they leave, and that nothing is lost."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from carvision.files.locks import is_locked
from carvision.search.build import compose
from carvision.search.queue import SURPLUS, latest
from carvision.search.report import write_best
from carvision.search.run import caches_features
from carvision.sweep import sweep
from tests import forked
from tests.conftest import ROOT
from tests.search.small_sweeps import LR, overrides_for, queue_of, small_sweep, table_of, trials_of
from tests.small_runs import demo

HYPERBAND = ["sweep=hyperband", "trainer.max_epochs=3", "sweep.reduction_factor=3", "sweep.keep=2", "sweep.trials=9"]
SPACE = [
    "optimizer.lr=tag(log,interval(1e-3,3))",
    "optimizer=choice(sgd,adamw)",
    "optimizer.momentum=tag('optimizer==sgd',choice(0,0.9))",
]


# Pictures take a third of the time of so small a search
NO_PICTURES = """
from carvision.search import report
report.write_plots, report.interactive = lambda *_: {}, lambda *_: []
"""


def start(folder: Path, *words: str, pictures: bool = False):
    """A carvision.sweep in a process of its own, and the file that its output goes to."""
    out = folder.with_name(f"{folder.name}.{time.monotonic_ns()}")
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    first = "" if pictures else NO_PICTURES
    words = overrides_for(folder, *words)
    return forked.start("carvision.sweep", *words, cwd=folder.parent, env=variables, out=out, first=first), out


def search(folder: Path, *words: str, check: int = 0, pictures: bool = False) -> subprocess.CompletedProcess:
    process, out = start(folder, *words, pictures=pictures)
    (done,) = forked.finish([process], [out])
    assert done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def wait_until(condition, process=None, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition() and (not process or process.is_alive()) and time.monotonic() < until:
        time.sleep(0.02)
    assert condition()


@pytest.fixture(scope="module")
def hyperband(tmp_path_factory, demo_photos) -> tuple[Path, subprocess.CompletedProcess]:
    """The folder of a search that is done, and what it said."""
    folder = tmp_path_factory.mktemp("sweeps") / "hyperband"
    return folder, search(folder, *demo(demo_photos), *HYPERBAND, *SPACE, pictures=True)


@pytest.mark.optuna
def test_the_value_is_the_best_of_validation_and_tests_have_no_part_in_it(hyperband):
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


def test_only_the_best_keep_their_checkpoints(hyperband):
    folder, _ = hyperband
    best = table_of(folder).dropna(subset="best_epoch").sort_values("val/loss")["folder"].tolist()[:2]
    for name in ("checkpoints/best.ckpt", "model.safetensors"):
        assert sorted(str(file.relative_to(folder).parents[name.count("/")]) for file in folder.rglob(name)) == sorted(
            best
        )


@pytest.mark.optuna
def test_it_leaves_pictures_and_a_page_that_needs_nothing_beside_it(hyperband):
    folder, _ = hyperband
    for name in ("history", "importance", "slices", "parallel"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
    page = (folder / "search.html").read_text()
    assert "The best trials" in page and page.count("src='data:image/png") == 4
    assert page.count("plotly-graph-div") >= 4 and "<script src=" not in page.replace("<script src=\\", "")


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
    config = yaml.safe_load((tmp_path / "again" / "seed_3" / "config.yaml").read_text())
    assert config["optimizer"]["name"] == best["optimizer"] and config["seed"] == 3
    assert ("momentum" in config["optimizer"]) == (best["optimizer"] == "sgd")
    done = run_forked("carvision.compare", tmp_path / "again", "--out", tmp_path / "compared", check=0)
    assert "2 seeds" in (tmp_path / "compared" / "compare.md").read_text()


@pytest.mark.optuna
def test_the_same_command_again_finds_it_done_and_another_search_is_refused(hyperband, demo_photos):
    folder, _ = hyperband
    before = [trial.datetime_complete for trial in trials_of(folder)]
    done = search(folder, *demo(demo_photos), *HYPERBAND, *SPACE)
    assert [trial.datetime_complete for trial in trials_of(folder)] == before
    assert f"continuing {folder}: 9 of 9 trials have ended" in done.stderr
    done = search(folder, *demo(demo_photos), *SPACE, check=1)
    assert "trainer.max_epochs: 3 became 1" in done.stderr.splitlines()[-1]


def test_a_trial_without_memory_fails_alone_and_others_go_on(tmp_path, demo_photos):
    folder = tmp_path / "sweep"
    words = ["sweep=grid", "model.trunk.hidden=[8],[4000000000],[16]", "data.batch_size=8,16"]
    done = search(folder, *demo(demo_photos), *words, "sweep.keep=1")
    table = table_of(folder)
    assert table["state"].tolist() == ["complete", "complete", "fail", "fail", "complete", "complete"]
    assert table["why"][2] and "memory" in table["why"][2]
    assert "6 of 6 trials have ended; 2 failed" in done.stderr


def test_keys_that_cannot_follow_fail_their_trial_alone(tmp_path, demo_photos):
    folder = tmp_path / "sweep"
    follows = "+sweep.follows={model.trunk.hidden: '${halving:${units},${layers}}'}"
    search(folder, *demo(demo_photos), "sweep=grid", "units=choice(10,12)", "layers=range(1,4,step=2)", follows)
    table = table_of(folder)
    assert table["state"].tolist() == ["complete", "fail", "complete", "complete"]
    assert "2.5 is not a whole number" in table["why"][1]


def test_where_all_fail_the_search_ends_with_one_line(tmp_path):
    done = search(tmp_path / "sweep", "data=folder", "data.root=nowhere", LR, check=1)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and "first 3 trials of this worker failed, the last with: data.root: /" in errors[0]
    assert "/nowhere does not exist" in errors[0]
    assert "Traceback" not in done.stderr


def test_a_search_of_which_all_trials_failed_ends_with_status_1(tmp_path):
    folder = tmp_path / "sweep"
    for _ in range(2):  # the same command again finds nothing left to run
        done = search(folder, "data=folder", "data.root=nowhere", LR, "sweep.trials=2", check=1)
        [line] = [line for line in done.stderr.splitlines() if line.startswith("error")]
        assert "sweep: all 2 trials failed, the last with: data.root: /" in line and "/nowhere does not exist" in line
        assert "sweep.dir=<folder>" in line and done.stdout.splitlines()[-1] == f"sweep: {folder}"
    assert table_of(folder)["state"].tolist() == ["fail", "fail"]


def test_paths_of_any_name_are_searched_and_null_is_a_choice(tmp_path, demo_photos):
    roots = [tmp_path / "it's (1)", tmp_path / "Blüten=a#b"]
    for root in roots:
        root.symlink_to(demo_photos)
    words = ["sweep=grid", f"data.root=choice({roots[0]},{roots[1]})", "callbacks.patience=choice(null,3)"]
    search(tmp_path / "a,b", *demo(demo_photos), *words)
    table = table_of(tmp_path / "a,b")
    assert table["state"].tolist() == ["complete"] * 4
    runs = [yaml.safe_load((tmp_path / "a,b" / name / "config.yaml").read_text()) for name in table["folder"]]
    drawn = [(run["data"]["root"], run["callbacks"]["patience"]) for run in runs]
    assert drawn == [(str(root), patience) for root in roots for patience in (None, 3)]


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
def test_a_signal_ends_it_with_a_checkpoint_and_the_same_command_goes_on(tmp_path, demo_photos):
    folder = tmp_path / "sweep"
    words = [*demo(demo_photos), LR, "trainer.max_epochs=12", "sweep.trials=1"]
    process, out = start(folder, *words)
    history = folder / "trials" / "0000" / "history.csv"
    wait_until(history.exists, process)
    os.kill(process.pid, signal.SIGTERM)
    (done,) = forked.finish([process], [out])
    assert done.returncode == 143 and "Traceback" not in done.stderr
    assert "interrupted after" in done.stderr and "the same command continues it" in done.stderr
    epochs = len(pd.read_csv(history))
    assert 1 <= epochs < 12
    done = search(folder, *words, "sweep.trials=1")
    first, second = trials_of(folder)
    assert (first.state, second.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert first.params == second.params and second.user_attrs["retry_of"] == 0
    assert len(second.intermediate_values) == 12 == len(pd.read_csv(history))
    assert "trial 0, which was interrupted, continues" in done.stderr
    assert "resuming after" in (folder / "trials" / "0000" / "run.log").read_text()
    assert table_of(folder).shape[0] == 1


def test_a_worker_that_is_killed_takes_its_trial_with_it(tmp_path, demo_photos):
    folder = tmp_path / "sweep"
    words = [*demo(demo_photos), LR, "trainer.max_epochs=500", "sweep.trials=1"]
    process, _ = start(folder, *words)
    history = folder / "trials" / "0000" / "history.csv"
    wait_until(history.exists, process)
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: is_locked(history.parent) is False)
    assert len(pd.read_csv(history)) < 500


@pytest.mark.optuna
def test_several_objectives_have_a_front(tmp_path, demo_photos):
    folder = tmp_path / "sweep"
    objective = "sweep.objective={val/model/top1: max, parameters: min}"
    words = [*demo(demo_photos), "model.trunk.hidden=choice([],[64],[512])", LR, objective, "sweep.trials=4"]
    search(folder, *words, pictures=True)
    table = table_of(folder)
    assert table["state"].tolist() == ["complete"] * 4 and table["parameters"].nunique() > 1
    assert (folder / "pareto.png").exists()
    for number in range(4):
        run = json.loads((folder / "trials" / f"{number:04d}" / "metrics.json").read_text())
        assert table["parameters"][number] == run["parameters"]
        assert table["val/model/top1"][number] == pytest.approx(run["val"]["model/top1"])


@pytest.mark.slow  # the workers are started as a user's are, and each starts a fork server of its own
def test_workers_of_one_command_share_the_search(tmp_path, demo_photos):
    folder = tmp_path / "sweep"
    done = search(folder, *demo(demo_photos), LR, "sweep.trials=4", "sweep.workers=2")
    assert table_of(folder)["state"].tolist() == ["complete"] * 4 and not list((folder / "running").iterdir())
    assert sum(" at epoch 1" in line for line in done.stderr.splitlines()) == 4


def test_features_of_a_frozen_backbone_are_computed_once_for_all_trials(tmp_path, demo_photos):
    folder = tmp_path / "sweep"
    words = [*demo(demo_photos), "model.train_layers=none", "augment=none", f"features.dir={tmp_path / 'features'}", LR]
    done = search(folder, *words, "optimizer=choice(sgd,adamw)", "sweep.trials=4", "sweep.sampler=random")
    logs = [(folder / "trials" / f"{number:04d}" / "run.log").read_text() for number in range(4)]
    assert ["computing the features" in log for log in logs] == [True, False, False, False]
    assert "features of each backbone are computed once" in done.stderr
    assert "computing the features of 168 photos, once" in logs[0]  # of 240: 72 are test photos
    assert not caches_features(small_sweep(tmp_path / "other", *words, "augment=choice(none,light)"))


@pytest.mark.optuna
def test_a_database_serves_as_well_and_a_folder_of_ones_own_brings_spaces(tmp_path, demo_photos):
    folder = tmp_path / "sweep"
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    (tmp_path / "conf" / "sweep" / "mine.yaml").write_text(
        "defaults: [shared/base@_here_, _self_]\ntrials: 2\nfollows: {model.trunk.hidden: ['${width}']}\n"
        "space: {width: 'choice(8,16)', optimizer.lr: 'interval(1e-3,1e-2)'}\n"
    )
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    words = [*demo(demo_photos), "--config-dir", tmp_path / "conf", "sweep=mine", f"sweep.storage={storage}"]
    search(folder, *map(str, words))
    table = table_of(folder)
    assert table["state"].tolist() == ["complete"] * 2 and not (folder / "journal.log").exists()
    hidden = [
        yaml.safe_load((folder / name / "config.yaml").read_text())["model"]["trunk"]["hidden"]
        for name in table["folder"]
    ]
    assert hidden == [[width] for width in table["width"]]


@pytest.mark.slow
def test_one_process_of_several_decides_about_pruning_and_all_follow(tmp_path, demo_photos):
    folder = tmp_path / "sweep"
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=3", "data.batch_size=8"]
    words = [*demo(demo_photos), *ddp, "sweep.pruner=halving", "sweep=random", LR, "sweep.trials=2"]
    queue = queue_of(small_sweep(folder, *words))
    good, sign = queue.next()  # a trial that the next one can't be better than
    sign.end()
    queue.sweep.space.draw(good)
    good.report(0.0, 1)
    queue.storage.set_trial_system_attr(good._trial_id, "completed_rung_0", 0.0)
    queue.study.tell(good, 0.0)
    search(folder, *words)
    second = trials_of(folder)[1]
    assert second.state == TrialState.PRUNED and list(second.intermediate_values) == [1]
    assert "pruned after epoch 1" in (folder / "trials" / "0001" / "run.log").read_text()


@pytest.mark.slow
def test_three_workers_that_are_killed_again_and_again_run_every_trial_once(tmp_path, demo_photos):
    folder, chance = tmp_path / "sweep", random.Random(0)
    words = [*demo(demo_photos), LR, "sweep.trials=16", "sweep.retries=99"]
    workers = [start(folder, *words)[0] for _ in range(3)]
    kills, until = 0, time.monotonic() + 280
    while any(worker.exitcode != 0 for worker in workers) and time.monotonic() < until:
        time.sleep(chance.uniform(0.2, 2.0))
        for place, worker in enumerate(workers):
            if worker.exitcode not in (None, 0):
                assert worker.exitcode == -signal.SIGKILL
                workers[place] = start(folder, *words)[0]
        if kills < 6:
            victim = chance.choice(workers)
            if victim.is_alive():
                os.killpg(victim.pid, signal.SIGKILL) if chance.random() < 0.3 else os.kill(victim.pid, signal.SIGKILL)
                kills += 1
    assert [worker.exitcode for worker in workers] == [0, 0, 0] and kills == 6
    trials = trials_of(folder)
    assert all(trial.state.is_finished() for trial in trials)
    shown = latest(trials)
    assert Counter(trial.state for trial in shown) == {TrialState.COMPLETE: 16}
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and SURPLUS not in trial.user_attrs]
    assert len(complete) == 16  # each exactly once
    runs = sorted((folder / "trials").iterdir())
    assert len(runs) == 16 and all(len(pd.read_csv(run / "history.csv")) == 1 for run in runs)
    assert len(table_of(folder)) == 16


def test_several_runs_of_several_processes_are_refused(run_module):
    done = run_module("carvision.train", "-m", "trainer=ddp", "seed=0,1")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "each process of a run would begin all runs" in done.stderr


@pytest.mark.parametrize(
    "words, told",
    [
        (["-m", LR], "error: -m: a search needs none"),
        (["optimizer.lr=0.1"], "error: nothing is searched; give a space such as"),
        (
            ["optimizer.momentum=interval(0,1)"],
            "has no such key; choose another with optimizer=<choice> (in a trial with",
        ),
        (["optimizer=sgd,foo"], "error: optimizer: 'foo' is not one of adadelta"),
        (["run.dir=a,b"], "error: run.dir: can't be searched"),
        ([LR, "run.dir=a"], "error: run.dir: a search has a folder for each trial; give sweep.dir=a"),
        ([LR, "run.seeds=[1,2]"], "run.seeds: is not for trials"),
        ([LR, "data.split.kind=kfold"], "data.split.fold: all is not for trials"),
        ([LR, "sweep.objective={test/loss: min}"], "training and test photos choose nothing"),
        ([LR, "sweep.objective={seconds: min}"], "needs a validation metric"),
        ([LR, "sweep=pareto", "sweep.pruner=median"], "judges by one objective"),
        ([LR, "sweep=grid"], "has infinitely many values"),
        (["optimizer.lr=0.1,0.2", "sweep=grid", "sweep.cells=[2]"], "2 is not one of the grid's 2 cells, from 0"),
        ([LR, "sweep.cells=[2]"], "sweep.cells: is for sweep.sampler=grid"),
        ([LR, "sweep.trials=null"], "null is for sweep.sampler=grid"),
        ([LR, "sweep.pruner=hyperband", "sweep.min_epochs=99"], "99 is more than the 14 epochs of a trial"),
        (["trainer.max_epochs=2,4", "sweep=hyperband"], "compares trials of the same number of epochs"),
        (["optimizer=sgd,adam", "sweep.sampler=cmaes"], "cmaes searches numbers"),
        ([LR, "sweep.storage=nothing"], "sweep.storage: nothing can't be opened"),
        ([LR, "sweep.dir=/proc/nothing"], "sweep.dir: /proc/nothing can't be made"),
        ([LR, "--config-dir", "nowhere"], "nowhere is no folder"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(words, told, run_forked, tmp_path):
    (tmp_path / "empty").mkdir()
    done = forked.run("carvision.sweep", *words, cwd=tmp_path / "empty")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and told in done.stderr
    assert not list((tmp_path / "empty").iterdir())


def test_mistakes_wait_for_neither_torch_nor_optuna():
    code = (
        "import sys, runpy\nsys.argv = ['carvision.sweep', *{words}]\n"
        "try: runpy.run_module('carvision.sweep', run_name='__main__')\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'optuna', 'pandas', 'pytorch_lightning') if name in sys.modules])"
    )
    for words in (["optimizer.lr=0.1"], ["optimizer.lr=interval(1,0)"]):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("{words}", repr(words))], capture_output=True, text=True, cwd=ROOT
        )
        assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_best_trial_has_the_heads_that_were_added_and_lacks_those_that_were_taken_away(tmp_path, run_forked):
    heads = ["~model/head@model.heads.make", "+model/head@model.heads.speed=linear"]
    sweep = small_sweep(tmp_path / "sweep", LR, "optimizer=sgd,adam", *heads)
    trial = create_trial(
        value=0.5,
        params={"optimizer": "sgd", "optimizer.lr": 0.0123},
        distributions={"optimizer": CategoricalDistribution(["sgd", "adam"]), "optimizer.lr": FloatDistribution(0, 1)},
    )
    sweep.folder.mkdir()
    write_best(sweep, trial)
    words = ["--config-dir", sweep.folder, "experiment=best", "--cfg", "job", "--resolve"]
    config = yaml.safe_load(run_forked("carvision.train", *words, check=0).stdout)
    expected = dict(compose(sweep.overrides_for(trial.params))[0])
    assert sorted(config["model"]["heads"]) == ["model", "speed"] and config["optimizer"]["lr"] == 0.0123
    del config["run"], expected["run"]
    assert config == expected
