"""Which versions of what is installed, read from metadata: no package is imported."""

from __future__ import annotations  # carvision.doctor shall say itself that a Python is too old

import os
import re
import subprocess
from importlib import metadata
from pathlib import Path

OPTIONAL = ("torch-xla", "lightning", "onnx", "onnxruntime", "pillow-heif")  # told where they are installed
PACKAGE = Path(__file__).resolve().parents[1]


def requirements() -> list[str]:
    """What carvision needs, as "torch>=2.6": of pyproject.toml in a checkout, else of the installed metadata.

    Empty where neither can be read.
    """
    try:
        import tomllib  # from Python 3.11

        text = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
        project = tomllib.loads(text)["project"]
        if project["name"] == "carvision":
            return list(project["dependencies"])
    except (ImportError, OSError, ValueError, KeyError):
        pass
    try:
        return [line for line in metadata.requires("carvision") or [] if "extra ==" not in line]
    except metadata.PackageNotFoundError:
        return []


def name_of(requirement: str) -> str:
    """ "torch" of "torch>=2.6"."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def read_versions() -> dict[str, str | None]:
    """{name: version} of what carvision needs, None where it is not installed; and of OPTIONAL what is installed."""
    versions = {name: version_of(name) for name in map(name_of, requirements())}
    others = {name: version_of(name) for name in OPTIONAL}
    return versions | {name: version for name, version in others.items() if version}


def version_of(name: str) -> str | None:
    """With the build ("2.9.0+cpu") where the package's own version.py tells it, which the metadata may leave out."""
    try:
        distribution = metadata.distribution(name)
        version = distribution.version
    except (metadata.PackageNotFoundError, KeyError, ValueError):  # the latter of damaged metadata
        return None
    try:
        text = Path(str(distribution.locate_file(f"{name}/version.py"))).read_text(encoding="utf-8")
        found = re.search(r"^__version__.*?['\"](.+?)['\"]", text, re.MULTILINE)
        return found[1] if found else version
    except (OSError, ValueError, TypeError):
        return version


def git_state(folder: Path = PACKAGE.parent) -> dict | None:
    """{"commit": ..., "changed": whether tracked files differ from it} where the folder is the top of a git checkout,
    else None; also where git is missing or does not answer within seconds."""
    if not (folder / ".git").exists():
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": None if changes is None else bool(changes)} if commit else None


def _git(folder: Path, *words: str) -> str | None:
    # A hook of git sets GIT_DIR and others, which would name another repository. No lock: another git may be at work.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=10,
            encoding="utf-8", errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
