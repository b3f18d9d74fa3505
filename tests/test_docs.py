"""The documents agree with the tree: paths, links and modules exist, the guide's diffs apply, the site builds."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from carvision.config.keys import describe_keys
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


def anchors_of(text: str) -> set[str]:
    """Return the anchors that GitHub and mkdocs give to the headings of Markdown."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.relative_to(ROOT).as_posix())
def test_links_to_headings_have_one(doc):
    dead = []
    for path, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", doc.read_text(encoding="utf-8")):
        target = doc.parent / path if path else doc
        if anchor not in anchors_of(target.read_text(encoding="utf-8")):
            dead.append(f"{path}#{anchor}")
    assert dead == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="mkdocs is not installed (pip install '.[docs]')")
def test_the_site_builds_without_warnings_and_asks_no_server(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path], cwd=ROOT, text=True,
        capture_output=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    pages = {page.name: page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html")}
    loaded = re.compile(
        r"<(?:script|img|iframe)[^>]* src=\"?(?:https?:)?//|<link[^>]*stylesheet[^>]* href=\"?(?:https?:)?//"
    )
    assert [name for name, page in pages.items() if loaded.search(page)] == []
    keys = [key.name for key in describe_keys() if key.comment and not key.comment.startswith("set by")]
    assert len(keys) > 150 and [key for key in keys if f">{key}</code>" not in pages["keys.html"]] == []
    assert all(f">carvision {command}<" in pages["commands.html"] for command in ("train", "predict", "models"))


@pytest.mark.parametrize(("title", "diff"), DIFFS, ids=[title for title, _ in DIFFS])
def test_a_diff_of_the_guide_is_short_and_applies(title, diff):
    assert len(DIFFS) == 4 and len(diff.splitlines()) <= 60
    # As `patch -p1` does, without changing anything
    command = ["git", "apply", "--check", "--unidiff-zero", "-"]
    done = subprocess.run(command, input=diff, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
