"""Read installed versions from metadata, importing no package, and the commit of a checkout."""

from __future__ import annotations  # so that carvision.doctor can report a Python that is too old

import os
import re
import subprocess
from importlib import metadata
from pathlib import Path

OPTIONAL = ("torch-xla", "lightning", "onnx", "onnxruntime", "pillow-heif")  # reported if installed
PACKAGE = Path(__file__).resolve().parents[1]


def requirements() -> list[str]:
    """Return carvision's requirements, such as "torch>=2.6": from pyproject.toml in a checkout, else from metadata.

    Empty if neither can be read.
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
    """Return the package of a requirement: "torch" of "torch>=2.6"."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def read_versions() -> dict[str, str | None]:
    """Return {package: version} of all requirements, None if not installed, and of the installed OPTIONAL packages."""
    versions = {name: version_of(name) for name in map(name_of, requirements())}
    others = {name: version_of(name) for name in OPTIONAL}
    return versions | {name: version for name, version in others.items() if version}


def version_of(name: str) -> str | None:
    """Return a package's version; None if it is not installed.

    It includes the build ("2.9.0+cpu") if the package's version.py has it, which metadata may leave out.
    """
    try:
        distribution = metadata.distribution(name)
        version = distribution.version
    except (metadata.PackageNotFoundError, KeyError, ValueError):  # the last two from damaged metadata
        return None
    try:
        text = Path(str(distribution.locate_file(f"{name}/version.py"))).read_text(encoding="utf-8")
        found = re.search(r"^__version__.*?['\"](.+?)['\"]", text, re.MULTILINE)
        return found[1] if found else version
    except (OSError, ValueError, TypeError):
        return version


def git_state(folder: Path = PACKAGE.parent) -> dict | None:
    """Return {"commit", "changed": whether tracked files differ from it} of a git checkout, None if unknown.

    folder: the top of the checkout. None also if git is missing or takes longer than 10 s.
    """
    if not (folder / ".git").exists():
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": None if changes is None else bool(changes)} if commit else None


def _git(folder: Path, *words: str) -> str | None:
    # A git hook sets GIT_DIR and others, which would name another repository. No locks: another git may be running.
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
