"""carvision.embed as a command: embeddings of a run and of a backbone of timm, layers, wrong values."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

import carvision
from carvision.data.images import open_image
from carvision.embed import embed as command
from carvision.embed import options_of
from tests import forked
from tests.data.layouts import write_class_folders

RANDOM = ["--backbone", "test_resnet", "--weights", "random", "data.image_px=32", "data.num_workers=0"]


@pytest.fixture(scope="module")
def run(demo_run, tmp_path_factory):
    return shutil.copytree(demo_run, tmp_path_factory.mktemp("embed") / "run")


def embed_in(folder, *words):
    """Embed in this process; return the embeddings and index.csv."""
    command([*map(str, words), "--out", str(folder)])
    return np.load(folder / "embeddings.npy", mmap_mode="r"), pd.read_csv(folder / "index.csv", dtype=str)


def test_the_embeddings_are_what_the_loaded_model_gives(run):
    done = forked.run("carvision.embed", run, "--split", "test", cwd=run.parent, check=0)
    folder = run.parent / done.stdout.splitlines()[-1].removeprefix("embed: ")
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


def test_raw_embeddings_of_all_photos_in_half_precision(run, tmp_path):
    values, _ = embed_in(tmp_path / "all", run, "--raw", "--dtype", "float16", "--layer", "trunk")
    assert values.dtype == np.float16 and len(values) == 240
    assert not np.allclose(np.linalg.norm(values.astype(float), axis=1), 1, atol=0.01)


def test_a_backbone_of_timm_needs_no_run(demo_photos, tmp_path):
    words = [*RANDOM, f"data.root={demo_photos}", "data.images_per_model=20"]
    first, _ = embed_in(tmp_path / "one", *words, "model.pool=avg")
    second, _ = embed_in(tmp_path / "two", *words, "model.pool=catavgmax")
    assert first.shape[0] == second.shape[0] == 240 and second.shape[1] == 2 * first.shape[1]
    assert json.loads((tmp_path / "one" / "embeddings.json").read_text())["network"] == "test_resnet"


@pytest.mark.parametrize(
    ("words", "message"),
    [(["{run}", "--layer", "embedding"], "--layer: the network has no embedding layers; use one of pooled, trunk"),
     (["{run}", "model.pool=avg"], "model.pool=avg: the network is the run's; model.<key> belongs to --backbone"),
     (["{run}", "--out", "{run}"], "--out: {run} exists already"),
     (["--backbone", "resnt18"], "model.backbone: 'resnt18'"),
     (["--backbone", "test_resnet", "--weights", "no.pth"], "model.weights: 'no.pth' is not pretrained, random"),
     (["{run}", "--backbone", "resnet18"], "RUN or --backbone: give one of them, not both"),
     (["{run}", "--weights", "random"], "--weights: random belongs to --backbone"),
     (["{run}", "optimizer.lr=3"], "unrecognized arguments: optimizer.lr=3 (of training's keys embed takes")],
)  # fmt: skip
def test_wrong_values_are_one_line_and_leave_nothing(run, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        command([word.format(run=run) for word in words])
    code = ended.value.code
    line = code if isinstance(code, str) else capsys.readouterr().err.splitlines()[-1]
    assert "error: " in line and message.format(run=run) in line and "\n" not in line
    assert list(tmp_path.iterdir()) == []


def test_several_processes_are_refused_and_a_file_is_no_override(run, monkeypatch):
    options = options_of([str(run / "model.safetensors"), "data.root=x", "+data.odd=3"])
    assert options.overrides == ["data.root=x", "+data.odd=3"]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="torchrun: this command runs in one process"):
        command([str(run)])


def test_unreadable_photos_are_an_error_or_left_out(run, tmp_path):
    folders = write_class_folders(tmp_path / "photos", {"oak": 10, "ash": 10})
    broken = min(folders.rglob("*.jpg"))
    broken.write_bytes(b"no photo")
    words = [run, "data=folder", f"data.root={folders}", "data.crop_to_box=false"]
    with pytest.raises(SystemExit, match=rf"{broken.name}.*data\.on_bad_image=skip"):
        embed_in(tmp_path / "a", *words)
    values, index = embed_in(tmp_path / "b", *words, "data.on_bad_image=skip")
    assert len(values) == len(index) == 19 and str(broken.relative_to(folders)) not in set(index["path"])


def test_the_index_has_the_split_if_the_data_can_be_split(tmp_path, capsys):
    folders = write_class_folders(tmp_path / "photos", {"oak": 10, "ash": 10})
    words = [*RANDOM, "data=folder", f"data.root={folders}"]
    _, index = embed_in(tmp_path / "a", *words, "data.split.kind=stratified")
    assert len(index) == 20 and set(index["split"]) == {"train", "val", "test"}
    _, index = embed_in(tmp_path / "b", *words)
    messages = capsys.readouterr().err
    assert "comes without a split of its own" in messages and "the photos are in no split" in messages
    assert index["split"].isna().all()
