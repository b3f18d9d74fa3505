"""carvision.embed as a command: embeddings of a run and of a backbone of timm, unreadable photos, splits."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import carvision
from carvision.data.images import open_image
from carvision.embed import embed as command
from tests import forked
from tests.data.layouts import write_class_folders

RANDOM = ["--backbone", "test_resnet", "--weights", "random", "data.image_px=32", "data.num_workers=0"]


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


def test_a_backbone_of_timm_needs_no_run_and_embeddings_may_be_raw_and_half_precise(demo_photos, tmp_path):
    words = [*RANDOM, f"data.root={demo_photos}", "data.images_per_model=20"]
    first, _ = embed_in(tmp_path / "one", *words, "model.pool=avg")
    second, _ = embed_in(tmp_path / "two", *words, "model.pool=catavgmax", "--raw", "--dtype", "float16")
    assert first.shape[0] == second.shape[0] == 240 and second.shape[1] == 2 * first.shape[1]
    assert (first.dtype, second.dtype) == (np.float32, np.float16)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    assert not np.allclose(np.linalg.norm(second.astype(float), axis=1), 1, atol=0.01)
    assert json.loads((tmp_path / "one" / "embeddings.json").read_text())["network"] == "test_resnet"


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
