"""carvision export, as a user types it, and what all formats share."""

import sys
from unittest import mock

import pytest
import torch

from carvision import export as command
from carvision.errors import InputError
from carvision.exports import graphs, hub
from carvision.exports.shared import largest_difference, public_about, require_agreement
from tests.exports.conftest import CONFIG, save_model


def test_it_prints_what_it_wrote_and_does_not_overwrite_it(run_forked, tmp_path, capsys):
    run = save_model(tmp_path / "run")
    done = run_forked("carvision.export", run / "model.safetensors", "--format", "timm", check=0)
    *_, what, last = done.stdout.splitlines()
    assert "relative difference from the run's outputs: " in what and last == f"export: {run / 'export' / 'timm'}"
    again = run_forked("carvision.export", run, "--format", "timm", "hub", check=1)
    assert again.stderr == f"error: --format timm: {run}/export/timm exists already; give another path with --out\n"
    assert again.stdout.splitlines()[-1] == f"export: {run / 'export' / 'hub'}"  # the others are written all the same
    command.export([str(run), "--format", "timm", "--head", "make", "--out", str(tmp_path / "a" / "b")])
    assert capsys.readouterr().out.splitlines()[-1] == f"export: {tmp_path / 'a' / 'b'}"
    assert (tmp_path / "a" / "b" / "config.json").is_file()


def test_one_format_that_fails_does_not_stop_the_others(tmp_path, capsys, monkeypatch):
    run = save_model(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    monkeypatch.setattr(hub, "model_card", lambda *_: 1 / 0)
    monkeypatch.setattr(graphs.torch.export, "save", mock.Mock(side_effect=RuntimeError("a\nb")))
    with pytest.raises(SystemExit) as ended:
        command.export([str(run), "--format", "hub", "torch-export", "onnx", "timm"])
    assert ended.value.code == (  # which Python prints to standard error, and ends with status 1
        "error: --format hub: it failed (ZeroDivisionError: division by zero)\n"
        "error: --format torch-export: it failed (RuntimeError: a b)"
    )
    printed = capsys.readouterr().out
    assert "not verified: onnxruntime is not installed" in printed
    assert sorted(file.name for file in (run / "export").iterdir()) == ["model.onnx", "timm"]


def test_options_that_do_not_fit_are_refused(tmp_path, capsys):
    for arguments, message in (
        (["--format", "timm", "hub", "--out", "x"], "give one --format"),
        (["--format", "onnx", "--head", "make"], "--head belongs to"),
        ([], "--format"),
    ):
        with pytest.raises(SystemExit):
            command.export([str(tmp_path), *arguments])
        assert message in capsys.readouterr().err
    with pytest.raises(InputError, match="no model there"):
        command.write(tmp_path / "nothing", {"timm": None}, None)
    (problem,) = command.write(tmp_path, {"torch-export": tmp_path / "model"}, None)
    assert problem.startswith("--out: ") and problem.endswith("must end in .pt2")
    (tmp_path / "file").touch()
    (problem,) = command.write(tmp_path, {"timm": tmp_path / "file" / "inside"}, None)
    assert "can't be written" in problem


def test_paths_are_reduced_to_their_last_component_and_the_rest_stays():
    public = public_about({"config": CONFIG, "decoding": "joint"})
    assert public["config"]["data"] == {"name": "manifest", "root": None, "file": "table.csv"}
    assert public["config"]["run"]["dir"] == "mine" and public["config"]["model"]["weights"] == "first"
    assert public["config"]["more"] == [{"anything": "else"}] and public["decoding"] == "joint"
    assert CONFIG["data"]["root"] == "/home/owner/secret/cars"  # untouched
    config = {"model": {"weights": "pretrained", "mean": [0.5], "backbone": "a/b"}}
    assert public_about({"config": config})["config"] == config


def test_differences_are_relative_to_the_scale_of_each_output():
    ours = {"a": torch.tensor([100.0, 0.0]), "b": torch.tensor([1.0, 2.0])}
    assert largest_difference(ours, ours) == 0
    assert largest_difference({"a": torch.tensor([float("nan"), 1.0])}, {"a": torch.ones(2)}) == float("inf")
    assert largest_difference(ours, {**ours, "a": torch.tensor([100.0, 1.0])}) == pytest.approx(0.01)
    assert largest_difference(ours, {**ours, "b": torch.tensor([1.0, 3.0])}) == pytest.approx(0.5)
    for wrong in (torch.tensor([1.0, float("nan")]), torch.ones(3)):
        with pytest.raises(InputError):
            require_agreement(largest_difference(ours, {**ours, "b": wrong}), 1e9, "it")
