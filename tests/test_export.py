"""python -m carvision.export, as a user types it."""

import subprocess
import sys

import pytest

from carvision import export as command
from carvision.errors import InputError
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
    again = run_forked("carvision.export", run, "--format", "hub", "timm", check=1)
    assert again.stderr == f"error: {run}/export/timm exists already; give another path with --out\n"
    assert not (run / "export" / "hub").exists()  # nothing is half done


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
    with pytest.raises(InputError, match=r"--out: .* must end in .pt2"):
        command.write(tmp_path, {"torch-export": tmp_path / "model"}, None)


def test_a_place_of_ones_own(tmp_path, capsys):
    run = save_model(tmp_path / "run")
    command.export([str(run), "--format", "timm", "--head", "make", "--out", str(tmp_path / "a" / "b")])
    assert capsys.readouterr().out.splitlines()[-1] == f"export: {tmp_path / 'a' / 'b'}"
    assert (tmp_path / "a" / "b" / "config.json").is_file()
