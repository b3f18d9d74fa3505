"""Nearest neighbours against all pairs in float64, sorted by plain loops."""

import logging

import numpy as np
import pytest

from carvision.errors import InputError
from carvision.metrics.exact_search import nearest

both_distances = pytest.mark.parametrize("distance", ["cosine", "l2"])


def embeddings(num: int, width: int = 24, classes: int = 20, spread: float = 0.5, seed: int = 0) -> np.ndarray:
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
    queries = embeddings(83, seed=1) * 3
    gallery = embeddings(260) * np.linspace(0.5, 2, 260, dtype=np.float32)[:, None]
    found = nearest(queries, gallery, k, distance, blocks=blocks)
    assert_nearest(found, all_pairs(queries, gallery, distance), k, distance)


@both_distances
@pytest.mark.parametrize("blocks", [(16, 96), (1024, 16384), (50, 3)])
def test_the_own_row_is_left_out(distance, blocks):
    gallery, own = embeddings(200), np.arange(200)
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
    gallery = np.repeat(embeddings(40), 8, axis=0)[order]  # 8 copies of each; k = 5 and 12 cut them
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
    gallery, good = embeddings(20), embeddings(20, seed=4)
    scores, rows = nearest(good[:0], gallery, 3, distance)
    assert scores.shape == rows.shape == (0, 3)
    for k, own in ((21, None), (20, np.arange(20))):
        with pytest.raises(InputError, match=f"k: {k} is not from 1 to {k - 1}"):
            nearest(good, gallery, k, distance, own)
    gallery[13, 5], gallery[17, 0] = np.nan, 3e38  # whose square is not finite
    with pytest.raises(InputError, match=r"2 of 20 gallery embeddings are not finite, the first in row 13"):
        nearest(good[:3], gallery, 2, distance)
