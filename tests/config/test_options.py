"""RUN of the plain commands: a path, the newest run, or the newest of a folder."""

from pathlib import Path

import pytest

from carvision import compare, evaluate, predict, retrieve


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "model.json").touch()
    return Path("runs")


@pytest.mark.parametrize("given", ["latest", "runs", "runs/b"])
def test_every_command_takes_the_newest_run(runs, given, caplog):
    parsed = [
        predict.build_parser().parse_intermixed_args(["runs/a", "new.jpg", "--ensemble", given]).ensemble[0],
        evaluate.parse([given, "data.root=photos"]).run,
        retrieve.options_of([given]).run,
    ]
    assert parsed == [runs / "b"] * 3
    assert caplog.messages == ([] if given == "runs/b" else [f"{given}: runs/b is the newest run"] * 3)


def test_compare_takes_all_runs_of_a_folder_and_the_newest(runs):
    given = compare.build_parser().parse_args(["runs", "latest"]).given
    assert given == [runs, runs / "b"]


def test_latest_without_a_run_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        evaluate.parse(["latest"])
    assert "error: argument RUN: latest: there is no finished run below" in capsys.readouterr().err
