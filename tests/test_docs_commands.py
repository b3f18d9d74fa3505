"""The commands, the Python and the JavaScript of README.md, the tutorials and docs/serve.md run, in the order of each
page, in one folder a page.

Trainings run on drawn photos with a small network, servers on a free port, in the background until the next one begins.
What is only composed, or not run, stands here with its reason.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import carvision
from tests import forked
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "docs" / "serve.md", *sorted((ROOT / "docs" / "tutorials").glob("*.md"))]
NOT_RUN = {  # how a command begins: why it isn't run
    "scripts/train.sh": "sets up an environment of several GB, then trains as carvision train does here",
    "scripts/test.sh": "runs all tests, this one among them",
    "source .venv/bin/activate": "the tests run inside an environment already",
    "carvision compare runs/BL": "of runs on a GPU, which are only composed",
    "podman ": "no container can be built where the tests run: test_containerfile.py",
}
COMPOSED = {  # a word of a training's command, to which --cfg job is added: why it isn't trained
    "trainer=gpu": "needs a GPU",
    "trainer=ddp": "needs several GPUs",
}
MINE = "carvision train data=folder data.root=photos run.dir=runs/mine"
FIRST = {"app.md": [MINE], "serve.md": [MINE, "cp -r runs/mine runs/again"]}  # what a page takes for granted
SHELL = ("mkdir", "cp", "chmod", "curl", "python")  # run as they are
ADDRESS = "http://127.0.0.1:8000"  # of the pages' servers
SMALL = [
    "data.image_px=32", "data.batch_size=16", "data.num_workers=1", "model.backbone=test_resnet",
    "model.weights=weights.safetensors", "callbacks.progress_bar=false", "features.dir=features",
]  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """The file of a small backbone's weights, in place of those that would be downloaded."""
    import timm
    from safetensors.torch import save_file

    file = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), file)
    return file


@pytest.fixture
def page_folder(tmp_path, demo_photos, weights) -> Path:
    """A folder with what the pages name: photos/, new.jpg, CompCars/."""
    folder = tmp_path / "page"
    for number, photo in enumerate(sorted(demo_photos.rglob("*.jpg"))[::2]):
        target = folder / "photos" / ("oak", "beech", "birch")[number % 3]
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, target / f"{number}.jpg")
    shutil.copy(folder / "photos" / "oak" / "0.jpg", folder / "new.jpg")
    shutil.copy(weights, folder)
    (folder / "CompCars").symlink_to(demo_photos)
    return folder


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """Return the language and text of each block of bash, Python or JavaScript."""
    return re.findall(r"^```(bash|python|js)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands_of(block: str) -> list[str]:
    lines = block.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


class Server:
    """The server that a page has started last. address: "" before the first."""

    def __init__(self, folder: Path):
        self.folder, self.address, self.process = folder, "", None

    def start(self, words: list[str]) -> None:
        self.stop()
        out = self.folder.with_name("server")
        printed = out.with_suffix(".stdout")
        printed.unlink(missing_ok=True)
        variables = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        self.process = forked.start("carvision", "serve", *words, "--port=0", cwd=self.folder, env=variables, out=out)

        def address() -> re.Match | bool | None:  # once the line is whole
            return printed.exists() and re.fullmatch(r"serve: (http://127\.0\.0\.1:\d+)\n", printed.read_text())

        forked.wait_until(lambda: address() or not self.process.is_alive())
        assert address(), f"{self.process!r}\n{printed.read_text()}\n{out.with_suffix('.stderr').read_text()}"
        self.address = address()[1]

    def stop(self) -> None:
        if self.process is not None:
            os.kill(self.process.pid, signal.SIGTERM)
            self.process.join(60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            assert self.process.exitcode == 0, self.folder.with_name("server.stderr").read_text()
            self.process = None


@pytest.fixture
def server(page_folder) -> Iterator[Server]:
    started = Server(page_folder)
    yield started
    started.stop()


def run_shell(line: str, folder: Path) -> None:
    """Run a line as it is, with this Python. An answer of the server that is an error fails, also of one photo."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    line = re.sub("^curl ", "curl --fail-with-body --silent --show-error ", line)
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr}"
    if line.startswith("curl ") and " -o " not in line:
        assert all(photo["error"] is None for photo in json.loads(done.stdout).get("photos", [])), done.stdout


def run_javascript(block: str, folder: Path) -> None:
    if not shutil.which("node"):
        warnings.warn("node is not installed: the JavaScript of the page is not run", stacklevel=1)
        return
    (folder / "example.mjs").write_text(block, encoding="utf-8")
    done = subprocess.run(["node", "example.mjs"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def run_command(line: str, folder: Path, server: Server) -> None:
    """Run one command of a page, small, and require that it succeeds."""
    words = shlex.split(line, comments=True)
    if any(line.startswith(start) for start in NOT_RUN):
        return
    if words[0] in SHELL:
        run_shell(line, folder)
        return
    assert words[0] == "carvision", f"{line}: not a command that this test knows"
    if words[1] == "serve":
        server.start(words[2:])
        return
    _, command, *words = words
    if "data=compcars" in words:  # of which the folder has the layout, and a few photos
        words.append("data.allow_missing=true")
    if command in ("train", "sweep"):
        is_demo = not any(word.startswith("data=") for word in words)
        epochs = ["trainer.max_epochs=3", "sweep.trials=3"] if command == "sweep" else ["trainer.max_epochs=1"]
        if {*words} & {*COMPOSED}:
            words.append("--cfg=job")
        elif "--cfg" not in words:
            words += [*SMALL, *epochs, *(["data.images_per_model=20"] if is_demo else [])]
    env = {"CARVISION_CACHE": str(folder / "cache")}
    done = forked.run("carvision", command, *words, cwd=folder, env=env)
    allowed = (0, 1) if command == "doctor" else (0,)  # 1: something will break on this machine
    assert done.returncode in allowed, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_runs_from_top_to_bottom(page, page_folder, server, monkeypatch):
    monkeypatch.chdir(page_folder)
    fit = carvision.fit
    monkeypatch.setattr(carvision, "fit", lambda *overrides: fit(*overrides, *SMALL, "trainer.max_epochs=1"))
    for line in FIRST.get(page.name, []):
        run_command(line, page_folder, server)
    for language, block in blocks_of(page):
        block = block.replace(ADDRESS, server.address or ADDRESS)
        if language == "python":
            exec(compile(block, page.name, "exec"), {"__name__": "__main__"})
        elif language == "js":
            run_javascript(block, page_folder)
        else:
            for line in commands_of(block):
                run_command(line, page_folder, server)


def test_each_exception_is_still_needed():
    lines = [line for page in PAGES for language, block in blocks_of(page) if language == "bash"
             for line in commands_of(block)]  # fmt: skip
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in lines)] == []
    assert [word for word in COMPOSED if not any(word in shlex.split(line, comments=True) for line in lines)] == []
