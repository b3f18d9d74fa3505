"""Each instruction of Containerfile fits the project: paths, lock, extra, command and port. No container is built."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """The instructions of Containerfile in order: name and words, continued lines joined."""
    lines = (ROOT / "Containerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def of(instructions: list[tuple[str, str]], name: str) -> list[str]:
    return [words for instruction, words in instructions if instruction == name]


def test_it_begins_with_a_python_that_the_project_runs_on(instructions):
    assert instructions[0][0] == "FROM"
    version = re.fullmatch(r"python:(\d+\.\d+)-slim", instructions[0][1])[1]
    assert version in SpecifierSet(PROJECT["project"]["requires-python"])
    assert f"python-version {version} " in (ROOT / "requirements.in").read_text(encoding="utf-8")  # the lock's


def test_what_is_copied_exists_and_is_all_that_the_build_reads(instructions):
    copied = set()
    for words in of(instructions, "COPY"):
        *sources, target = words.split()
        assert all((ROOT / source).exists() for source in sources)
        assert target == ("./" if len(sources) > 1 else f"./{sources[0]}")  # a folder keeps its name
        copied |= {*sources}
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    read = {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"], *wheel["packages"]}
    assert copied == read | {*wheel["force-include"]} | {"pyproject.toml", "requirements.lock"}


def test_libraries_come_from_the_lock_which_has_all_of_the_extra(instructions):
    runs = [shlex.split(words.partition("&&")[0]) for words in of(instructions, "RUN")]
    bootstrap, libraries, own = runs[:3]
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    start, end = re.fullmatch(r"/(.*)/,/(.*)/p", bootstrap[2]).groups()
    block = re.search(rf"{start}.*?{end}", lock, re.DOTALL | re.MULTILINE)[0]
    assert block.startswith("uv==") and "--hash=sha256:" in block and block.count("==") == 1
    assert "--require-hashes -r uv.lock" in of(instructions, "RUN")[0]
    assert [libraries[libraries.index(word) + 1] for word in ("--constraints", "-r")] == [
        "requirements.lock", "pyproject.toml",
    ]  # fmt: skip
    extra = libraries[libraries.index("--extra") + 1]
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"][extra]]
    wanted += PROJECT["build-system"]["requires"]
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lock.splitlines() if re.match(r"\S+==", line)}
    assert {canonicalize_name(Requirement(line).name) for line in wanted} <= pinned
    assert "--no-deps" in own and own[-1] == "."


def test_it_runs_serve_as_a_user_without_rights_on_the_port_that_it_names(instructions):
    from carvision.serve import build_parser

    assert [name for name, _ in instructions if name in ("USER", "CMD")] == ["USER", "CMD"]
    uid = of(instructions, "USER")[0]
    assert int(uid) >= 1000 and any(f"--uid {uid}" in words for words in of(instructions, "RUN"))
    command, name, *words = json.loads(of(instructions, "CMD")[0])
    assert (command, name) == ("carvision", "serve") and command in PROJECT["project"]["scripts"]
    options = build_parser().parse_args(words)
    assert options.host == "0.0.0.0" and str(options.port) == of(instructions, "EXPOSE")[0]
    (health,) = of(instructions, "HEALTHCHECK")
    assert f"http://127.0.0.1:{options.port}/livez" in health
    compile(json.loads(re.search(r"CMD (\[.*\])", health)[1])[2], "HEALTHCHECK", "exec")
    header = Path(ROOT / "Containerfile").read_text(encoding="utf-8").partition("FROM")[0]
    assert f"-p 127.0.0.1:{options.port}:{options.port}" in header and ":/model:ro" in header
