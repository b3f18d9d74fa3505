"""Packages that do nothing, or what a broken one does, for processes that find them first."""

import os
from pathlib import Path


def python_path(stubs: Path) -> str:
    """For PYTHONPATH: the folder before all that stands there already."""
    return os.pathsep.join([str(stubs), *filter(None, [os.environ.get("PYTHONPATH")])])


def write_stub(folder: Path, name: str, code: str = "") -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "__init__.py").write_text(code)
