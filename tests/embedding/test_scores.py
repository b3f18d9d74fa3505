"""Scores and their metrics equal plain loops and scikit-learn's; a task is scored, with its metrics and tables."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from carvision.data.table import Classes, Table
from carvision.embedding import pairs as pairs_module
from carvision.embedding import scores as scores_module
from carvision.embedding.options import METHODS
from carvision.embedding.pairs import Pairs, VerificationTask, generate_pairs
from carvision.embedding.scores import accuracy, best_threshold, cosine, fit_linear_svm, l2, pair_metrics, roc, score
from carvision.embedding.store import Embeddings
from carvision.errors import InputError


def made(num=30, num_pairs=100, dims=6, seed=0) -> tuple[np.ndarray, np.ndarray, Pairs]:
    """Return embeddings, the codes of their classes, and pairs."""
    rng = np.random.default_rng(seed)
    codes = np.arange(num) % 5
    values = (rng.normal(size=(5, dims))[codes] + rng.normal(size=(num, dims))).astype(np.float32)
    first, second = rng.integers(0, num, (2, num_pairs))
    return values, codes, Pairs(first, second, codes[first] == codes[second])


def test_cosine_and_distance_equal_a_loop(monkeypatch):
    monkeypatch.setattr(pairs_module, "BLOCK", 7)
    values, _, pairs = made()
    cosines, distances = cosine(values, pairs), l2(values, pairs)
    for m, (i, j) in enumerate(zip(pairs.first, pairs.second, strict=True)):
        a, b = values[i].astype(float), values[j].astype(float)
        assert cosines[m] == pytest.approx((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()), abs=1e-5)
        assert distances[m] == pytest.approx(-math.sqrt(((a - b) ** 2).sum()), abs=1e-5)
    zeros = np.array([[0, 0], [1, 2]], dtype=np.float32)
    assert cosine(zeros, Pairs(np.array([0]), np.array([1]), np.array([True]))).tolist() == [0]


def test_the_linear_svm_is_scikit_learns_on_standardised_differences():
    values, _, pairs = made()
    values[:, 2] = 3  # an element that is constant
    found = fit_linear_svm(values, pairs)
    differences = np.array([abs(values[i] - values[j]) for i, j in zip(pairs.first, pairs.second, strict=True)])
    scaler = StandardScaler().fit(differences)
    svm = LinearSVC(C=scores_module.C_OF_ALL / 100, dual=False).fit(scaler.transform(differences), pairs.same)
    wanted = svm.decision_function(scaler.transform(differences))
    np.testing.assert_allclose(found.scores(values, pairs), wanted, atol=1e-4)
    assert found.weights[2] == 0


def made_task(num: int = 240, seed: int = 0) -> tuple[VerificationTask, np.ndarray]:
    """Return a task that learns from every other photo, and embeddings (num, 5) that separate classes in part."""
    rng = np.random.default_rng(seed)
    codes, learned = rng.integers(0, 6, num), np.arange(num) % 2 == 0
    rows = pd.DataFrame({"path": [f"{i}.jpg" for i in range(num)], "split": "", "class": codes})
    table = Table("made", "photos", rows, {"class": Classes(tuple("abcdef"), tuple("abcdef"))}, "class")

    def drawn(of, num_pairs, seed):
        return generate_pairs(table.select(of), "class", "medium", num_pairs, seed).map_rows(np.flatnonzero(of))

    tests = {"one": drawn(~learned, 100, 0), "two": drawn(~learned, 100, 1)}
    values = rng.normal(size=(6, 5))[codes] + 0.7 * rng.normal(size=(num, 5))
    return VerificationTask(table, "class", tests, {}, learned, drawn(learned, 200, 0)), values.astype(np.float32)


def test_scores_are_those_of_the_photos_in_any_order_of_embeddings():
    task, values = made_task()
    shuffled = np.random.default_rng(1).permutation(len(values))
    rows = task.table.rows.iloc[shuffled].reset_index(drop=True)
    scored, train = score(task, Embeddings(values[shuffled], replace(task.table, rows=rows)), list(METHODS))
    threshold = best_threshold(l2(values, task.train), task.train.same)
    for name, pairs in task.tests.items():
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
    scored, train = score(task, Embeddings(values[keep], task.table.select(keep)), ["svm"])
    tested, learned = ((keep[pairs.first] & keep[pairs.second]).sum() for pairs in (task.tests["one"], task.train))
    assert len(scored["one"].same) == tested < 100
    assert train == {"photos": 119, "classes": 6, "pairs": learned}
    assert f"{200 - learned} of 200 training pairs are left out" in caplog.text
    keep[~task.learned] = False
    with pytest.raises(InputError, match="no one pair is left"):
        score(task, Embeddings(values[keep], task.table.select(keep)), ["cosine"])
    values[7, 2] = np.nan
    with pytest.raises(InputError, match=r"7\.jpg: its embedding has values that are not finite"):
        score(task, Embeddings(values, task.table), ["cosine"])


@pytest.mark.parametrize(("num", "ties"), [(2, False), (7, True), (50, True), (1000, False), (1000, True)])
def test_metrics_equal_loops_over_thresholds_and_pairs(num, ties):
    rng = np.random.default_rng(num)
    same = np.append([True, False], rng.random(num - 2) < 0.4)
    scores = rng.normal(size=num) + same
    scores = (np.round(2 * scores) / 2 if ties else scores).astype(np.float32)
    far, tar = roc(scores, same)
    thresholds = [np.inf, *sorted(set(scores.tolist()), reverse=True)]
    np.testing.assert_allclose(far, [(scores[~same] >= threshold).mean() for threshold in thresholds])
    np.testing.assert_allclose(tar, [(scores[same] >= threshold).mean() for threshold in thresholds])
    metrics = pair_metrics(scores, same, best_threshold(scores, same))
    above = np.sign(scores[same][:, None].astype(float) - scores[~same])  # ties count half
    assert metrics["auc"] == pytest.approx((above + 1).mean() / 2)
    every = [scores.min() - 1, *((a + b) / 2 for a in scores for b in scores[:60]), scores.max() + 1]
    assert metrics["accuracy"] == pytest.approx(max(np.mean((scores >= threshold) == same) for threshold in every))
    for level in (0.5, 0.1, 1e-2, 1e-3):
        found = scores_module.tar_at_far(far, tar, level, (~same).sum())
        known = (~same).sum() * level >= 1  # else one pair is more
        assert found == max(tar[far <= level]) if known else math.isnan(found)


def test_the_threshold_is_in_the_middle_of_the_gap_or_at_an_end():
    for scores, same, threshold in (
        ([1, 2, 5, 6], [0, 0, 1, 1], 3.5),  # the middle of the gap
        ([1, 2, 3, 4], [0, 1, 0, 1], 3.5),  # as good as 1.5, and the highest
        ([1, 2, 3], [1, 1, 1], 1),  # all are accepted
        ([3, 3, 3], [0, 0, 1], np.nextafter(3, 4)),  # none is
        ([1, np.nextafter(1, 2)], [0, 1], np.nextafter(1, 2)),  # no number between them
    ):
        assert best_threshold(np.array(scores, float), np.array(same, bool)) == threshold
    scores, same = np.array([0.5, np.nextafter(np.float32(0.5), np.float32(0))], np.float32), np.array([True, False])
    assert accuracy(scores, same, best_threshold(scores, same)) == 1  # neighbours in float32 are separated


def test_equal_error_rate_by_hand():
    falling = np.array([4.0, 3, 2, 1])
    # rejected same pairs and accepted different ones: (1, 0), (0.5, 0), (0.5, 0.5), (0, 0.5), (0, 1)
    for same, rate in (([1, 0, 1, 0], 0.5), ([1, 1, 0, 0], 0), ([0, 0, 1, 1], 1)):
        assert scores_module.equal_error_rate(*roc(falling, np.array(same, bool))) == rate
    assert scores_module.equal_error_rate(*roc(np.zeros(4), np.array([0, 0, 1, 1], bool))) == 0.5
    # from (far 0, tar 0.75) to (1/3, 1): 0 + t / 3 = 1 - (0.75 + t / 4), t = 3/7
    assert scores_module.equal_error_rate(np.array([0, 0, 1 / 3, 1]), np.array([0, 0.75, 1, 1])) == pytest.approx(1 / 7)
