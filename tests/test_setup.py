"""The set-up installs with the uv that is on PATH, else with the pinned one, else with pip."""

import runpy

import pytest

from tests.conftest import ROOT


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install(uv on PATH or None, *names of commands that fail) -> the commands that were run, without the last one."""

    def run_install(own: str | None, *failing: str) -> list[str]:
        commands = []

        def run(*command) -> bool:
            commands.append(" ".join(map(str, command)).replace(str(tmp_path), "."))
            return not any(f"{name} " in commands[-1] for name in failing)

        script = runpy.run_path(str(ROOT / "scripts" / "setup_venv.py"))
        monkeypatch.setattr(script["venv"], "create", lambda folder, **options: folder.mkdir(exist_ok=True))
        monkeypatch.setattr(script["shutil"], "which", lambda name: own)
        python = tmp_path / ".venv" / "bin" / "python"
        script["install"].__globals__.update(run=run, VENV=tmp_path / ".venv", PYTHON=python)
        assert script["install"]() and "--editable" in commands[-1]
        return commands[:-1]

    return run_install


def test_the_uv_on_path_is_used(install):
    [command] = install("/opt/uv")
    assert command.startswith("/opt/uv pip install --quiet --python ./.venv/bin/python --require-hashes -r ")


def test_without_one_the_pinned_uv_is_installed_first(install):
    first, second = install(None)
    assert first.endswith("--require-hashes -r ./.venv/uv.lock") and second.startswith("./.venv/bin/uv pip install")


def test_pip_installs_where_uv_fails(install):
    _, second = install("/opt/uv", "/opt/uv")
    assert "-m pip " in second and second.endswith("requirements.lock")
