"""The documents agree with the tree: paths, links and modules exist, and the guide's diffs apply."""

import re
import subprocess

import pytest

from tests.conftest import ROOT
from tests.test_architecture import PACKAGE

DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
TOPS = {path.name for path in (*ROOT.iterdir(), *PACKAGE.iterdir()) if path.is_dir()} - {"runs", "sweeps"}
GUIDE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"<summary>The diff: (.*?)</summary>\n\n```diff\n(.*?)```", GUIDE, re.DOTALL)


def exists(path: str) -> bool:
    """Return whether there is such a path in the repository or the package; a file alone may be anywhere in them."""
    tops = (ROOT, PACKAGE, ROOT / "scripts")
    return any((top / path).exists() for top in tops) or ("/" not in path and any(PACKAGE.rglob(path)))


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.relative_to(ROOT).as_posix())
def test_paths_links_and_modules_exist(doc):
    text = re.sub(r"```diff\n.*?```", "", doc.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (doc.parent / link).exists()] == []
    paths = re.findall(r"(?<![\w./-])[\w.-]+(?:/[\w.-]+)*/?", text)
    code = [path for path in paths if path.partition("/")[0] in TOPS and re.search(r"/$|\.(py|c|yaml|sh|md)$", path)]
    code += [f"{name}.py" for name in re.findall(r"(?<![\w./-])(\w+)\.py\b", text)]
    code += [f"{name}.py" for name in re.findall(r"-m carvision\.(\w+)", text) if not exists(name)]
    code += [name.replace(".", "/") + ".py" for name in re.findall(r"\bcarvision\.([a-z_]+\.[a-z_]+)\b", text)]
    assert [path for path in code if not (exists(path) or exists(path.removesuffix(".py")))] == []


@pytest.mark.parametrize(("title", "diff"), DIFFS, ids=[title for title, _ in DIFFS])
def test_a_diff_of_the_guide_is_short_and_applies(title, diff):
    assert len(DIFFS) == 4 and len(diff.splitlines()) <= 60
    # As `patch -p1` does, without changing anything
    command = ["git", "apply", "--check", "--unidiff-zero", "-"]
    done = subprocess.run(command, input=diff, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
