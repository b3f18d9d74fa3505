"""Versions from metadata, and the commit of a checkout."""

import os
import subprocess

from carvision.system import versions
from carvision.system.versions import git_state, name_of, read_versions, requirements, version_of


def test_metadata_of_installed_packages_also_damaged(tmp_path, monkeypatch):
    found = read_versions()
    assert {name_of(line) for line in requirements()} <= set(found)
    assert all(found[name] for name in ("torch", "timm", "pytorch-lightning", "pillow"))
    for package, lines in {
        "carvision": ["Version: 0.1.0", "Requires-Dist: torch>=2.6", "Requires-Dist: onnx>=1; extra == 'onnx'"],
        "shiny": ["Version: 1.2"],
    }.items():
        (tmp_path / f"{package}-1.dist-info").mkdir()
        (tmp_path / f"{package}-1.dist-info" / "METADATA").write_text("\n".join([f"Name: {package}", *lines, ""]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(versions, "PACKAGE", tmp_path / "carvision")  # no pyproject.toml of ours beside it
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'somebody'\ndependencies = ['else']\n")
    assert requirements() == ["torch>=2.6"] and version_of("shiny") == "1.2"
    (tmp_path / "shiny").mkdir()
    for content, version in ((b"__version__: str = '1.2+cpu'\n", "1.2+cpu"), (b"\xff\xfe\x00", "1.2")):
        (tmp_path / "shiny" / "version.py").write_bytes(content)
        assert version_of("shiny") == version
    (tmp_path / "shiny-1.dist-info" / "METADATA").write_bytes(b"")
    assert version_of("shiny") is version_of("not-installed-anywhere") is None


def git(folder, *words):
    for name in [name for name in os.environ if name.startswith("GIT_")]:  # set where a hook of git runs the tests
        del os.environ[name]
    subprocess.run(["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)


def test_the_commit_of_a_checkout_and_whether_it_has_changes(tmp_path, monkeypatch):
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) is None  # not a commit yet
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "a")
    (tmp_path / "notes.txt").write_text("not tracked")
    state = git_state(tmp_path)
    assert len(state["commit"]) == 40 and state["changed"] is False
    (tmp_path / "a.py").write_text("2")
    assert git_state(tmp_path)["changed"] is True
    (tmp_path / "inside").mkdir()
    assert git_state(tmp_path / "inside") is None  # an environment within somebody's own repository
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is None
