#!/usr/bin/env bash
# Test what of carvision.sweep may depend on the version of Optuna (marked optuna) with Optuna 4:
# scripts/test_optuna4.sh [pytest arguments]. Needs .venv, which scripts/test.sh sets up.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$top"
beside=.venv/optuna4   # the one package alone; all others are those of .venv
[ -d "$beside/optuna" ] || .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
    --require-hashes --target "$beside" -r requirements-optuna4.txt
export PYTHONPATH="$top/$beside${PYTHONPATH:+:$PYTHONPATH}"
[ $# -gt 0 ] || set -- tests/search -m optuna --numprocesses auto --maxprocesses 4 --dist loadfile
echo "[test] Optuna $(.venv/bin/python -c 'import optuna; print(optuna.__version__)'): pytest $*"
exec .venv/bin/python -m pytest "$@"
