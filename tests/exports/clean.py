"""Python code run where only some packages can be imported."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HOOK = """
import sys

class Only:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        known = name.partition(".")[0] in allowed or name.startswith("_sysconfigdata")
        return self.finder.find_spec(name, path, target) if known else None

    def __getattr__(self, name):
        return getattr(self.finder, name)

allowed = {*sys.stdlib_module_names, *sys.argv.pop(1).split(",")}
sys.meta_path[:] = [Only(finder) for finder in sys.meta_path]
"""


def run_with_only(packages: list[str], code: str, folder: Path) -> None:
    """Run the code in the folder, in a new interpreter that has these packages and what they need, and no others."""
    modules = ",".join(sorted(_modules_of(packages)))
    done = subprocess.run(
        [sys.executable, "-c", HOOK + code, modules], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def _modules_of(packages: list[str]) -> set[str]:
    found, wanted = set(), list(packages)
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in found:
            continue
        try:
            needed = [Requirement(text) for text in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:  # needed on other systems only
            continue
        found.add(name)
        wanted += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    modules = metadata.packages_distributions()
    return {module for module, names in modules.items() if found.intersection(map(canonicalize_name, names))}
