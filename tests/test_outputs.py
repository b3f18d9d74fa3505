"""Files of the commands on a finished run have the permissions of the umask, and go through no link of the run."""

import os
import runpy
import shutil
import stat
import sys

import pytest

from carvision.embed import embed
from carvision.evaluate import evaluate
from carvision.export import export
from carvision.files.atomic import open_kept


@pytest.fixture
def run(demo_run, tmp_path):
    """A copy of the run, to write into."""
    return shutil.copytree(demo_run, tmp_path / "run")


def predict(arguments: list, monkeypatch) -> str | int | None:
    """Return the exit status or message. It runs as __main__, as an import would hide carvision.predict."""
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
