"""carvision.retrieve as a command: figures as scikit-learn has them, sheets, one photo, unseen classes, mistakes."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from tests import forked
from tests.small_runs import demo, train


@pytest.fixture(scope="module")
def run(demo_run, tmp_path_factory):
    return shutil.copytree(demo_run, tmp_path_factory.mktemp("retrieve") / "run")


@pytest.fixture(scope="module")
def vectors(run):
    """What carvision.embed writes of all photos of the run."""
    forked.run("carvision.embed", run, "--out", "vectors", cwd=run.parent, check=0)
    return run.parent / "vectors"


def retrieve(*words, cwd, check: int = 0):
    return forked.run("carvision.retrieve", *words, cwd=cwd, check=check)


def folder_of(done, cwd):
    last = done.stdout.splitlines()[-1]
    assert last.startswith("retrieve: ")
    return cwd / last.removeprefix("retrieve: ")


@pytest.fixture(scope="module")
def retrieved(run):
    done = retrieve(run, "--k", "1", "3", "5", cwd=run.parent)
    assert "k-nearest-neighbour classification of model" in done.stdout and "Recall@1" in done.stdout
    return folder_of(done, run.parent)


def test_the_figures_are_scikit_learns_on_the_same_embeddings(retrieved, vectors):
    values, index = np.load(vectors / "embeddings.npy"), pd.read_csv(vectors / "index.csv", dtype=str)
    train_rows, test_rows = (np.flatnonzero(index["split"] == split) for split in ("train", "test"))
    ids = index["model"].astype(int).to_numpy()  # whose order is that of the classes
    found = json.loads((retrieved / "retrieval.json").read_text())
    assert (found["num_queries"], found["num_gallery"]) == (len(test_rows), len(train_rows))
    for k in (1, 3, 5):
        theirs = KNeighborsClassifier(k, algorithm="brute", metric="cosine").fit(values[train_rows], ids[train_rows])
        expected = accuracy_score(ids[test_rows], theirs.predict(values[test_rows]))
        assert found["knn"][str(k)]["accuracy"] == pytest.approx(expected, abs=1e-9)
    assert found["retrieval"]["recall_at_1"] == pytest.approx(found["knn"]["1"]["accuracy"])


def test_every_file_that_was_promised_is_there(retrieved, run):
    assert retrieved.parent == run / "retrievals"
    names = {file.name for file in retrieved.iterdir()}
    assert names == {"retrieval.json", "knn.csv", "per_class.csv", "neighbours.csv", "neighbours.png"}
    assert np.asarray(Image.open(retrieved / "neighbours.png")).std() > 5
    near = pd.read_csv(retrieved / "neighbours.csv", dtype={"model": str, "neighbour_model": str})
    found = json.loads((retrieved / "retrieval.json").read_text())
    assert len(near) == 10 * found["num_queries"] and near["rank"].max() == 10
    first = near[near["rank"] == 1]
    assert (first["model"] == first["neighbour_model"]).mean() == pytest.approx(found["retrieval"]["recall_at_1"])
    scores = near["score"].to_numpy().reshape(-1, 10)
    assert (np.diff(scores, axis=1) <= 0).all()
    each = pd.read_csv(retrieved / "per_class.csv")
    assert each["queries"].sum() == found["num_queries"]
    weighted = (each["map_at_r"] * each["queries"]).sum() / each["queries"].sum()
    assert weighted == pytest.approx(found["retrieval"]["map_at_r"])


def test_a_folder_of_embeddings_gives_the_same(retrieved, vectors, tmp_path):
    done = retrieve(vectors, "--k", "1", "3", "5", "--out", "again", cwd=tmp_path)
    ours, theirs = (json.loads((f / "retrieval.json").read_text()) for f in (retrieved, folder_of(done, tmp_path)))
    assert ours["knn"] == theirs["knn"] and ours["retrieval"] == pytest.approx(theirs["retrieval"])


def test_leave_one_out_never_finds_the_query_itself(vectors, tmp_path):
    words = ["--leave-one-out", "--split", "all", "--label", "make", "--sheet", "0"]
    for index in ("exact", "hnsw"):
        folder = folder_of(retrieve(vectors, *words, "--index", index, "--out", index, cwd=tmp_path), tmp_path)
        near = pd.read_csv(folder / "neighbours.csv")
        assert not (near["path"] == near["neighbour"]).any() and "make" in near
        found = json.loads((folder / "retrieval.json").read_text())
        assert ("index_recall" in found) == (index == "hnsw") and found["gallery"] == "leave one out"
        assert not (folder / "neighbours.png").exists()


@pytest.mark.parametrize("index", ["exact", "ivf"])
def test_a_query_that_is_in_the_gallery_never_finds_itself(vectors, tmp_path, index):
    words = [vectors, "--split", "all", "--gallery", "train", "val", "--sheet", "0", "--index", index]
    folder = folder_of(retrieve(*words, "--out", "out", cwd=tmp_path), tmp_path)
    near = pd.read_csv(folder / "neighbours.csv")
    assert near["path"].nunique() == 240 and not (near["path"] == near["neighbour"]).any()


def test_one_photo_is_answered(run, vectors, tmp_path):
    rows = pd.read_csv(run / "splits.csv", dtype=str)
    row = rows[rows["split"] == "train"].iloc[3]
    root = json.loads((vectors / "embeddings.json").read_text())["root"]
    box = [row[side] for side in ("left", "top", "right", "bottom")]
    shutil.copy(f"{root}/{row['path']}", tmp_path / "mine.jpg")
    done = retrieve(run, "--query", "mine.jpg", "--box", *box, "--out", "answer", cwd=tmp_path)
    near = pd.read_csv(folder_of(done, tmp_path) / "neighbours.csv", dtype=str)
    assert near["neighbour"][0] == row["path"] and float(near["score"][0]) == pytest.approx(1, abs=1e-4)
    assert row["path"] in done.stdout.replace("\n", "")
    assert np.asarray(Image.open(tmp_path / "answer" / "neighbours.png")).std() > 5


def test_classes_that_were_never_seen_are_looked_for_among_themselves(demo_photos, tmp_path):
    words = ["data.split.kind=unseen_classes", "metric_loss=proxy_anchor", "metric_loss.heads=probe"]
    run = train(tmp_path / "run", *demo(demo_photos), *words, "trainer.max_epochs=1")
    assert json.loads((run / "metrics.json").read_text())["test"] == {}
    done = retrieve(run, cwd=tmp_path)
    assert "none of the queries' classes is among the gallery's" in done.stderr
    found = json.loads((folder_of(done, tmp_path) / "retrieval.json").read_text())
    assert found["gallery"] == "leave one out" and found["layer"] == "embedding" and found["num_queries"] == 120
    each = pd.read_csv(folder_of(done, tmp_path) / "per_class.csv")
    assert len(each) == 6 and 0 < found["retrieval"]["recall_at_1"] <= 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere"], "nowhere: no model there"),
        (["{run}", "--k", "0"], "--k: 0 is not a whole number from 1"),
        (["{run}", "--label", "modle"], "--label: 'modle' is no label of demo with classes; nearest: model"),
        (["{run}", "--leave-one-out", "--gallery", "train"], "--leave-one-out: the queries are their own gallery"),
        (["{run}", "--query", "no.jpg"], "--query: no.jpg"),
        (
            ["{run}", "--query", "x.jpg", "y.jpg", "--box", "1", "2", "3", "4"],
            "--box: is of one --query, and 2 are given",
        ),
        (["{run}", "--query", "x.jpg", "--leave-one-out"], "--query: a photo of your own is looked for among others"),
        (
            ["{vectors}", "data.root=x"],
            "data.root=x: {vectors} holds computed embeddings; give the run to compute others",
        ),
        (["{vectors}", "--raw"], "--raw: {vectors} holds computed embeddings"),
        (["{vectors}", "--layer", "trunk"], "--layer trunk: {vectors} holds computed embeddings"),
        (["{vectors}", "--query", "x.jpg"], "--query: {vectors} holds embeddings and no network"),
        (["{run}", "--out", "{run}"], "--out: {run} exists already"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(run, vectors, tmp_path, words, line):
    words = [word.format(run=run, vectors=vectors) for word in words]
    done = forked.run("carvision.retrieve", *words, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert line.format(run=run, vectors=vectors) in done.stderr.splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []
