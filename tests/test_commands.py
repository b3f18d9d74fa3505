"""The commands as people run them, from any folder, in any locale, without what other systems lack, and their files."""

import json
import os
import runpy
import shutil
import signal
import stat
import subprocess
import sys

import pandas as pd
import pytest

from carvision.embed import embed
from carvision.evaluate import evaluate
from carvision.export import export
from carvision.files.atomic import open_kept
from tests.conftest import ROOT
from tests.data.layouts import write_class_folders
from tests.forked import wait_until

TINY = ["data.image_px=32", "data.batch_size=16", "data.num_workers=1"]
TINY += ["data.images_per_model=20", "model.backbone=test_resnet", "model.weights=random"]
# What Python has on Linux alone, or nowhere but on Windows
ELSEWHERE = """
import importlib, logging, os, pkgutil, runpy, signal, sys
from pathlib import Path

for name in ("fcntl", "grp", "pty", "pwd", "resource", "termios"):
    sys.modules[name] = None
for module, names in {
    os: "fork forkpty geteuid getloadavg getpgid getuid killpg mkfifo posix_fadvise posix_fallocate pread preadv "
        "sched_getaffinity sched_setaffinity setsid O_NOFOLLOW O_NONBLOCK",
    signal: "SIGALRM SIGCHLD SIGHUP SIGKILL SIGQUIT SIGUSR1 SIGUSR2 pthread_sigmask",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)

import carvision
for module in pkgutil.walk_packages(carvision.__path__, "carvision."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)

from carvision.files.locks import is_locked, lock_among_threads, lock_folder
folder = Path("locked")
folder.mkdir()
with lock_folder(folder, "refused"), lock_folder(folder, "refused"), lock_among_threads(folder / "a", True) as held:
    assert is_locked(folder) is held is None

for command, *words in [line.split() for line in sys.argv[1:]]:
    sys.argv[1:] = words
    try:
        runpy.run_module(f"carvision.{command}", run_name="__main__", alter_sys=True)
    except SystemExit as status:
        assert not status.code, status.code
"""
TRAIN = "train data=folder data.root=photos data.image_px=32 run.dir=run"
TRAIN += " model.backbone=test_resnet model.weights=random trainer.max_epochs=1 callbacks.progress_bar=false"


def test_train_alone_trains_on_the_demo_data(run_module, demo_photos, tmp_path):
    overrides = [f"data.root={demo_photos}", "trainer.max_epochs=1", *TINY]
    done = run_module("carvision.train", *overrides, check=0)
    last = done.stdout.splitlines()[-1]
    assert last.startswith("run: runs/demo/")
    folder = tmp_path / last.removeprefix("run: ")
    assert "make/top1" in json.loads((folder / "metrics.json").read_text())["test"]
    assert "all heads right" in done.stdout and "marginal" in (folder / "results.txt").read_text()
    assert "Warning" not in done.stderr, done.stderr
    assert "test photos" in (folder / "report.html").read_text(encoding="utf-8")


def test_ctrl_c_keeps_the_epochs_that_are_done(demo_photos, tmp_path):
    overrides = [f"data.root={demo_photos}", "trainer.max_epochs=500", "run.dir=run", *TINY]
    command = [sys.executable, "-m", "carvision.train", *overrides]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # A shell that runs the tests in the background makes them ignore the signal, which a child inherits
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    history, last = tmp_path / "run" / "history.csv", tmp_path / "run" / "checkpoints" / "last.ckpt"
    wait_until(lambda: last.exists() or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the workers as well
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130, messages
    assert "SIGINT: stopping with a checkpoint" in messages and "Traceback" not in messages, messages
    assert "the same command with run.dir=run resumes it" in messages
    assert len(pd.read_csv(history)) >= 1
    assert last.exists() and (tmp_path / "run" / "loss.png").exists()


def test_check_exits_with_1_if_photos_cannot_be_used(run_module, tmp_path):
    done = run_module("carvision.check", "data=folder", "data.root=nowhere", "out=run", check=1)
    [line] = done.stderr.splitlines()  # also for a mistake found late
    assert line.startswith("error: data.root")
    root = tmp_path / "photos"
    write_class_folders(root, {"oak": 4, "ash": 5})
    photos = sorted(root.rglob("*.jpg"))
    done = run_module("carvision.check", "data=folder", f"data.root={root}", "out=good", "num_workers=0", check=0)
    assert done.stdout.splitlines()[-1] == "check: good"
    photos[0].write_bytes(photos[0].read_bytes()[:-40])
    photos[1].write_bytes(b"")
    run_module("carvision.check", "data=folder", f"data.root={root}", "out=bad", "num_workers=1", check=1)
    write_class_folders(tmp_path / "few", {"oak": 4, "ash": 2})
    done = run_module("carvision.check", "data=folder", "data.root=few", "out=refused", "num_workers=0", check=1)
    assert "training would refuse these photos: data.split: class 'ash' of folder has 2 photos, too few" in done.stderr
    assert (tmp_path / "refused" / "problems.csv").exists()
    problems = pd.read_csv(tmp_path / "bad" / "problems.csv")
    assert sorted(problems["path"]) == sorted(str(p.relative_to(root)) for p in photos[:2])
    assert (tmp_path / "bad" / "counts_class.png").exists() and (tmp_path / "bad" / "samples_class.png").exists()


@pytest.mark.slow
def test_an_installed_wheel_finds_its_configs_from_any_folder(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, ROOT], check=True)
    (wheel,) = wheels.glob("carvision-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "carvision.train", "--cfg", "job", "data=oxford102"]
    shown = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0 and "name: oxford102" in shown.stdout, shown.stderr
    ours, theirs = (
        {p.relative_to(top) for p in top.rglob("*.yaml")} for top in (ROOT / "conf", site / "carvision/conf")
    )
    assert ours == theirs


@pytest.mark.slow
def test_nothing_needs_what_other_systems_lack(tmp_path):
    write_class_folders(tmp_path / "photos", {"oak": 12, "ash": 12})
    commands = [TRAIN, "predict run photos --out rows.csv", "evaluate run --samples 0"]
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *commands], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "locked has no locks ([Errno 37] this system has no fcntl)" in done.stderr
    assert (tmp_path / "run" / "metrics.json").is_file()
    assert len((tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines()) == 25


@pytest.mark.slow
def test_the_benchmark_runs_on_the_cpu(tmp_path):
    options = "--networks=test_resnet --image-px=32 --batch-size=8 --photos=64 --epochs=2 --repeats=1 --workers=1"
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "bench_gpu.py", "--device=cpu", "--out=bench", *options.split()],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    [row] = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert row["of_step"] == row["carvision"]["images_per_s"] / row["step"]["images_per_s"] > 0
    measures = [json.loads(text) for text in (tmp_path / "bench" / "measures.jsonl").read_text().splitlines()]
    assert [measure["kind"] for measure in measures] == ["step", "carvision", "timm"]


