#!/usr/bin/env bash
# Test: scripts/test.sh [pytest arguments]. With none: the linter, the type checker and all tests but those marked slow,
# which .ci/run runs.
# Sets up .venv on first use.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$top"
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
"$python" scripts/setup_venv.py
echo "[test] ruff check, ruff format --check"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
echo "[test] pyrefly check"
.venv/bin/pyrefly check --python-interpreter-path .venv/bin/python
# Several processes run the tests. Each file is run by one of them, so that fixtures are made once a file; files come in
# the order of tests/conftest.py, long ones first.
[ $# -gt 0 ] || set -- -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
echo "[test] pytest $*"
exec .venv/bin/python -m pytest "$@"
