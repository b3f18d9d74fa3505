"""carvision.verify as a command: the data set's lists, drawn pairs, other lists, other data."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from carvision.verify import verify
from tests import forked

METHODS = ["cosine", "l2", "svm", "joint_bayes"]


@pytest.fixture(scope="module")
def verified(run):
    """The folder of a verification on the data set's own lists."""
    done = forked.run("carvision.verify", run, cwd=run.parent, check=0)
    assert "Warning" not in done.stderr, done.stderr
    assert "Pair accuracy" in done.stdout and "Joint Bayesian" in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"verify: {run}/verifications/")
    return Path(last.removeprefix("verify: "))


def about_of(folder) -> dict:
    return json.loads((folder / "verification.json").read_text())


def verify_in(folder: Path, *arguments) -> dict:
    verify([*map(str, arguments), "--out", str(folder)])
    return about_of(folder)


def test_the_lists_of_the_data_set_are_verified(verified, demo_photos):
    lists = demo_photos / "data" / "train_test_split" / "verification"
    about, frame = about_of(verified), pd.read_csv(verified / "verification.csv")
    assert about["label"] == "model" and about["notes"] == []  # no photo of them that the run was trained on
    assert list(frame["method"]) == METHODS * 3
    assert list(frame["difficulty"]) == [name for name in ("easy", "medium", "hard") for _ in METHODS]
    num_train = len((lists / "verification_train.txt").read_text().split())
    assert about["train"]["photos"] == num_train and about["train"]["classes"] == 12
    for difficulty, rows in frame.groupby("difficulty"):
        listed = pd.read_csv(lists / f"verification_pairs_{difficulty}.txt", sep=" ", header=None)
        pairs = pd.read_csv(verified / f"pairs_{difficulty}.csv")
        assert (pairs["path1"] == "image/" + listed[0]).all() and (pairs["path2"] == "image/" + listed[1]).all()
        assert (pairs["same"] == listed[2]).all()
        for _, row in rows.iterrows():
            assert row["auc"] == pytest.approx(roc_auc_score(listed[2], pairs[row["method"]]), abs=1e-3)
            figures = about["difficulties"][difficulty]["figures"][row["method"]]
            written = pd.Series(figures, dtype=float)  # None for NaN
            assert written.tolist() == pytest.approx(row[list(written.index)].tolist(), nan_ok=True)
            right = (pairs[row["method"]] >= row["threshold"]) == listed[2]
            assert right.mean() == pytest.approx(row["accuracy"], abs=0.01)
    assert np.asarray(Image.open(verified / "roc.png")).std() > 5


def test_pairs_are_drawn_from_the_split_by_the_seed(run, tmp_path):
    splits = pd.read_csv(run / "splits.csv", dtype=str).set_index("path")
    drawn = ["--split", "test", "--num-pairs", "40", "--methods", "svm", "cosine", "--train-split", "val"]
    about = verify_in(tmp_path / "test", run, *drawn)
    verify_in(tmp_path / "again", run, *drawn)
    verify_in(tmp_path / "seed", run, *drawn, "--seed", "1")
    assert about["train"]["split"] == "val" and about["train"]["photos"] == (splits["split"] == "val").sum()
    assert about["lists"] == {} and list(about["difficulties"]["easy"]["figures"]) == ["cosine", "svm"]
    for difficulty in ("easy", "medium", "hard"):
        texts = [(tmp_path / name / f"pairs_{difficulty}.csv").read_bytes() for name in ("test", "again", "seed")]
        assert texts[0] == texts[1] != texts[2]
        pairs = pd.read_csv(tmp_path / "test" / f"pairs_{difficulty}.csv")
        one, other = (splits.loc[pairs[path]].reset_index() for path in ("path1", "path2"))
        assert (one["split"] == "test").all() and (other["split"] == "test").all()
        assert ((one["model"] == other["model"]) == pairs["same"]).all()
        alike = {"easy": "viewpoint", "medium": "split", "hard": "make"}[difficulty]
        assert (one[alike] == other[alike]).all()


def test_tested_training_photos_are_reported_and_not_learned_from(run, tmp_path):
    splits = pd.read_csv(run / "splits.csv", dtype=str).set_index("path")["split"]
    about = verify_in(tmp_path / "train", run, "--split", "train", "--num-pairs", "20", "--label", "make")
    assert list(about["difficulties"]) == ["easy", "medium"]  # a make has no parent
    frames = [pd.read_csv(tmp_path / "train" / f"pairs_{difficulty}.csv") for difficulty in about["difficulties"]]
    tested = {path for frame in frames for path in (*frame["path1"], *frame["path2"])}
    (note,) = about["notes"]
    assert f"trained on {len(tested)} of these {len(tested)} photos" in note
    assert about["label"] == "make" and about["train"]["photos"] == (splits == "train").sum() - len(tested)


def test_other_lists_one_of_an_earlier_verification_and_one_with_a_missing_photo(run, verified, tmp_path):
    earlier = pd.read_csv(verified / "pairs_hard.csv")
    same = earlier[earlier["same"] == 1].head(9)
    text = same[["path1", "path2", "same"]].to_csv(sep="\t", index=False, header=False)
    (tmp_path / "mine.txt").write_text(f"{text}nowhere.jpg\t{same['path1'].iloc[0]}\t0\n")
    lists = ["--pairs", verified / "pairs_hard.csv", tmp_path / "mine.txt"]
    with pytest.raises(SystemExit, match=r"1 of 10 pairs name photos that demo lacks \(first: nowhere.jpg in line"):
        verify_in(tmp_path / "e", run, *lists, "--methods", "cosine")
    about = verify_in(tmp_path / "e", run, *lists, "--methods", "cosine", "data.allow_missing=true")
    assert list(about["difficulties"]) == ["pairs_hard", "mine"]
    assert about["lists"]["mine"] == str(tmp_path / "mine.txt")
    again = pd.read_csv(tmp_path / "e" / "pairs_pairs_hard.csv")
    np.testing.assert_allclose(again["cosine"], earlier["cosine"], atol=1e-4)
    mine = about["difficulties"]["mine"]
    assert mine["pairs"] == mine["same"] == 9
    assert mine["figures"]["cosine"]["auc"] is None and 0 <= mine["figures"]["cosine"]["accuracy"] <= 1
