#!/usr/bin/env bash
# Set up .venv-tpu, the environment of trainer=tpu: torch-xla works with one release of PyTorch alone, which is not the
# one of .venv. Does nothing where it is there already. Then: .venv-tpu/bin/python -m carvision.train trainer=tpu
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
exec "$python" "$top/scripts/setup_venv.py" tpu
