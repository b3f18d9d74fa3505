#!/usr/bin/env bash
# Test trainer=tpu without a TPU, on XLA's CPU device: scripts/test_tpu.sh [pytest arguments]
# Sets up .venv-tpu on first use.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$top"
scripts/setup_tpu.sh
[ $# -gt 0 ] || set -- tests/tpu --numprocesses auto --maxprocesses 4
echo "[test] pytest $*, PJRT_DEVICE=CPU"
export PJRT_DEVICE=CPU
exec .venv-tpu/bin/python -m pytest "$@"
