"""Metrics against loops over photos, pytorch-metric-learning's and scikit-learn's; votes are scikit-learn's."""

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.metrics import accuracy_score, balanced_accuracy_score, precision_recall_fscore_support
from sklearn.neighbors import KNeighborsClassifier

from carvision.metrics import neighbours
from carvision.metrics.exact_search import nearest
from carvision.metrics.neighbours import knn_metrics, leave_one_out_metrics, num_relevant, query_metrics, vote

KS = (1, 2, 3, 4, 7, 20)


def made(num: int, num_classes: int, seed: int, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings around the centre of their class, and codes, with classes of very different sizes."""
    random = np.random.default_rng(seed)
    codes = (num_classes * random.random(num) ** 2).astype(int)
    embeddings = random.normal(size=(num_classes, width))[codes] + random.normal(size=(num, width))
    return embeddings.astype(np.float32), codes


def by_loops(scores: np.ndarray, right_class: np.ndarray, excluded: np.ndarray, recall_at) -> dict[str, list]:
    """Return the metrics of each query. scores, right_class, excluded (Q, G): nearness, same class, own photo."""
    found: dict[str, list] = {name: [] for name in (*(f"recall_at_{k}" for k in recall_at), "r_precision", "map_at_r")}
    for row in range(len(scores)):
        order = [i for i in np.argsort(-scores[row], kind="stable") if not excluded[row, i]]
        right = [bool(right_class[row, i]) for i in order]
        if relevant := sum(right):
            precisions = [sum(right[: i + 1]) / (i + 1) for i in range(relevant) if right[i]]
            for k in recall_at:
                found[f"recall_at_{k}"].append(float(any(right[:k])))
            found["r_precision"].append(sum(right[:relevant]) / relevant)
            found["map_at_r"].append(sum(precisions) / relevant)
    return found


def test_leave_one_out_equals_loops(monkeypatch):
    embeddings, codes = made(150, 9, seed=1)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    found = leave_one_out_metrics(embeddings, codes, recall_at=(1, 3))
    expected = by_loops(unit @ unit.T, codes[:, None] == codes, np.eye(150, dtype=bool), (1, 3))
    assert found == pytest.approx({name: np.mean(values) for name, values in expected.items()})
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    arrays = map(torch.from_numpy, (unit, codes, unit, codes))
    theirs = AccuracyCalculator(include=names).get_accuracy(*arrays, True)
    assert [found[k] for k in ("recall_at_1", *names[1:2], "map_at_r")] == pytest.approx([theirs[n] for n in names])
    monkeypatch.setattr(neighbours, "queries_per_block", lambda k: 7)
    assert leave_one_out_metrics(embeddings, codes, recall_at=(1, 3)) == pytest.approx(found)


def test_queries_and_gallery_equal_loops():
    (queries, query_codes), (gallery, codes) = made(60, 7, seed=2), made(140, 6, seed=3)
    relevant = num_relevant(query_codes, codes, own=np.full(60, -1))
    assert (relevant == 0).any() and relevant.max() > 30
    some = relevant > 0
    _, rows = nearest(queries[some], gallery, int(relevant.max()), "l2")
    found = query_metrics(codes[rows] == query_codes[some, None], relevant[some], (1, 2, 4))
    distances = np.linalg.norm(queries[:, None].astype(np.float64) - gallery[None], axis=2)
    expected = by_loops(-distances, query_codes[:, None] == codes, np.zeros((60, 140), bool), (1, 2, 4))
    assert {name: values.tolist() for name, values in found.items()} == {
        name: pytest.approx(values) for name, values in expected.items()
    }


def test_photos_without_another_of_their_class_do_not_count():
    embeddings = np.eye(4, dtype=np.float32) + 0.1
    assert leave_one_out_metrics(embeddings, np.arange(4)) == {}
    assert leave_one_out_metrics(embeddings[:0], np.arange(0)) == {}
    assert leave_one_out_metrics(embeddings, np.array([0, 1, 0, 2]))["recall_at_1"] in (0.0, 0.5, 1.0)  # of two photos


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


def test_neighbours_at_distance_0_vote_alone():
    codes, distances = np.array([[4, 4, 2, 2, 2]]), np.array([[0.0, 0.0, 1e-9, 1e-9, 1e-9]])
    assert vote(codes, distances, (5,), "distance", 5)[5].item() == 4


def test_metrics_are_scikit_learns():
    random = np.random.default_rng(0)
    true, predicted = random.integers(0, 6, 80), random.integers(1, 8, 80)  # of classes that the other lacks, too
    found = knn_metrics(true, predicted, 9)
    precision, recall, f1, _ = precision_recall_fscore_support(true, predicted, average="weighted", zero_division=0)
    expected = {"accuracy": accuracy_score(true, predicted), "precision": precision, "recall": recall, "f1": f1}
    with pytest.warns(UserWarning, match="y_pred contains classes"):
        expected["balanced_accuracy"] = balanced_accuracy_score(true, predicted)
    assert found == pytest.approx(expected)
