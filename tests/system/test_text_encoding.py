"""UTF-8 in every locale: output of commands, names of files, and the text files that the project opens."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PRINTS = """
import os, sys
from carvision.errors import one_line_errors
with one_line_errors():
    print(sys.argv[1], os.listdir(sys.argv[1])[0])
    print("Bl\\xfcten", file=sys.stderr)
"""
LOCALES = [{"LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii"}]


@pytest.mark.parametrize("locale", LOCALES)
def test_commands_print_utf8(tmp_path, locale):
    (tmp_path / "Blüten" / "日本").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-c", PRINTS, "Blüten"], cwd=tmp_path, capture_output=True,
        env={**environment, **locale, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("utf-8") == "Blüten 日本\n" and done.stderr.decode("utf-8") == "Blüten\n"


def opens_text(call: ast.Call) -> bool:
    """Return whether the call opens a text file, or reads a process's output as text, without an encoding."""
    owner, _, name = ast.unparse(call.func).rpartition(".")
    given = {keyword.arg for keyword in call.keywords}
    if "encoding" in given:
        return False
    if name in ("open", "open_kept"):
        is_binary = any(re.fullmatch("'.{0,2}b.?'", ast.unparse(part)) for part in call.args)
        return not (None in given or is_binary or owner in ("os", "Image", "tarfile", "gzip") or "ALL" in owner)
    is_text = name in ("run", "Popen", "check_output") and "text" in given
    return is_text or (name == "read_text" and not call.args) or (name == "write_text" and owner != "")


@pytest.mark.parametrize("folder", ["carvision", "scripts"])
def test_text_files_are_opened_as_utf8(folder):
    """ruff's PLW1514 sees only some of them."""
    for file in Path(ROOT, folder).rglob("*.py"):
        calls = [call for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(call, ast.Call)]
        assert [(file.name, call.lineno, ast.unparse(call)) for call in calls if opens_text(call)] == []
