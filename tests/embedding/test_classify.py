"""k-nearest-neighbour classification is scikit-learn's, for several k and both ways of voting."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, precision_recall_fscore_support
from sklearn.neighbors import KNeighborsClassifier

from carvision.embedding.search import knn_metrics, vote
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
