"""Fixtures for all tests: photos, a small run, and commands run as users run them."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forked

# Read when torch is imported. Two threads that wait for each other on busy cores take many times as long as one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as carvision.train has it, for processes that are forked

ROOT = Path(__file__).resolve().parent.parent


def real_data() -> Path:
    return Path(os.environ.get("CARVISION_REAL_DATA", ROOT.parent / "shared" / "data"))


# Begun last, one of these would keep one process busy after the others have ended
LONG_FILES = [
    "training/distributed/test_launchers.py", "search/test_sweeps.py", "training/run/test_resume.py",
    "training/features/test_cache.py", "training/run/test_more_epochs.py", "training/run/test_strange_run_folders.py",
    "training/test_phases.py",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first, then others with slow tests."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    order = {ROOT / "tests" / name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: (order.get(item.path, len(order)), item.path not in slow))


@pytest.fixture(scope="session")
def real_photos() -> Path:
    """The folder of real data sets, which is not part of the project."""
    if not real_data().is_dir():
        pytest.skip(f"no real photos in {real_data()} (CARVISION_REAL_DATA names their folder)")
    return real_data()


@pytest.fixture(scope="session")
def demo_photos(tmp_path_factory) -> Path:
    """A small demo data set: 12 models, 20 photos of each."""
    from carvision.demo.write import write_demo

    return write_demo(tmp_path_factory.mktemp("demo") / "data", images_per_model=20)


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory, demo_photos) -> Path:
    """The folder of a small run of make, model and speed on `demo_photos`. Read-only: copy it to change it."""
    from tests.small_runs import demo, train

    folder = tmp_path_factory.mktemp("runs") / "demo"
    speed = ["+model/head@model.heads.speed=linear", "optimizer.lr=0.003"]
    return train(folder, *demo(demo_photos), *speed, pictures=True)


@pytest.fixture
def run_forked(tmp_path):
    """run_module for commands that need torch: forks a process that has already imported it."""
    return functools.partial(forked.run, cwd=tmp_path)


@pytest.fixture
def run_module(tmp_path):
    """run_module("carvision.train", "seed=1", ...) -> CompletedProcess, in an empty folder, as a user runs it."""

    def run(module: str, *arguments: str, check: int | None = None, env: dict | None = None):
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **(env or {})}
        command = [sys.executable, "-m", module, *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert check in (None, done.returncode), f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures that reports save, which are written as well."""
    from carvision.reports import matrix, photos, plots

    saved, save = [], plots.save_figure
    for module in (matrix, photos, plots):
        monkeypatch.setattr(module, "save_figure", lambda figure, file: (saved.append(figure), save(figure, file)))
    return saved
