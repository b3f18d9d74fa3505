"""The command carvision.predict and a model's method predict: what they return, print and refuse; resuming."""

import contextlib
import csv
import io
import json
import logging
import os
import runpy
import shutil
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import carvision
from carvision.errors import InputError
from carvision.inference.rows import Row, rows_of
from carvision.inference.run import ClassSample
from carvision.inference.writers import partial_path
from tests import forked
from tests.inference.tiny import rewrite, save_tiny, write_photos

COLUMNS = ["path", "make", "make_id", "make_prob", "model", "model_id", "model_prob", "speed", "error"]
IMAGE = Image.new("RGB", (9, 9))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("run"))


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Write ten photos below the current folder, some in folders named by classes, and return their paths."""
    monkeypatch.chdir(tmp_path)
    for seed, (folder, num) in enumerate({"photos/7/2": 3, "photos/3/1": 3, "photos/b": 4}.items()):
        write_photos(Path(folder), num, seed)
    return [str(file) for file in sorted(Path("photos").rglob("*.jpg"))]


@pytest.fixture
def predict(monkeypatch, capsys, caplog):
    """Return a function predict(...) -> (exit status, standard output, messages), in this process."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments), "--workers", "0"])
        caplog.clear()
        capsys.readouterr()
        with caplog.at_level(logging.INFO), pytest.raises(SystemExit) as done:
            runpy.run_module("carvision.predict", run_name="__main__")
        failed = isinstance(done.value.code, str)
        messages = [*caplog.messages, *([done.value.code] if failed else [])]
        return 1 if failed else done.value.code, capsys.readouterr().out, messages

    return call


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_to_standard_output_in_the_order_of_the_input(run, photos, predict):
    Path("photos/7/notes.txt").touch()
    code, out, messages = predict(run, photos[5], "photos", photos[0])
    rows = read_csv(out)
    assert code == 0 and list(rows[0]) == COLUMNS
    assert [row["path"] for row in rows] == [photos[5], *photos, photos[0]]
    assert messages == ["left out: 1 files are no photos by their extension (.txt: 1; first: photos/7/notes.txt)"]
    for row, known in zip(rows[1:-1], carvision.load(run).predict(photos), strict=True):
        for head in ("make", "model"):
            (best,) = known[head]
            assert (row[head], row[f"{head}_id"]) == (best["name"], best["id"])
            assert float(row[f"{head}_prob"]) == pytest.approx(best["prob"], rel=2e-5)
        assert float(row["speed"]) == pytest.approx(known["speed"], rel=2e-5) and row["error"] == ""


