"""Without what Windows and macOS lack, every module can be imported, and a network be trained and used."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.data.layouts import write_class_folders

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
TRAIN = "train data=folder data.root=photos data.split.kind=stratified data.image_px=32 run.dir=run"
TRAIN += " model.backbone=test_resnet model.weights=random trainer.max_epochs=1 callbacks.progress_bar=false"


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
