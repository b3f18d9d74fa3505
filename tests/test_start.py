"""Heavy imports stay late; imports are counted, as no busy machine changes that (scripts/bench_start.py has times)."""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import carvision
from carvision.__main__ import commands, main
from carvision.config.overrides import require_overrides
from carvision.errors import InputError
from tests.conftest import ROOT
from tests.data.layouts import write_class_folders

COMMANDS = sorted(commands())
HEAVY = {"torch", "numpy", "pandas", "pytorch_lightning", "timm", "matplotlib", "optuna"}
# Beyond what torch, timm and Lightning import of them, a training needs none of these before its first step
UNUSED = {"scipy", "sklearn", "matplotlib", "torchmetrics", "optuna", "jinja2", "onnx", "IPython"}
FIRST_STEP = """
import os, runpy, sys
import torch, timm, pytorch_lightning
before = set(sys.modules)
import carvision.training.module as module

def training_step(*arguments):
    print("more:", *sorted(set(sys.modules) - before), flush=True)
    os._exit(0)

module.LitClassifier.training_step = training_step
runpy.run_module("carvision.train", run_name="__main__", alter_sys=True)
"""


def python(*arguments: str, check: int = 0, cwd: Path = ROOT, **environment: str) -> tuple[str, set[str]]:
    """Run Python; return what it printed, errors included, and the names of all modules that it imported."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == check, done.stderr[-3000:]
    errors = re.sub(r"^import time:.*\n", "", done.stderr, flags=re.MULTILINE)
    return done.stdout + errors, set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command):
    text, imported = python("-m", "carvision", command, "--help")
    assert f"carvision {command}" in text and not imported & (HEAVY | {"hydra", "omegaconf"})


def test_carvision_lists_its_commands_and_imports_nothing_heavy():
    for word in ([], ["--help"]):
        text, imported = python("-m", "carvision", *word)
        assert (
            set(re.findall(r"^  (\w+)  ", text, re.MULTILINE)) == set(COMMANDS)
            and max(map(len, text.split("\n"))) <= 120
        )
        assert not imported & {*HEAVY, "hydra", "yaml", "rich"}
    for words in (["--version"], ["train", "--version"]):
        text, imported = python("-m", "carvision", *words)
        assert text == f"carvision {carvision.__version__}\n" and not imported & HEAVY
    text, _ = python("-m", "carvision", "retrain", check=1)
    assert text == "error: 'retrain' is not a command; nearest: train; carvision --help lists them\n"
    text, _ = python("-m", "carvision", "data=folder", "a b", check=1)
    assert text.endswith("type: carvision train data=folder 'a b'\n")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("command", ["--help", *COMMANDS])
def test_help_fits_a_terminal_and_breaks_no_word(command, monkeypatch):
    shown = {}
    for columns in (80, 120, 400):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "stdout", Terminal())
        monkeypatch.setattr(sys, "argv", ["carvision"])  # which the command sets
        with contextlib.suppress(SystemExit):
            main([command, "--help"])
        shown[columns] = sys.stdout.getvalue()
    for columns in (80, 120):
        assert max(map(len, shown[columns].splitlines())) <= columns
        assert sorted(shown[columns].split()) == sorted(shown[400].split())


def test_importing_carvision_imports_nothing_else():
    _, imported = python("-c", "import carvision; carvision.fit, carvision.load, carvision.Run")
    assert {name for name in imported if name.startswith("carvision")} == {"carvision"} and not imported & HEAVY


LINES = {  # what people type: what the error tells them to type
    "photos": "data=folder data.root=photos",
    "photos --epochs 5": "data=folder data.root=photos trainer.max_epochs=5",
    "--data photos/list.csv --lr=0.1": "data=manifest data.root=photos data.file=list.csv optimizer.lr=0.1",
    "loss=focal --batch-size 8 --gpu -m": "loss=focal data.batch_size=8 trainer=gpu -m",
    "--epochs": "trainer.max_epochs=<value>",
}


@pytest.mark.parametrize("line", LINES)
def test_options_as_other_programs_have_them_are_answered_with_the_line_to_type(line, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "list.csv").touch()
    monkeypatch.chdir(tmp_path)
    for command in ("train", "sweep"):
        with pytest.raises(InputError) as error:
            require_overrides(command, line.split())
        quick = "experiment=quick " * (command == "train" and line == "photos")
        assert str(error.value).endswith(f"; type: carvision {command} {quick}{LINES[line]}")
        require_overrides(command, LINES[line].replace("<value>", "5").split())
    with pytest.raises(InputError, match=r"--lrr: is no option of this command.*; nearest: lr"):
        require_overrides("train", ["--lrr", "1"])


@pytest.mark.parametrize("override", ["data.split.kind=offical", "data.rot=photos", "data=folder"])
def test_a_mistake_is_one_line_and_imports_nothing_heavy(override, tmp_path):
    """A wrong value, an unknown key, and a value that must be given."""
    text, imported = python("-m", "carvision.train", override, check=1, cwd=tmp_path, HYDRA_FULL_ERROR="")
    assert text.startswith("error: data") and text.count("\n") == 1 and not list(tmp_path.iterdir())
    assert not imported & HEAVY


def test_help_into_a_closed_pipe_is_no_error():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "carvision.train", "--help"]
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_completion_imports_nothing_heavy():
    asked = "python -m carvision.train data=demo data.root=~/it\\'s 'run.dir=my runs (1)' optimizer.l"
    text, imported = python("-m", "carvision.train", "--shell-completion", "query=bash", COMP_LINE=asked)
    assert "optimizer.lr=" in text.split() and not imported & HEAVY


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_completion_in_a_shell(tmp_path):
    command = tmp_path / "carvision"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m carvision "$@"\n')
    command.chmod(0o755)
    groups = " ".join(f"data={file.stem}" for file in sorted((ROOT / "conf" / "data").glob("*.yaml")))
    wanted = {
        f"{sys.executable} -m carvision.train data=": groups,
        f"{sys.executable} -m carvision.check data.ro": "data.root=",
        f"{sys.executable} -m json.tool da": "",
        "carvision tr": "train",
        "carvision train data=": groups,
        "carvision predict --gr": "--grid --grid-classes --grid-photos",
    }
    script = f"""
eval "$({command} --shell-completion install=bash)"
for line in {" ".join(f'"{line}"' for line in wanted)}; do
    COMP_LINE="$line"; COMP_POINT=${{#COMP_LINE}}
    COMP_WORDS=($COMP_LINE); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); COMPREPLY=()
    carvision_completion
    echo "${{COMPREPLY[@]}}"
done
eval "$({sys.executable} -m carvision.train --shell-completion uninstall=bash)"
complete -p python; type -t carvision_completion
"""
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert dict(zip(wanted, done.stdout.splitlines(), strict=True)) == wanted, done.stderr


def test_a_training_imports_only_what_it_uses(tmp_path):
    write_class_folders(tmp_path / "photos", {"oak": 12, "ash": 12})
    words = ["data=folder", "data.root=photos", "data.image_px=32", "data.num_workers=1"]
    words += ["model.backbone=test_resnet", "model.weights=random"]
    text, _ = python("-c", FIRST_STEP, *words, f"run.dir={tmp_path / 'run'}", cwd=tmp_path)
    more = re.findall(r"^more: (.*)$", text, re.MULTILINE)[0].split()
    assert "pandas" in more and not {name for name in more if name.partition(".")[0] in UNUSED}
