"""A tiny trained run, exported in every format once for all tests: tracing and ONNX take seconds each."""

import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from carvision.config.compose import conf_dir, plain_config

RUN = Path("runs/demo/2026-01-31_12-00-00")  # as README.md's examples name it


@pytest.fixture(scope="session")
def example_folder(demo_photos, tmp_path_factory) -> Path:
    """A folder in which README.md's examples run as they stand: the run RUN with its exports, a.jpg and b.jpg."""
    from carvision.exports.write import write
    from carvision.training.run.start import train

    folder = tmp_path_factory.mktemp("example_folder")
    overrides = [
        f"run.dir={folder / RUN}", f"data.root={demo_photos}", "data.images_per_model=20", "data.num_workers=0",
        "data.image_px=32", "trainer.max_epochs=1", "callbacks.progress_bar=false",
    ]  # fmt: skip
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        train(plain_config(compose("train", overrides=overrides)), "demo")
    write(folder / RUN, dict.fromkeys(("onnx", "torch-export", "timm", "hub")), None)
    for name, photo in zip(("a.jpg", "b.jpg"), sorted(demo_photos.rglob("*.jpg")), strict=False):
        shutil.copy(photo, folder / name)
    return folder


@pytest.fixture(scope="session")
def exports(example_folder) -> Path:
    """The folder of the exports of RUN: model.onnx, model.pt2, timm, hub."""
    return example_folder / RUN / "export"
