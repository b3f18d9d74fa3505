"""UTF-8 in every locale: output of commands, names of files, and the text files that the project opens."""

import ast
import os
import subprocess
import sys

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


@pytest.mark.parametrize("folder", ["carvision", "scripts"])
def test_text_is_read_and_written_as_utf8(folder):
    """By methods of paths and by processes, which ruff's PLW1514 does not see."""
    for file in (ROOT / folder).rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            name, given = ast.unparse(call.func), {keyword.arg for keyword in call.keywords}
            is_text = name.endswith(".write_text") or (name.endswith("read_text") and not call.args)
            is_text |= name.startswith("subprocess.") and "text" in given
            assert not is_text or "encoding" in given, (file.name, call.lineno)
