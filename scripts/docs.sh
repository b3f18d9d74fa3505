#!/usr/bin/env bash
# Build the docs into site/: scripts/docs.sh [arguments of mkdocs build]. Dead links, links to headings that don't exist
# and pages that are missing from the navigation are errors. Open site/index.html; no server is needed.
# Sets up .venv on first use.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
"$python" scripts/setup_venv.py
export NO_MKDOCS_2_WARNING=1   # an advertisement for its successor
exec .venv/bin/python -m mkdocs build --strict --clean "$@"
