"""From embeddings to scores and metrics, and their tables and files."""

import numpy as np
import pandas as pd
import pytest

from carvision.data.table import Classes, Table
from carvision.embedding.store import Embeddings
from carvision.errors import InputError
from carvision.verification import METHODS
from carvision.verification.metrics import accuracy, best_threshold
from carvision.verification.pairs import Pairs, VerificationTask, generate_pairs
from carvision.verification.run import accuracy_table, curve_tables, scores_frame
from carvision.verification.score import ScoredPairs, l2, score

NAMES = tuple("abcdef")


def made_task(num: int = 240, seed: int = 0) -> tuple[VerificationTask, np.ndarray]:
    """Return a task that learns from every other photo, and embeddings (num, 5) that separate classes in part."""
    rng = np.random.default_rng(seed)
    codes, learned = rng.integers(0, 6, num), np.arange(num) % 2 == 0
    rows = pd.DataFrame({"path": [f"{i}.jpg" for i in range(num)], "split": "", "class": codes})
    table = Table("made", "photos", rows, {"class": Classes(NAMES, NAMES)}, "class")
    train = generate_pairs(table.select(learned), "class", "medium", 200, 0).map_rows(np.flatnonzero(learned))
    tests = {
        name: generate_pairs(table.select(~learned), "class", "medium", 100, seed).map_rows(np.flatnonzero(~learned))
        for seed, name in enumerate(("one", "two"))
    }
    values = rng.normal(size=(6, 5))[codes] + 0.7 * rng.normal(size=(num, 5))
    return VerificationTask(table, "class", tests, {}, learned, train), values.astype(np.float32)


def test_scores_are_those_of_the_photos_in_any_order_of_embeddings():
    task, values = made_task()
    shuffled = np.random.default_rng(1).permutation(len(values))
    rows = task.table.rows.iloc[shuffled].reset_index(drop=True)
    embeddings = Embeddings(values[shuffled], Table("made", "photos", rows, task.table.labels, "class"))
    scored, train = score(task, embeddings, list(METHODS))
    threshold = best_threshold(l2(values, task.train), task.train.same)
    for name, pairs in task.tests.items():
        assert (scored[name].first == [f"{i}.jpg" for i in pairs.first]).all()
        assert (scored[name].second == [f"{i}.jpg" for i in pairs.second]).all()
        assert (scored[name].same == pairs.same).all()
        np.testing.assert_allclose(scored[name].scores["l2"], l2(values, pairs), rtol=1e-6)
        assert list(scored[name].metrics) == list(METHODS)
        metrics = scored[name].metrics["l2"]
        assert metrics["threshold"] == pytest.approx(threshold)
        assert metrics["accuracy"] == accuracy(l2(values, pairs), pairs.same, threshold)
        assert min(of_method["accuracy"] for of_method in scored[name].metrics.values()) > 0.7
    assert train == {"photos": 120, "classes": 6, "pairs": 200}


def test_pairs_with_unreadable_photos_are_left_out_and_counted(caplog):
    task, values = made_task()
    keep = np.ones(len(values), bool)
    keep[[int(task.tests["one"].first[0]), int(task.train.second[3])]] = False
    embeddings = Embeddings(values[keep], task.table.select(keep))
    scored, train = score(task, embeddings, list(METHODS))
    left = {
        name: (keep[pairs.first] & keep[pairs.second]).sum()
        for name, pairs in {**task.tests, "training": task.train}.items()
    }
    assert len(scored["one"].same) == left["one"] < 100
    assert train == {"photos": 119, "classes": 6, "pairs": left["training"]}
    assert f"{100 - left['one']} of 100 one pairs are left out" in caplog.text
    assert f"{200 - left['training']} of 200 training pairs are left out" in caplog.text
    keep[~task.learned] = False
    with pytest.raises(InputError, match="no one pair is left"):
        score(task, Embeddings(values[keep], task.table.select(keep)), ["cosine"])
    values[7, 2] = np.nan
    with pytest.raises(InputError, match=r"7\.jpg: its embedding has values that are not finite"):
        score(task, Embeddings(values, task.table), ["cosine"])


@pytest.fixture
def scored() -> dict[str, ScoredPairs]:
    """Pairs of both kinds, and same ones alone, which have no ROC."""
    task, values = made_task()
    pairs = task.tests["one"]
    tests = {
        "all $a_b$": pairs,
        "same alone": Pairs(pairs.first[pairs.same], pairs.second[pairs.same], np.ones(50, bool)),
    }
    task = VerificationTask(task.table, "class", tests, {}, task.learned, task.train)
    return score(task, Embeddings(values, task.table), ["cosine", "joint_bayes"])[0]


def test_tables_hold_the_metrics(scored):
    frame = scores_frame(scored).set_index(["difficulty", "method"])
    sheet = accuracy_table(scored)
    assert sheet.header == ["method", "all $a_b$", "same alone"]
    assert [row[0] for row in sheet.rows] == ["cosine", "Joint Bayesian"]
    for row, marks, method in zip(sheet.rows, sheet.marks, ("cosine", "joint_bayes"), strict=True):
        for cell, mark, name in zip(row[1:], marks[1:], scored, strict=True):
            column = frame.xs(name)["accuracy"].round(4)
            assert cell == f"{100 * frame.loc[(name, method), 'accuracy']:.2f}"
            assert (mark == "best") == (column[method] == column.max())
    all_pairs, same_alone = curve_tables(scored)
    assert [row[1] for row in all_pairs.rows] == [f"{value:.4f}" for value in frame.xs("all $a_b$")["auc"]]
    eers = frame.xs("all $a_b$")["eer"].round(4)
    assert [row[2] == "best" for row in all_pairs.marks] == (eers == eers.min()).tolist()  # the least
    assert {cell for row in same_alone.rows for cell in row[1:]} == {"–"}
    assert not any(cell for row in same_alone.marks for cell in row)
    assert all_pairs.notes[0] == "FAR 1 % needs 100 different pairs to measure; here are 50."
