"""carvision.retrieve as a command: scikit-learn's metrics, sheets, a single photo, unseen classes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from carvision.retrieve import retrieve
from tests import forked
from tests.small_runs import demo, train


def read(folder: Path) -> dict:
    return json.loads((folder / "retrieval.json").read_text())


def retrieve_in(folder: Path, *words) -> pd.DataFrame:
    """Retrieve in this process; return neighbours.csv."""
    retrieve([*map(str, words), "--out", str(folder)])
    return pd.read_csv(folder / "neighbours.csv")


def test_the_metrics_are_scikit_learns_on_the_same_embeddings_and_all_files_agree(run, vectors, tmp_path):
    done = forked.run("carvision.retrieve", run, "--k", "1", "3", "5", cwd=run.parent, check=0)
    assert "k-nearest-neighbour classification of model" in done.stdout and "Recall@1" in done.stdout
    retrieved = run.parent / done.stdout.splitlines()[-1].removeprefix("retrieve: ")
    values, index = np.load(vectors / "embeddings.npy"), pd.read_csv(vectors / "index.csv", dtype=str)
    train_rows, test_rows = (np.flatnonzero(index["split"] == split) for split in ("train", "test"))
    ids = index["model"].astype(int).to_numpy()  # in the order of the classes
    found = read(retrieved)
    assert (found["num_queries"], found["num_gallery"]) == (len(test_rows), len(train_rows))
    for k in (1, 3, 5):
        theirs = KNeighborsClassifier(k, algorithm="brute", metric="cosine").fit(values[train_rows], ids[train_rows])
        expected = accuracy_score(ids[test_rows], theirs.predict(values[test_rows]))
        assert found["knn"][str(k)]["accuracy"] == pytest.approx(expected, abs=1e-9)
    assert found["retrieval"]["recall_at_1"] == pytest.approx(found["knn"]["1"]["accuracy"])
    retrieve_in(tmp_path / "again", vectors, "--k", "1", "3", "5")  # from the embeddings on disk
    again = read(tmp_path / "again")
    assert again["knn"] == found["knn"] and again["retrieval"] == pytest.approx(found["retrieval"])
    assert retrieved.parent == run / "retrievals"
    names = {file.name for file in retrieved.iterdir()}
    assert names == {"retrieval.json", "knn.csv", "per_class.csv", "neighbours.csv", "neighbours.png"}
    assert np.asarray(Image.open(retrieved / "neighbours.png")).std() > 5
    near = pd.read_csv(retrieved / "neighbours.csv", dtype=str)
    assert len(near) == 10 * found["num_queries"] and near["rank"].tolist()[:10] == [str(i + 1) for i in range(10)]
    first = near[near["rank"] == "1"]
    assert (first["model"] == first["neighbour_model"]).mean() == pytest.approx(found["retrieval"]["recall_at_1"])
    assert (np.diff(near["score"].astype(float).to_numpy().reshape(-1, 10), axis=1) <= 0).all()
    each = pd.read_csv(retrieved / "per_class.csv")
    assert each["queries"].sum() == found["num_queries"]
    assert np.average(each["map_at_r"], weights=each["queries"]) == pytest.approx(found["retrieval"]["map_at_r"])


def test_a_query_never_finds_itself(vectors, tmp_path):
    words = [vectors, "--split", "all", "--sheet", "0"]
    near = retrieve_in(tmp_path / "alone", *words, "--leave-one-out", "--label", "make")
    assert not (near["path"] == near["neighbour"]).any() and "make" in near
    assert read(tmp_path / "alone")["gallery"] == "leave one out"
    assert not (tmp_path / "alone" / "neighbours.png").exists()
    near = retrieve_in(tmp_path / "among", *words, "--gallery", "train", "val")
    assert near["path"].nunique() == 240 and not (near["path"] == near["neighbour"]).any()


def test_a_single_photo_is_answered(run, vectors, tmp_path, capsys):
    rows = pd.read_csv(run / "splits.csv", dtype=str)
    row = rows[rows["split"] == "train"].iloc[3]
    box = [row[side] for side in ("left", "top", "right", "bottom")]
    shutil.copy(f"{json.loads((vectors / 'embeddings.json').read_text())['root']}/{row['path']}", tmp_path / "mine.jpg")
    near = retrieve_in(tmp_path / "answer", run, "--query", tmp_path / "mine.jpg", "--box", *box)
    assert near["neighbour"][0] == row["path"] and near["score"][0] == pytest.approx(1, abs=1e-4)
    assert row["path"] in capsys.readouterr().out.replace("\n", "")
    assert np.asarray(Image.open(tmp_path / "answer" / "neighbours.png")).std() > 5


def test_unseen_classes_are_searched_among_themselves(demo_photos, tmp_path, capsys):
    words = ["data.split.kind=unseen_classes", "metric_loss=proxy_anchor", "metric_loss.heads=probe"]
    run = train(tmp_path / "run", *demo(demo_photos), *words, "trainer.max_epochs=1")
    assert json.loads((run / "metrics.json").read_text())["test"] == {}
    retrieve_in(tmp_path / "out", run)
    assert "none of the queries' classes is among the gallery's" in capsys.readouterr().err
    found = read(tmp_path / "out")
    assert found["gallery"] == "leave one out" and found["layer"] == "embedding" and found["num_queries"] == 120
    each = pd.read_csv(tmp_path / "out" / "per_class.csv")
    assert len(each) == 6 and 0 < found["retrieval"]["recall_at_1"] <= 1
