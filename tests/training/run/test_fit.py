"""carvision.fit trains as the command does, in a program of one's own."""

import json

import pytest

import carvision
from carvision.errors import InputError
from carvision.files.folders import find_run
from tests.small_runs import SMALL, demo


def test_fit_returns_the_run_that_the_command_would_make(demo_photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [*SMALL, *demo(demo_photos), "trainer.max_epochs=1", "logger=none", "run.report=false"]
    run = carvision.fit(*words)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        f"next: carvision report {run.folder}", f"      carvision predict {run.folder} photo.jpg", f"run: {run.folder}"
    ]  # fmt: skip
    assert run.folder == find_run("latest") and run.folder.parent.as_posix() == "runs/demo"
    assert run.metrics == json.loads((run.folder / "metrics.json").read_text()) and "make/top1" in run.metrics["test"]
    assert run.load().classes == carvision.load("latest").classes == carvision.load("runs").classes
    with pytest.raises(InputError, match=r"holds a finished run \(carvision report .* shows it\)"):
        carvision.fit(*words, f"run.dir={run.folder}")


@pytest.mark.parametrize(("override", "message"), [
    ("optimizer.lr=fast", "optimizer.lr: 'fast' is not a number above 0"),
    ("trainer.devices=2", "trainer.devices: 2, and carvision.fit trains in its own process"),
    ("trainer=ddp", "trainer.devices: 2, and carvision.fit trains in its own process"),
])  # fmt: skip
def test_fit_refuses_wrong_values_and_several_processes(override, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        carvision.fit(override)
    assert not list(tmp_path.iterdir())
