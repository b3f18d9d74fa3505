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


@pytest.fixture
def run(demo_run, tmp_path):
    """A copy of the run, to write into."""
    return shutil.copytree(demo_run, tmp_path / "run")


@pytest.fixture
def predict(monkeypatch, capsys):
    """predict(...) -> exit status, standard error. It runs as __main__, as an import would hide carvision.predict."""

    def call(*arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments), "--workers", "0"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            runpy.run_module("carvision.predict", run_name="__main__")
        code = done.value.code
        return (code or 0, capsys.readouterr().err) if code is None or isinstance(code, int) else (1, f"{code}\n")

    return call


@pytest.fixture
def photos(demo_photos):
    return next(path.parent for path in sorted(demo_photos.rglob("*.jpg")))


def test_permissions_are_those_of_the_umask(run, photos, predict):
    there = {*run.rglob("*")} - {run / "model.json"}  # in which evaluate stores the temperature
    before = os.umask(0o077)
    try:
        evaluate([str(run), "--samples", "0"])
        embed([str(run), "--split", "test"])
        export([str(run), "--format", "timm", "hub"])
        for name in ("out.csv", "out.parquet"):
            assert predict(run, photos, "--out", run / name)[0] == 0
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in {*run.rglob("*")} - there}
    names = {path.name for path in modes}
    assert {"model.json", "predictions.csv", "results.txt", "embeddings.npy", "out.csv", "out.parquet"} <= names
    assert {"config.json", "README.md", "model.safetensors", "coverage.png"} <= names
    assert not {path: oct(mode) for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)}


@pytest.mark.parametrize("kind", ["evaluations", "embeddings", "export"])
def test_no_folder_of_the_run_may_lead_out_of_it(kind, run, tmp_path):
    commands = {"evaluations": (evaluate, "--samples=0"), "embeddings": (embed, "--split=test")}
    command, option = commands.get(kind, (export, "--format=timm"))
    (tmp_path / "outside").mkdir()
    (run / kind).symlink_to(tmp_path / "outside")
    with pytest.raises(SystemExit, match=rf"^error: .*{kind} is a symbolic link to .*outside, outside of.*[^\n]$"):
        command([str(run), option])
    assert not [*(tmp_path / "outside").iterdir()]


@pytest.mark.parametrize("name", ["out.csv.partial", "out.parquet.partial"])
def test_predictions_go_through_no_link(name, run, photos, tmp_path, predict):
    outside = tmp_path / "outside"
    outside.mkdir() if "parquet" in name else outside.write_text("")
    (run / name).symlink_to(outside)
    out = run / name.partition(".partial")[0]
    code, error = predict(run, photos, "--out", out)
    assert code == 1 and error.startswith("error: ") and error.count("\n") == 1 and not out.exists()
    assert not [*outside.iterdir()] if outside.is_dir() else outside.read_text() == ""


def test_a_name_that_is_too_long_is_one_line(run, photos, predict):
    for options in (["--out", "x" * 250 + ".csv"], ["--grid", "x" * 300 + ".png"]):
        code, error = predict(run, photos, *options)
        assert code == 1 and "File name too long" in error and error.count("\n") == 1 and len(error) < 400
