"""carvision.embed as a command: embeddings of a run and of a backbone of timm, its layers, wrong values."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import carvision
from carvision.data.images import open_image
from carvision.embed import options_of
from tests import forked


@pytest.fixture(scope="module")
def run(demo_run, tmp_path_factory):
    return shutil.copytree(demo_run, tmp_path_factory.mktemp("embed") / "run")


def embed(*words, cwd, check: int = 0):
    return forked.run("carvision.embed", *words, cwd=cwd, check=check)


def folder_of(done, cwd):
    last = done.stdout.splitlines()[-1]
    assert last.startswith("embed: ")
    return cwd / last.removeprefix("embed: ")


def test_the_embeddings_are_what_the_loaded_model_gives(run):
    folder = folder_of(embed(run, "--split", "test", cwd=run.parent), run.parent)
    assert folder.parent == run / "embeddings"
    values, index = np.load(folder / "embeddings.npy"), pd.read_csv(folder / "index.csv", dtype=str)
    assert list(index["path"]) == list(pd.read_csv(run / "splits.csv").query("split == 'test'")["path"])
    about = json.loads((folder / "embeddings.json").read_text())
    assert (about["layer"], about["unit_length"], about["finest"]) == ("pooled", True, "model")
    model = carvision.load(run)
    boxes = index[["left", "top", "right", "bottom"]].astype(float).to_numpy()
    for row in (0, len(values) - 1):
        with open_image(f"{about['root']}/{index['path'][row]}") as image:
            pixels = model.transform(image, boxes[row])
        with torch.inference_mode():
            expected = torch.nn.functional.normalize(model.embed(pixels[None]), dim=1)[0]
        np.testing.assert_allclose(values[row], expected.numpy(), atol=1e-5)


def test_raw_embeddings_of_all_photos_in_half_the_bytes(run):
    done = embed(run, "--raw", "--dtype", "float16", "--layer", "trunk", "--out", "all", cwd=run.parent)
    values = np.load(folder_of(done, run.parent) / "embeddings.npy", mmap_mode="r")
    assert values.dtype == np.float16 and len(values) == 240
    assert not np.allclose(np.linalg.norm(values.astype(float), axis=1), 1, atol=0.01)


def test_a_backbone_of_timm_needs_no_run(demo_photos, tmp_path):
    data = [f"data.root={demo_photos}", "data.images_per_model=20", "data.image_px=32", "data.num_workers=0"]
    words = ["--backbone", "test_resnet", "--weights", "random", *data]
    one = folder_of(embed(*words, "model.pool=avg", "--out", "one", cwd=tmp_path), tmp_path)
    two = folder_of(embed(*words, "model.pool=catavgmax", "--out", "two", cwd=tmp_path), tmp_path)
    first, second = (np.load(folder / "embeddings.npy") for folder in (one, two))
    assert first.shape[0] == second.shape[0] == 240 and second.shape[1] == 2 * first.shape[1]
    assert json.loads((one / "embeddings.json").read_text())["network"] == "test_resnet"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "RUN or --backbone: give one of them"),
        (["{run}", "--backbone", "resnet18"], "RUN or --backbone: give one of them, not both"),
        (["{run}", "--weights", "random"], "--weights: random belongs to --backbone"),
        (["nowhere"], "nowhere: no model there"),
        (
            ["{run}", "--layer", "embedding"],
            "--layer: the network has no embedding layers; use one of pooled, trunk",
        ),
        (["{run}", "model.pool=avg"], "model.pool=avg: the network is the run's; model.<key> belongs to --backbone"),
        (["{run}", "optimizer.lr=3"], "unrecognized arguments: optimizer.lr=3 (of training's keys embed takes"),
        (["{run}", "data.rot=3"], "data.rot: there is no such key"),
        (["{run}", "--out", "{run}"], "--out: {run} exists already"),
        (["--backbone", "resnt18"], "model.backbone: 'resnt18'"),
        (["--backbone", "test_resnet", "--weights", "no.pth"], "model.weights: 'no.pth' is not pretrained, random"),
        (["--backbone", "test_resnet", "model.mean=3"], "model.mean: 3 is not"),
        (["{run}", "--device", "cuda:9"], "--device: 'cuda:9' is not"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(run, tmp_path, words, line):
    words = [word.format(run=run) for word in words]
    done = forked.run("carvision.embed", *words, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert line.format(run=run) in done.stderr.splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []


def test_photos_that_cannot_be_read_end_it_or_are_left_out(run, tmp_path):
    photos = tmp_path / "photos"
    for number in range(4):
        (photos / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (60 * number, 0, 0)).save(photos / f"class{number % 2}" / f"{number}.jpg")
    (photos / "class1" / "1.jpg").write_bytes(b"no photo")
    words = [run, "data=folder", f"data.root={photos}", "data.crop_to_box=false"]
    failed = forked.run("carvision.embed", *words, "--out", "a", cwd=tmp_path, check=1)
    assert "class1/1.jpg" in failed.stderr and "data.on_bad_image=skip" in failed.stderr
    folder = folder_of(embed(*words, "data.on_bad_image=skip", "--out", "b", cwd=tmp_path), tmp_path)
    assert len(np.load(folder / "embeddings.npy")) == 3
    assert "class1/1.jpg" not in (folder / "index.csv").read_text()


def test_a_division_that_the_data_can_have_is_told_in_the_index(tmp_path):
    for number in range(20):
        (tmp_path / "photos" / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (12 * number, 0, 0)).save(
            tmp_path / "photos" / f"class{number % 2}" / f"{number}.jpg"
        )
    words = ["--backbone", "test_resnet", "--weights", "random", "data=folder", f"data.root={tmp_path / 'photos'}"]
    words += ["data.image_px=32", "data.num_workers=0"]
    done = embed(*words, "data.split.kind=stratified", "--out", "a", cwd=tmp_path)
    index = pd.read_csv(folder_of(done, tmp_path) / "index.csv")
    assert len(index) == 20 and set(index["split"]) == {"train", "val", "test"}
    done = embed(*words, "--out", "b", cwd=tmp_path)
    assert "comes without a split of its own" in done.stderr and "the photos are in no split" in done.stderr
    assert pd.read_csv(folder_of(done, tmp_path) / "index.csv")["split"].isna().all()


def test_a_file_is_no_override(run):
    options = options_of([str(run / "model.safetensors"), "data.root=x", "+data.odd=3"])
    assert options.overrides == ["data.root=x", "+data.odd=3"]
    options = options_of(["--backbone", "x", "--weights", "model.safetensors", "model.backbone_kwargs={a:1}"])
    assert options.weights == "model.safetensors" and options.overrides == ["model.backbone_kwargs={a:1}"]


def test_several_processes_are_refused(run, tmp_path):
    environment = {"RANK": "1", "WORLD_SIZE": "2"}
    done = forked.run("carvision.embed", run, cwd=tmp_path, env=environment, check=1)
    assert "torchrun: this command runs in one process" in done.stderr


def test_help_is_there_at_once(run_module):
    done = run_module("carvision.embed", "--help", check=0)
    assert "python -m carvision.embed runs/mine" in done.stdout
