#!/usr/bin/env bash
# Train: scripts/train.sh [overrides], for example scripts/train.sh data=folder data.root=/photos
# Sets up .venv on first use, then runs: python -m carvision.train [overrides]
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
"$python" "$top/scripts/setup_venv.py"
echo "[train] python -m carvision.train $*"
exec "$top/.venv/bin/python" -m carvision.train "$@"