PRINTS = """
import os, sys
from carvision.errors import one_line_errors
with one_line_errors():
    print(sys.argv[1], os.listdir(sys.argv[1])[0])
    print("Bl\\xfcten", file=sys.stderr)
"""
LOCALES = [{"LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii"}]


@pytest.mark.parametrize("locale", LOCALES)
def test_commands_print_utf8(tmp_path, locale):
    (tmp_path / "Blüten" / "日本").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-c", PRINTS, "Blüten"], cwd=tmp_path, capture_output=True,
        env={**environment, **locale, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("utf-8") == "Blüten 日本\n" and done.stderr.decode("utf-8") == "Blüten\n"


@pytest.fixture
def run(demo_run, tmp_path):
    """A copy of the run, to write into."""
    return shutil.copytree(demo_run, tmp_path / "run")


def predict(arguments: list, monkeypatch) -> str | int | None:
    """Return the exit status or message."""
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments), "--workers", "0"])
    with pytest.raises(SystemExit) as done:
        runpy.run_module("carvision.predict", run_name="__main__")
    return done.value.code


def test_permissions_are_those_of_the_umask(run, demo_photos, monkeypatch):
    there = {*run.rglob("*")} - {run / "model.json"}  # in which evaluate stores the temperature
    photos = min(demo_photos.rglob("*.jpg")).parent
    before = os.umask(0o027)
    try:
        evaluate([str(run), "--samples", "0"])
        embed([str(run), "--split", "test"])
        export([str(run), "--format", "timm", "hub"])  # by safetensors, whose files have permissions of their own
        open_kept(run / "kept.log", "a").close()
        for name in ("out.csv", "out.parquet"):
            assert not predict([run, photos, "--out", run / name], monkeypatch)
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in {*run.rglob("*")} - there}
    names = {path.name for path in modes}
    assert {
        "model.json",
        "kept.log",
        "predictions.csv",
        "results.txt",
        "embeddings.npy",
        "out.csv",
        "out.parquet",
    } <= names
    assert {"config.json", "README.md", "model.safetensors", "coverage.png"} <= names
    assert not {path: oct(mode) for path, mode in modes.items() if mode != (0o750 if path.is_dir() else 0o640)}


def test_no_command_writes_through_a_link_of_the_run(run, demo_photos, tmp_path, monkeypatch):
    outside, mine = tmp_path / "outside", tmp_path / "mine.txt"
    outside.mkdir()
    mine.write_text("precious")
    commands = {"evaluations": (evaluate, "--samples=0"), "embeddings": (embed, "--split=test")}
    for kind, (command, option) in (commands | {"export": (export, "--format=timm")}).items():
        (run / kind).symlink_to(outside)
        with pytest.raises(SystemExit, match=rf"^error: .*{kind} is a symbolic link to .*outside, outside of.*[^\n]$"):
            command([str(run), option])
    (run / "out.csv.partial").symlink_to(mine)
    error = predict([run, min(demo_photos.rglob("*.jpg")), "--out", run / "out.csv"], monkeypatch)
    assert str(error).startswith("error: ") and "\n" not in error and not (run / "out.csv").exists()
    assert not [*outside.iterdir()] and mine.read_text() == "precious"
