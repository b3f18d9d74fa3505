"""carvision.embed as a command, the folder it writes, and wrong values of embed, retrieve and verify."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import carvision
from carvision.data.images import open_image
from carvision.data.table import BOX, UNKNOWN, Classes, Number, Table
from carvision.embed import embed, options_of
from carvision.embedding.store import ABOUT, INDEX, VALUES, read_embeddings, write_index
from carvision.errors import InputError
from carvision.retrieve import retrieve
from carvision.verify import verify
from tests import forked
from tests.data.layouts import write_class_folders

RANDOM = ["--backbone", "test_resnet", "--weights", "random", "data.image_px=32", "data.num_workers=0"]


def embed_in(folder, *words):
    """Embed in this process; return the embeddings and index.csv."""
    embed([*map(str, words), "--out", str(folder)])
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


def test_unreadable_photos_are_an_error_or_left_out_and_the_index_has_the_split_of_the_data(run, tmp_path, capsys):
    folders = write_class_folders(tmp_path / "photos", {"oak": 10, "ash": 10})
    broken = min(folders.rglob("*.jpg"))
    broken.write_bytes(b"no photo")
    words = [run, "data=folder", f"data.root={folders}", "data.crop_to_box=false"]
    with pytest.raises(SystemExit, match=rf"{broken.name}.*data\.on_bad_image=skip"):
        embed_in(tmp_path / "a", *words)
    values, index = embed_in(tmp_path / "b", *words, "data.on_bad_image=skip")
    assert len(values) == len(index) == 19 and str(broken.relative_to(folders)) not in set(index["path"])
    words = [*RANDOM, "data=folder", f"data.root={folders}", "data.on_bad_image=skip"]
    _, index = embed_in(tmp_path / "c", *words)
    assert len(index) == 19 and set(index["split"]) == {"train", "val", "test"}
    _, index = embed_in(tmp_path / "d", *words, "data.split.kind=official")
    messages = capsys.readouterr().err
    assert "comes without a split of its own" in messages and "the photos are in no split" in messages
    assert index["split"].isna().all()


def made_table(root) -> Table:
    rows = pd.DataFrame({"path": ["a/1.jpg", "a/2, then.jpg", "b/ü.jpg", "b/4.jpg"]})
    rows["split"], rows["group"] = ["train", "test", "", "test"], ["x", "", "y", "y"]
    rows["make"], rows["model"] = np.array([[0, 0, 1, UNKNOWN], [0, 1, 2, UNKNOWN]], np.int32)
    rows["speed"] = np.array([200, np.nan, 180.5, np.nan], np.float32)
    rows[BOX] = np.array([[1, 1, 9, 9], [np.nan] * 4, [0, 0, 8, 8], [3, 3, 7.5, 7]], np.float32)
    model = Classes(("1", "2", "30"), ("A4", "A6", "X5"), "make", (0, 0, 1))
    labels = {"make": Classes(("7", "12"), ("Audi", "Audi")), "model": model, "speed": Number("km/h")}
    return Table("made", root, rows, labels, "model")


@pytest.fixture
def written(tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    np.save(tmp_path / VALUES, values)
    write_index(tmp_path, made_table(tmp_path), {"layer": "pooled"})
    return tmp_path, values


def test_embeddings_and_table_are_read_as_written(written):
    folder, values = written
    found, about = read_embeddings(folder)
    assert isinstance(found.values, np.memmap)
    np.testing.assert_array_equal(found.values, values)
    assert about["layer"] == "pooled"
    expected = made_table(folder)
    assert (found.table.labels, found.table.finest, found.table.root) == (expected.labels, "model", folder)
    pd.testing.assert_frame_equal(found.table.rows[list(expected.rows)], expected.rows, check_dtype=False)
    some = found.select(np.array([False, True, False, True]))
    np.testing.assert_array_equal(some.values, values[[1, 3]])
    assert some.table.rows["path"].tolist() == ["a/2, then.jpg", "b/4.jpg"]


@pytest.mark.parametrize("name", [VALUES, INDEX, ABOUT])
def test_damaged_files_and_those_that_do_not_fit_together_are_one_line(written, name):
    folder, values = written
    whole = (folder / name).read_bytes()
    for content in (b"", whole[: len(whole) // 2]):
        (folder / name).write_bytes(content)
        with pytest.raises(InputError, match=r"^[^\n]*compute them again[^\n]*$"):
            read_embeddings(folder)
    (folder / name).write_bytes(whole)
    np.save(folder / VALUES, values[:3])
    with pytest.raises(InputError, match=r"shape \(3, 5\).*4 lines"):
        read_embeddings(folder)


@pytest.mark.parametrize(("command", "words", "message"), [
    (embed, "{run} --layer embedding", "--layer: the network has no embedding layers; use one of pooled, trunk"),
    (embed, "{run} --backbone resnet18", "RUN or --backbone: give one of them, not both"),
    (embed, "{run} optimizer.lr=3", "unrecognized arguments: optimizer.lr=3 (of training's keys embed takes"),
    (retrieve, "{run} --label modle", "--label: 'modle' is no label of demo with classes; nearest: model"),
    (retrieve, "{vectors} data.root=x", "data.root=x: {vectors} holds computed embeddings; give the run"),
    (retrieve, "{run} --query x y --box 1 2 3 4", "--box: applies to a single --query, and 2 are given"),
    (verify, "{run} --pairs list.txt other/list.csv", "--pairs: two of list.txt other/list.csv have the same name"),
    (verify, "{run} --train-split val", "--train-split: val, and the lists of pairs of demo come with training photos"),
    (verify, "{run} --num-pairs 1", "--num-pairs: 1 is not a whole number from 2"),
])  # fmt: skip
def test_wrong_values_are_one_line(run, vectors, tmp_path, monkeypatch, capsys, command, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        command([word.format(run=run, vectors=vectors) for word in words.split()])
    code = ended.value.code
    line = code if isinstance(code, str) else capsys.readouterr().err.splitlines()[-1]
    assert "error: " in line and message.format(run=run, vectors=vectors) in line and "\n" not in line
    assert list(tmp_path.iterdir()) == []


def test_several_processes_are_refused_and_a_file_is_no_override(run, monkeypatch):
    options = options_of([str(run / "model.safetensors"), "data.root=x", "+data.odd=3"])
    assert options.overrides == ["data.root=x", "+data.odd=3"]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="torchrun: this command runs in one process"):
        embed([str(run)])
