"""python -m carvision.export, as a user types it."""

import subprocess
import sys
from unittest import mock

import pytest

from carvision import export as command
from carvision.errors import InputError
from carvision.exports import graphs, hub
from tests.exports.saved import save_model


def test_help_loads_no_torch():
    code = (
        "import sys; from carvision.export import export\n"
        "try: export(['--help'])\n"
        "except SystemExit: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "--format onnx torch-export hub" in done.stdout


def test_it_says_what_it_wrote_and_refuses_to_write_it_again(run_forked, tmp_path):
    run = save_model(tmp_path / "run")
    done = run_forked("carvision.export", run / "model.safetensors", "--format", "timm", check=0)
    *_, what, last = done.stdout.splitlines()
    assert "largest difference from the run's: " in what and last == f"export: {run / 'export' / 'timm'}"
    again = run_forked("carvision.export", run, "--format", "timm", "hub", check=1)
    assert again.stderr == f"error: --format timm: {run}/export/timm exists already; give another path with --out\n"
    assert again.stdout.splitlines()[-1] == f"export: {run / 'export' / 'hub'}"  # the others are written all the same


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
    told = capsys.readouterr().out
    assert "not verified: onnxruntime is not installed" in told
    assert sorted(file.name for file in (run / "export").iterdir()) == ["model.onnx", "timm"]


def test_a_hub_folder_needs_no_timm_form(tmp_path, capsys, monkeypatch):
    run = save_model(tmp_path / "run")
    monkeypatch.setattr(hub, "export_timm", mock.Mock(side_effect=InputError("timm differs")))
    command.export([str(run), "--format", "hub"])
    assert "no timm form: timm differs" in capsys.readouterr().out and (run / "export" / "hub" / "README.md").is_file()


def test_out_and_head_go_where_they_belong(tmp_path, capsys):
    for arguments, says in (
        (["--format", "timm", "hub", "--out", "x"], "give one --format"),
        (["--format", "onnx", "--head", "make"], "--head belongs to"),
        (["--format", "onxn"], "invalid choice: 'onxn'"),
        ([], "--format"),
    ):
        with pytest.raises(SystemExit):
            command.export([str(tmp_path), *arguments])
        assert says in capsys.readouterr().err


def test_one_line_for_what_is_no_run(tmp_path):
    with pytest.raises(InputError, match="no model there"):
        command.write(tmp_path / "nothing", {"timm": None}, None)
    (problem,) = command.write(tmp_path, {"torch-export": tmp_path / "model"}, None)
    assert problem.startswith("--out: ") and problem.endswith("must end in .pt2")


def test_a_place_of_ones_own(tmp_path, capsys):
    run = save_model(tmp_path / "run")
    command.export([str(run), "--format", "timm", "--head", "make", "--out", str(tmp_path / "a" / "b")])
    assert capsys.readouterr().out.splitlines()[-1] == f"export: {tmp_path / 'a' / 'b'}"
    assert (tmp_path / "a" / "b" / "config.json").is_file()