def test_a_table_with_boxes_splits_and_truth(photos, predict, tmp_path_factory):
    run = save_tiny(tmp_path_factory.mktemp("boxed"), crop_to_box=True)
    paths = [path.removeprefix("photos/") for path in photos]
    boxes = [(2, 3, 40, 35) if i % 2 else (None,) * 4 for i in range(10)]
    table = pd.DataFrame(boxes, columns=["left", "top", "right", "bottom"])
    table["path"], table["split"] = [*paths[:9], "gone.jpg"], ["train", *["test"] * 9]
    table["model"] = ["1", "2", "9", "A4", "X5", "Z", None, "1", "1", "1"]
    table.to_csv("list.csv", index=False)
    options = ["--split", "test", "--root", "photos", "--out", "o.jsonl", "--grid", "g.png"]
    code, _, messages = predict(run, "--list", "list.csv", *options)
    assert code == 0 and Image.open("g.png").width > 500
    rows = [json.loads(line) for line in Path("o.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["path"] for row in rows] == [*paths[1:9], "gone.jpg"]
    assert [row["model_true"] for row in rows] == ["X5", "X5", "A4", None, None, None, "A4", "A4", "A4"]
    assert rows[-1]["error"] == "the file is missing" and rows[-1]["make"] is None
    expected = carvision.load(run).predict(photos[1:9], boxes=[box if box[0] else None for box in boxes[1:9]])
    got = [row["model_prob"] for row in rows[:8]]
    assert got == pytest.approx([row["model"][0]["prob"] for row in expected], rel=1e-5)
    ids = ["2", "9", "1", None, None, None, "1", "1"]
    judged = [row["model_id"] == id_ for row, id_ in zip(rows, ids, strict=False) if id_]
    assert messages == [
        "4 photos have no box: the whole photo was used",
        "model: 2 photos are of classes unknown to the model, by id and by name ('X5', 'Z'); they are not judged",
        "1 of 9 photos could not be used; see the column error",
        "  gone.jpg: the file is missing",
        f"right: model {100 * sum(judged) / 5:.1f} % of 5",
    ]
    _, _, messages = predict(run, photos[0])
    assert len(messages) == 1 and messages[0].startswith("the model was trained on the boxes of its photos")


def test_a_runs_own_list_needs_no_root_its_photos_are_known_and_truth_is_in_folders(photos, predict, tmp_path_factory):
    run = save_tiny(tmp_path_factory.mktemp("listed"))
    root = Path("photos").absolute()
    rewrite(run, config={"data": {"name": "folder", "root": str(root)}})
    paths = [path.removeprefix("photos/") for path in photos]
    table = pd.DataFrame({"path": paths, "split": ["train"] * 5 + ["val"] * 2 + ["test"] * 3, "model": "2"})
    table.to_csv(run / "splits.csv", index=False)
    code, out, messages = predict(run, "--list", run / "splits.csv")
    assert code == 0 and [row["path"] for row in read_csv(out)] == paths
    assert all(not row["error"] for row in read_csv(out))
    assert f"--root: {root}, the data root of the run" in messages
    seen = f"{run.name} was trained on 5 of these 10 photos, and its weights were chosen by 2 (matched by path)"
    assert any(message.startswith(seen) for message in messages)
    code, out, messages = predict(run, "photos", "--true-from-folders", "--brief")  # by the data root
    assert any(message.startswith(seen) for message in messages)
    rows = read_csv(out)
    assert code == 0 and list(rows[0]) == ["path", "make", "model", "speed"]
    truth = {"7": "BMW", "3": "Audi"}
    known = [(row["make"], truth[row["path"].split("/")[1]]) for row in rows if "/b/" not in row["path"]]
    right = sum(predicted == true for predicted, true in known)
    assert messages[-1].startswith(f"right: make {100 * right / 6:.1f} % of 6, model ")
    unknown = "photos are of folders or classes unknown to the model, by id and by name ('b'); they are not judged"
    assert f"make: 4 {unknown}" in messages
    rewrite(run, config={"data": {"name": "folder", "root": "/nowhere/photos"}})
    code, _, messages = predict(run, "--list", run / "splits.csv")
    assert code == 1 and "are not in /nowhere/photos, the data root of that run; give the folder" in messages[-1]


def test_an_interrupted_command_is_resumed(run, photos, predict):
    whole, file = Path("whole.csv"), Path("out.csv")
    options = ("--batch-size", "3", "--true-from-folders")
    _, _, undisturbed = predict(run, "photos", "--out", whole, *options)
    # As a command leaves it that is killed while it writes a batch; here the list is unreadable
    Path("list.txt").write_text("\n".join(photos[:5]) + "\n\0\n", encoding="utf-8")
    code, _, messages = predict(run, "--list", "list.txt", "--out", file, *options)
    assert code == 1 and messages[-1].endswith("line 6 is not text; give one path per line")
    assert not file.exists()
    with partial_path(file).open("ab") as partial:
        partial.write(partial_path(file).read_bytes()[-400:-100])
    changed = shutil.copytree(run, Path("changed"))
    rewrite(changed, temperature={"make": 2.0})
    for wrong, message in (
        ((run, "photos", "--tta", "flip"), "was begun with --tta none, not flip"),
        ((changed, "photos"), "was begun with temperature of make 1.0, not 2.0"),
        ((run, "photos/b"), "has photos/3/1/000.jpg as photo 1, and now it is photos/b/000.jpg"),
    ):
        code, _, messages = predict(*wrong[:2], "--out", file, *options, *wrong[2:])
        assert code == 1 and message in messages[-1]
    rewrite(changed, temperature={}, metrics={"later": 1})  # changes no row
    code, _, messages = predict(changed, "photos", "--out", file, *options)
    assert code == 0 and messages[0] == "resuming after 3 photos" and file.read_bytes() == whole.read_bytes()
    assert messages[1:] == undisturbed and "of 6" in messages[-1]  # including the first command's
    code, _, messages = predict(run, "photos", "--out", file, *options)
    assert code == 1 and messages == [f"error: --out: {file} exists; give another name, or replace it with --overwrite"]


def test_an_ensemble_averages_probabilities(run, photos, predict, tmp_path_factory):
    other = save_tiny(tmp_path_factory.mktemp("other"), seed=1)
    grid = ["--top", "2", "--grid", "c.png", "--grid-classes", "2", "--grid-photos", "3"]
    Path("out.csv").touch()
    code, out, _ = predict(run, *photos, "--ensemble", other, "--out", "out.csv", "--overwrite", *grid)
    assert code == 0 and out == "predict: out.csv\ngrid: c.png\n" and not list(Path().glob("out.csv.*"))
    assert Image.open("c.png").width == 704  # three photos a row
    both = read_csv(Path("out.csv").read_text(encoding="utf-8"))[0]
    assert both["make_2_id"] != both["make_id"]
    single = [carvision.load(path).predict(photos[:1], top=2)[0] for path in (run, other)]
    probs = [{best["id"]: best["prob"] for best in row["make"]} for row in single]
    assert float(both["make_prob"]) == pytest.approx(np.mean([p[both["make_id"]] for p in probs]), rel=1e-4)


def test_mistakes_end_as_one_line_before_the_model_is_loaded(photos, predict):
    for arguments, message in {
        ("nowhere.jpg",): "nowhere.jpg does not exist; give a photo, a folder of photos, or - for standard input",
        (photos[0], "--out", "o.txt"): "--out: 'o.txt' does not end in one of .csv, .tsv, .jsonl, .parquet",
        (photos[0],): "nowhere: no model there (nowhere does not exist); give the folder of a finished run",
    }.items():
        assert predict("nowhere", *arguments) == (1, "", [f"error: {message}"])


def test_pipes_as_input_and_output(run, photos, tmp_path):
    """`find | predict RUN - | head`: rows come before the input ends, and the end of head is no error."""
    os.mkfifo(tmp_path / "in")
    os.mkfifo(tmp_path / "out")
    pipes = "import sys; sys.stdin, sys.stdout = open('in'), open('out', 'w')"
    options = ("-", "--batch-size", "4", "--workers", "0")
    child = forked.start("carvision.predict", run, *options, cwd=tmp_path, out=tmp_path / "printed", first=pipes)
    with contextlib.suppress(BrokenPipeError), (tmp_path / "in").open("w") as paths:
        with (tmp_path / "out").open() as rows:
            paths.write("".join(f"{path}\n" for path in photos[:4]))
            paths.flush()
            lines = [rows.readline() for _ in range(5)]
        assert lines[0].strip().split(",") == COLUMNS and lines[4].startswith(photos[3])
        paths.write("".join(f"{path}\n" for path in photos * 50))
    (done,) = forked.finish([child], [tmp_path / "printed"])
    assert (done.returncode, done.stderr) == (0, "")


def test_no_more_than_two_batches_are_in_memory(run, photos, predict, monkeypatch):
    made, most = [], 0

    def counted(*arguments):
        nonlocal most
        rows = rows_of(*arguments)
        made.extend(weakref.ref(value) for value in (arguments[4]["make"], *(row.probs["make"] for row in rows)))
        most = max(most, sum(value() is not None for value in made))
        return rows

    monkeypatch.setattr("carvision.inference.run.rows_of", counted)
    code, _, _ = predict(run, *photos * 8, "--probs", "--batch-size", "4", "--out", "o.csv")
    assert code == 0 and len(made) == 80 + 20 and most <= 2 * (4 + 1)


def test_photos_of_classes_drawn_at_random():
    """Grouped by the true class, if known; the same photos give the same sample."""
    row = Row("", {"model": [{"id": "9", "name": "Z", "prob": 1.0}]})

    def sampled(*arguments) -> list[list[list]]:
        sample = ClassSample(*arguments)
        for i in range(60):
            sample.add(f"{i}.jpg", {"model": i % 6 if i % 6 < 5 else None}, row)
        return sample.chosen()

    chosen = sampled(4, 3, "model", 1)
    assert chosen == sampled(4, 3, "model", 1) and [len(group) for group in chosen] == [3] * 4
    classes = [{truth["model"] for _, truth, _ in group} for group in chosen]
    assert all(len(one) == 1 for one in classes) and len({*map(frozenset, classes)}) == 4
    every = sampled(10, 99, "model")
    assert [len(group) for group in every] == [10] * 6
    assert {truth["model"] for _, truth, _ in every[-1]} == {None}  # grouped by the predicted class


def test_the_method_gives_the_values_of_the_network(run, photos, monkeypatch):
    model = carvision.load(run)
    boxes = [(3, 4, 40, 30), *[None] * 9]
    monkeypatch.setattr("carvision.inference.predictor.PHOTOS_AT_A_TIME", 3)
    found = model.predict(photos, boxes=boxes, top=2)
    assert [row["path"] for row in found] == photos
    for file, box, row in zip(photos, boxes, found, strict=True):
        with torch.no_grad():
            logits = model(model.transform(Image.open(file), box=box)[None])
        assert list(row) == ["path", "make", "model", "speed", "error"] and row["error"] is None
        assert row["speed"] == pytest.approx(logits["speed"].item(), rel=1e-5)
        for head, code in model.decode(logits).items():
            probs = logits[head][0].softmax(0)
            assert row[head][0]["id"] == model.class_ids[head][code] and len(row[head]) == 2
            assert row[head][0]["name"] == model.classes[head][code]
            assert row[head][0]["prob"] == pytest.approx(probs[code].item(), rel=1e-4)
            rest = [p for i, p in enumerate(probs.tolist()) if i != code.item()]
            assert row[head][1]["prob"] == pytest.approx(max(rest), rel=1e-4)
    assert len({row["model"][0]["prob"] for row in found}) == 10  # each photo its own


def test_images_and_paths_give_the_same(run, photos):
    model = carvision.load(run)
    by_path = model.predict(photos, top=9)
    by_image = model.predict([Image.open(file) for file in photos], top=9)
    assert all(row.pop("path") is None for row in by_image)
    assert by_image == [{k: v for k, v in row.items() if k != "path"} for row in by_path]
    assert [len(by_path[0][head]) for head in ("make", "model")] == [2, 3]
    assert model.predict([]) == []


def test_photos_that_cant_be_used_have_their_reason(run, photos, tmp_path, monkeypatch):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "torn.jpg").write_bytes(Path(photos[0]).read_bytes()[:300])
    monkeypatch.setattr("carvision.data.images.MAX_PIXELS", 10_000)
    bomb = Image.new("1", (200, 100))
    given = [tmp_path / "none.jpg", photos[0], tmp_path / "empty.jpg", tmp_path / "torn.jpg", bomb, photos[1]]
    found = carvision.load(run).predict(given, boxes=[None] * 5 + [(60, 60, 70, 70)])
    assert found[0] == {"path": str(given[0]), "make": [], "model": [], "speed": None, "error": "the file is missing"}
    for row, reason in zip(found, ("missing", None, "empty", "", "bomb", "box 60 60 70 70 "), strict=True):
        assert (row["error"] is None) == (reason is None) and (reason is None or reason in row["error"])


@pytest.mark.parametrize(("photos", "options", "message"), [
    ("a.jpg", {}, "is one photo; give a list"), ([IMAGE] * 7, {"boxes": [None]}, "boxes: 1 for 7 photos"),
    ([IMAGE], {"boxes": [(1, 2)]}, r"boxes: \(1, 2\) is not left, top, right, bottom"),
    ([np.zeros((9, 9, 3), np.uint8)], {}, "is a ndarray, .*fromarray"),
    ([IMAGE], {"top": 0}, "top: 0 is not a whole number from 1"),
])  # fmt: skip
def test_mistakes_are_named(run, photos, options, message):
    with pytest.raises(InputError, match=message):
        carvision.load(run).predict(photos, **options)


# In one process, as torch's import takes seconds
CODE = """
import copy, os, sys, carvision
assert "torch" not in sys.modules
model = carvision.load(sys.argv[1])
import torch
libraries = {"pytorch_lightning", "lightning", "hydra", "omegaconf", "torchmetrics"}
assert not libraries & set(sys.modules)
assert isinstance(model, torch.nn.Module) and not model.training
[row] = model.predict(sys.argv[2:], top=2)
assert len(row["make"]) == 2 and not libraries & set(sys.modules)
assert copy.deepcopy(model).predict(sys.argv[2:], boxes=[None], top=2) == [row]

import carvision.predict
assert not callable(carvision.predict)  # a module, as every command
assert "OMP_WAIT_POLICY" not in os.environ
"""


def test_a_program_of_its_own(run, photos):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    subprocess.run([sys.executable, "-c", CODE, str(run), photos[0]], check=True, env=environment)


@pytest.mark.slow
def test_thousands_of_photos_killed_and_resumed(run, tmp_path):
    """Order is kept, and a killed command is resumed to the same bytes."""
    num, whole, killed = 4_000, tmp_path / "whole.csv", tmp_path / "killed.csv"
    files = write_photos(tmp_path / "photos" / ".few", 100)
    for i in range(num):
        os.link(files[i * 7 % 100], tmp_path / "photos" / f"{i:05d}.jpg")
    command = ["carvision.predict", run, "photos", "--probs", "--out"]
    forked.run(*command, whole, cwd=tmp_path, check=0)
    rows = pd.read_csv(whole)
    assert rows["path"].tolist() == [f"photos/{i:05d}.jpg" for i in range(num)] and rows["model_prob"].nunique() > 50

    child = forked.start(*command, killed, cwd=tmp_path, out=tmp_path / "printed")
    partial = partial_path(killed)
    while not partial.exists() or partial.stat().st_size < 50_000:  # of some 500,000
        assert child.exitcode is None
        time.sleep(0.02)
    child.kill()
    child.join()
    assert not killed.exists()
    done = forked.run(*command, killed, cwd=tmp_path, check=0)  # at once: the killed command's lock is gone
    assert done.stderr.startswith("resuming after "), done.stderr
    assert 64 <= int(done.stderr.split()[2].replace(",", "")) < num
    assert killed.read_bytes() == whole.read_bytes()
