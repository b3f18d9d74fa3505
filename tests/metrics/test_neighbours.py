"""Nearest neighbours, their metrics and votes against loops, pytorch-metric-learning and scikit-learn."""

import logging

import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.metrics import accuracy_score, balanced_accuracy_score, precision_recall_fscore_support
from sklearn.neighbors import KNeighborsClassifier

from carvision.errors import InputError
from carvision.metrics import neighbours
from carvision.metrics.neighbours import knn_metrics, leave_one_out_metrics, nearest, num_relevant, query_metrics, vote

KS = (1, 2, 3, 4, 7, 20)
both_distances = pytest.mark.parametrize("distance", ["cosine", "l2"])


def grouped(num: int, width: int = 24, classes: int = 20, spread: float = 0.5, seed: int = 0) -> np.ndarray:
    """Return float32 (num, width), with the photos of a class next to each other, as on disk."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((classes, width))
    return (centres[np.arange(num) * classes // num] + spread * random.standard_normal((num, width))).astype("float32")


def all_pairs(queries: np.ndarray, gallery: np.ndarray, distance: str) -> np.ndarray:
    """Return distances, float64 (Q, G); for "cosine" its negative."""
    queries, gallery = queries.astype(np.float64), gallery.astype(np.float64)
    if distance == "l2":
        return np.array([[np.sqrt(((q - g) ** 2).sum()) for g in gallery] for q in queries])
    return np.array([[-(q @ g) / (np.linalg.norm(q) * np.linalg.norm(g)) for g in gallery] for q in queries])


def assert_nearest(found, distances: np.ndarray, k: int, distance: str) -> None:
    scores, rows = found
    expected = np.array([sorted(range(len(line)), key=lambda g, line=line: (line[g], g))[:k] for line in distances])
    assert scores.dtype == np.float32 and rows.dtype == np.int64 and scores.shape == (len(distances), k)
    assert (rows == expected).all()
    values = np.take_along_axis(distances, rows, axis=1)
    np.testing.assert_allclose(scores, values if distance == "l2" else -values, rtol=2e-5, atol=1e-6)


@both_distances
@pytest.mark.parametrize(("k", "blocks"), [(5, (32, 96)), (5, (1024, 16384)), (40, (7, 50)), (99, (9, 60))])
def test_all_pairs_in_float64_have_the_same_neighbours(distance, k, blocks):
    queries = grouped(83, seed=1) * 3
    gallery = grouped(260) * np.linspace(0.5, 2, 260, dtype=np.float32)[:, None]
    found = nearest(queries, gallery, k, distance, blocks=blocks)
    assert_nearest(found, all_pairs(queries, gallery, distance), k, distance)


@both_distances
@pytest.mark.parametrize("blocks", [(16, 96), (1024, 16384), (50, 3)])
def test_the_own_row_is_left_out(distance, blocks):
    gallery, own = grouped(200), np.arange(200)
    own[10:20] = -1  # no photos of the gallery
    found = nearest(gallery, gallery, 5, distance, own=own, blocks=blocks)
    distances = all_pairs(gallery, gallery, distance)
    distances[own >= 0, own[own >= 0]] = np.inf
    assert_nearest(found, distances, 5, distance)
    own = np.array([150, 3, 77])
    some = nearest(gallery[own], gallery, 5, distance, own=own, blocks=blocks)
    assert (some[1] == found[1][own]).all() and (some[0] == found[0][own]).all()


@both_distances
def test_the_lower_row_of_equal_photos_comes_first_whatever_the_blocks(distance):
    order = np.random.default_rng(1).permutation(320)
    gallery = np.repeat(grouped(40), 8, axis=0)[order]  # 8 copies of each; k = 5 and 12 cut them
    own = np.arange(320)
    copies = [np.flatnonzero((gallery == line).all(axis=1)) for line in gallery]
    for k in (5, 12, 159):
        scores, rows = nearest(gallery, gallery, k, distance, own)
        for i in range(160):
            assert rows[i, :5].tolist() == copies[i][copies[i] != i][:5].tolist()
        assert (rows[:, 1:] > rows[:, :-1])[scores[:, 1:] == scores[:, :-1]].all()
        for blocks in ((13, 100), (64, 97), (60, 11)):
            others = nearest(gallery, gallery, k, distance, own, blocks=blocks)
            assert (others[0] == scores).all() and (others[1] == rows).all()


def test_rows_that_a_product_cannot_tell_apart_are_ordered_by_their_distance():
    """Far from the centre of the first block, q.g - |g|^2 / 2 loses the digits of a small |q - g|."""
    steps = np.random.default_rng(0).permutation(np.arange(1, 101, dtype=np.float32)) / 256
    near = np.concatenate([steps[:, None] + 3000, np.zeros((100, 3), np.float32)], axis=1)
    gallery = np.concatenate([np.zeros((100, 4), np.float32), near])
    _, rows = nearest(np.array([[3000, 0, 0, 0]], np.float32), gallery, 100, "l2", blocks=(8, 100))
    assert (rows[0] == 100 + np.argsort(steps)).all()


def test_zeros_have_a_cosine_of_0_and_a_warning(caplog):
    gallery = np.array([[0, 0], [1, 0], [-1, 0.1], [0, 1]], np.float32)
    with caplog.at_level(logging.WARNING):
        scores, rows = nearest(gallery, gallery, 4)
    assert [record.getMessage()[:14] for record in caplog.records] == ["1 of 4 query e", "1 of 4 gallery"]
    assert rows[0].tolist() == [0, 1, 2, 3] and scores[0].tolist() == [0, 0, 0, 0]
    assert rows[1].tolist() == [1, 0, 3, 2]


@both_distances
def test_the_limits_of_the_input(distance):
    gallery, good = grouped(20), grouped(20, seed=4)
    scores, rows = nearest(good[:0], gallery, 3, distance)
    assert scores.shape == rows.shape == (0, 3)
    for k, own in ((21, None), (20, np.arange(20))):
        with pytest.raises(InputError, match=f"k: {k} is not from 1 to {k - 1}"):
            nearest(good, gallery, k, distance, own)
    gallery[13, 5], gallery[17, 0] = np.nan, 3e38  # whose square is not finite
    with pytest.raises(InputError, match=r"2 of 20 gallery embeddings are not finite, the first in row 13"):
        nearest(good[:3], gallery, 2, distance)


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
    theirs = AccuracyCalculator(include=names, knn_func=CustomKNN(CosineSimilarity())).get_accuracy(*arrays, True)
    assert [found[k] for k in ("recall_at_1", *names[1:2], "map_at_r")] == pytest.approx([theirs[n] for n in names])
    monkeypatch.setattr(neighbours, "query_blocks", lambda rows, k: neighbours.split_blocks(rows, 7))
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
@both_distances
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
    # Neighbours at distance 0 vote alone
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
