"""The commands and the Python of README.md and the tutorials run, in the order of each page, in one folder a page.

Trainings run on drawn photos with a small network. What is only composed, or not run, stands here with its reason.
"""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import carvision
from tests import forked
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "tutorials").glob("*.md"))]
NOT_RUN = {  # how a command begins: why it isn't run
    "scripts/train.sh": "sets up an environment of several GB, then trains as carvision train does here",
    "scripts/test.sh": "runs all tests, this one among them",
    "source .venv/bin/activate": "the tests run inside an environment already",
    "carvision compare runs/BL": "of runs on a GPU, which are only composed",
}
COMPOSED = {  # a word of a training's command, to which --cfg job is added: why it isn't trained
    "trainer=gpu": "needs a GPU",
    "trainer=ddp": "needs several GPUs",
}
FIRST = {"app.md": "carvision train data=folder data.root=photos run.dir=runs/mine"}  # what a page takes for granted
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
    """Return the language and text of each block of bash or Python."""
    return re.findall(r"^```(bash|python)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands_of(block: str) -> list[str]:
    lines = block.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def run_command(line: str, folder: Path) -> None:
    """Run one command of a page, small, and require that it succeeds."""
    words = shlex.split(line, comments=True)
    if any(line.startswith(start) for start in NOT_RUN):
        return
    if words[0] in ("mkdir", "cp"):
        subprocess.run(words, cwd=folder, check=True)
        return
    assert words[0] == "carvision", f"{line}: not a command that this test knows"
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
def test_the_page_runs_from_top_to_bottom(page, page_folder, monkeypatch):
    monkeypatch.chdir(page_folder)
    fit = carvision.fit
    monkeypatch.setattr(carvision, "fit", lambda *overrides: fit(*overrides, *SMALL, "trainer.max_epochs=1"))
    if page.name in FIRST:
        run_command(FIRST[page.name], page_folder)
    for language, block in blocks_of(page):
        if language == "python":
            exec(compile(block, page.name, "exec"), {"__name__": "__main__"})
            continue
        for line in commands_of(block):
            run_command(line, page_folder)


def test_each_exception_is_still_needed():
    lines = [line for page in PAGES for language, block in blocks_of(page) if language == "bash"
             for line in commands_of(block)]  # fmt: skip
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in lines)] == []
    assert [word for word in COMPOSED if not any(word in shlex.split(line, comments=True) for line in lines)] == []
