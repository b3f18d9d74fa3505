"""Votes and metrics are scikit-learn's; indexes of faiss find nearly what the exact search finds."""

import sys

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, precision_recall_fscore_support
from sklearn.neighbors import KNeighborsClassifier

from carvision.embedding.search import Index, knn_metrics, vote
from carvision.errors import InputError
from carvision.metrics.exact_search import nearest
from tests.metrics.test_neighbours import made

KS = (1, 2, 3, 4, 7, 20)


@pytest.mark.parametrize("votes", ["uniform", "distance"])
@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_predictions_are_scikit_learns(votes, distance):
    (queries, _), (gallery, codes) = made(200, 12, seed=5), made(300, 12, seed=6)
    queries[:20] = gallery[:20]  # at a distance of 0
    scores, rows = nearest(queries, gallery, max(KS), distance)
    distances = np.maximum(0, 1 - scores) if distance == "cosine" else scores
    found = vote(codes[rows], distances, KS, votes, 12)
    assert set(found) == set(KS)
    for k in KS:
        metric = "euclidean" if distance == "l2" else "cosine"
        theirs = KNeighborsClassifier(k, weights=votes, algorithm="brute", metric=metric)
        expected = theirs.fit(gallery.astype(np.float64), codes).predict(queries.astype(np.float64))
        # At a distance of 0 theirs keeps some of the rounding, which weighs a vote by 1e8
        compared = slice(20, None) if votes == "distance" else slice(None)
        np.testing.assert_array_equal(found[k][compared], expected[compared], str(k))


def test_the_lowest_class_wins_a_tie_and_neighbours_at_distance_0_vote_alone():
    codes, distances = np.array([[4, 2, 2, 4, 7]]), np.array([[0.1, 0.2, 0.3, 0.4, 0.5]])
    found = vote(codes, distances, (1, 2, 3, 4), "uniform", 8)
    assert {k: int(values[0]) for k, values in found.items()} == {1: 4, 2: 2, 3: 2, 4: 2}
    assert int(vote(codes, distances, (2,), "distance", 8)[2][0]) == 4
    codes, distances = np.array([[4, 4, 2, 2, 2]]), np.array([[0.0, 0.0, 1e-9, 1e-9, 1e-9]])
    assert int(vote(codes, distances, (5,), "distance", 5)[5][0]) == 4


@pytest.mark.parametrize("seed", range(2))
def test_metrics_are_scikit_learns(seed):
    random = np.random.default_rng(seed)
    true, predicted = random.integers(0, 6, 80), random.integers(1, 8, 80)  # of classes that the other lacks, too
    found = knn_metrics(true, predicted, 9)
    precision, recall, f1, _ = precision_recall_fscore_support(true, predicted, average="weighted", zero_division=0)
    expected = {"accuracy": accuracy_score(true, predicted), "precision": precision, "recall": recall, "f1": f1}
    with pytest.warns(UserWarning, match="y_pred contains classes"):
        expected["balanced_accuracy"] = balanced_accuracy_score(true, predicted)
    assert found == pytest.approx(expected)
    assert found["recall"] == pytest.approx(found["accuracy"])


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_most_neighbours_are_found_with_their_scores(kind, distance):
    embeddings, _ = made(2000, 20, seed=7, width=16)
    own = np.arange(100)
    index = Index(embeddings, kind, distance)
    scores, rows = index.nearest(embeddings[:100], 10, own)
    expected_scores, expected = nearest(embeddings[:100], embeddings, 10, distance, own=own)
    found = np.mean([len(np.intersect1d(*pair)) / 10 for pair in zip(rows, expected, strict=True)])
    assert found > 0.9 and not (rows == own[:, None]).any()
    same = rows == expected
    np.testing.assert_allclose(scores[same], expected_scores[same], atol=2e-3)
    order = np.diff(scores, axis=1) * (-1 if distance == "cosine" else 1)
    assert (order >= -1e-6).all()


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_results_are_repeatable_and_complete_for_few_photos(kind):
    embeddings, _ = made(60, 3, seed=8)
    first, second = (Index(embeddings, kind, "cosine").nearest(embeddings, 59, np.arange(60))[1] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (np.sort(first, axis=1) == [np.delete(np.arange(60), i) for i in range(60)]).all()  # all others, each once


def test_nan_and_a_missing_faiss_are_errors(monkeypatch):
    embeddings, _ = made(100, 3, seed=10)
    index = Index(embeddings, "ivf", "l2")
    embeddings[4, 0] = np.nan
    with pytest.raises(InputError, match="1 of 100 gallery embeddings are not finite, the first in row 4"):
        Index(embeddings, "ivf", "l2")
    with pytest.raises(InputError, match="1 of 10 query embeddings"):
        index.nearest(embeddings[:10], 3)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match="--index: hnsw needs faiss; pip install faiss-cpu"):
        Index(np.eye(3, dtype=np.float32), "hnsw", "cosine")
