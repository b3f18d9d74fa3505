"""Nearest neighbours against all pairs in float64, plain loops, scikit-learn and faiss."""

import logging

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from carvision.errors import InputError
from carvision.metrics import exact_search
from carvision.metrics.exact_search import _inner_products, _keys_of, _rows_of, _scores_of, nearest, without_own


def made(num: int, width: int = 24, classes: int = 20, spread: float = 0.5, seed: int = 0) -> np.ndarray:
    """float32 (num, width), in classes that stand together, as photos on disk do."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((classes, width))
    return (centres[np.arange(num) * classes // num] + spread * random.standard_normal((num, width))).astype("float32")


def all_pairs(queries: np.ndarray, gallery: np.ndarray, distance: str) -> np.ndarray:
    """float64 (Q, G), the smaller the nearer."""
    queries, gallery = queries.astype(np.float64), gallery.astype(np.float64)
    if distance == "l2":
        return np.array([[np.sqrt(((q - g) ** 2).sum()) for g in gallery] for q in queries])
    return np.array([[-(q @ g) / (np.linalg.norm(q) * np.linalg.norm(g)) for g in gallery] for q in queries])


def by_loops(queries: np.ndarray, gallery: np.ndarray, k: int, distance: str, own: np.ndarray | None = None):
    distances = all_pairs(queries, gallery, distance)
    if own is not None:
        distances[np.arange(len(queries)), own] = np.inf
    rows = np.array([sorted(range(len(gallery)), key=lambda g, line=line: (line[g], g))[:k] for line in distances])
    scores = np.take_along_axis(distances, rows, axis=1)
    return scores if distance == "l2" else -scores, rows


@pytest.mark.parametrize("fast", [True, False], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize(("k", "blocks"), [(5, (32, 96)), (5, (1024, 16384)), (5, (7, 50)), (40, (64, 128))])
def test_all_pairs_in_float64_have_the_same_neighbours(monkeypatch, fast, distance, k, blocks):
    monkeypatch.setattr(exact_search, "_is_fast_in_bfloat16", lambda: fast)
    queries, gallery = made(83, seed=1) * 3, made(260) * np.linspace(0.5, 2, 260, dtype=np.float32)[:, None]
    scores, rows = nearest(queries, gallery, k, distance, blocks=blocks)
    expected, expected_rows = by_loops(queries, gallery, k, distance)
    assert scores.dtype == np.float32 and rows.dtype == np.int64 and scores.shape == rows.shape == (83, k)
    assert (rows == expected_rows).all()
    np.testing.assert_allclose(scores, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("fast", [True, False], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("blocks", [(16, 96), (1024, 16384)])
def test_the_own_row_is_left_out(monkeypatch, fast, distance, blocks):
    monkeypatch.setattr(exact_search, "_is_fast_in_bfloat16", lambda: fast)
    gallery = made(200)
    scores, rows = nearest(gallery, gallery, 5, distance, leave_one_out=True, blocks=blocks)
    expected, expected_rows = by_loops(gallery, gallery, 5, distance, np.arange(200))
    assert (rows == expected_rows).all()
    np.testing.assert_allclose(scores, expected, rtol=2e-5, atol=1e-6)
    own = np.array([150, 3, 77])
    some = nearest(gallery[own], gallery, 5, distance, own=own, blocks=blocks)
    assert (some[1] == rows[own]).all() and (some[0] == scores[own]).all()


def test_the_rough_look_is_taken_and_lets_little_through(monkeypatch):
    """Else the tests above would say nothing of it."""
    looked, dense = [], []
    monkeypatch.setattr(exact_search, "_is_fast_in_bfloat16", lambda: True)
    monkeypatch.setattr(exact_search, "_inner_products", lambda *a: looked.append(len(a[2])) or _inner_products(*a))
    merge_all = exact_search._merge_all
    monkeypatch.setattr(exact_search, "_merge_all", lambda *a: dense.append(1) or merge_all(*a))
    gallery = made(4000, width=64, classes=50)
    nearest(gallery, gallery, 10)
    assert not dense and 10 * 4000 < sum(looked) < 100 * 4000
    nearest(np.ones((10, 64), np.float32), np.ones((4000, 64), np.float32), 10)
    assert dense


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_of_equal_photos_the_lower_row_comes_first_whatever_the_blocks(distance):
    gallery = np.repeat(made(40), 8, axis=0)[
        np.random.default_rng(1).permutation(320)
    ]  # 8 copies of each; k = 5 and 12 cut them
    copies = [np.flatnonzero((gallery == line).all(axis=1)) for line in gallery]
    for k in (5, 12, 159):
        scores, rows = nearest(gallery, gallery, k, distance, leave_one_out=True)
        for i in range(160):
            assert rows[i, :5].tolist() == copies[i][copies[i] != i][:5].tolist()
        assert (rows[:, 1:] > rows[:, :-1])[scores[:, 1:] == scores[:, :-1]].all()
        for blocks in ((13, 100), (64, 97), (60, 11)):
            others = nearest(gallery, gallery, k, distance, leave_one_out=True, blocks=blocks)
            assert (others[0] == scores).all() and (others[1] == rows).all()


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_embeddings_that_are_all_nearly_or_wholly_equal(distance):
    gallery = np.ones((3000, 16), np.float32)
    assert (nearest(gallery[:40], gallery, 4, distance)[1] == [0, 1, 2, 3]).all()
    gallery += 1e-3 * np.random.default_rng(2).standard_normal(gallery.shape).astype(np.float32)
    scores, rows = nearest(gallery[:40], gallery, 10, distance)
    distances = all_pairs(gallery[:40], gallery, distance)
    found, best = np.take_along_axis(distances, rows, axis=1), np.sort(distances, axis=1)[:, :10]
    np.testing.assert_allclose(found, best, atol=3e-7 if distance == "cosine" else 3e-4)  # rounding decides which
    np.testing.assert_allclose(scores if distance == "l2" else -scores, found, atol=3e-7)


def test_near_pairs_have_true_distances():
    gallery = made(300, spread=0.3) + 100
    gallery[7] = gallery[3]
    gallery[8] = gallery[3]
    gallery[8, 0] += 1e-3
    scores, rows = nearest(gallery, gallery, 2, "l2", leave_one_out=True)
    assert rows[3].tolist() == [7, 8] and scores[3, 0] == 0
    assert scores[3, 1] == pytest.approx(np.linalg.norm(gallery[8].astype(float) - gallery[3]), rel=1e-6)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_scikit_learn_finds_the_same(distance):
    queries, gallery = made(150, 64, seed=3), made(2000, 64)
    metric = {"cosine": "cosine", "l2": "euclidean"}[distance]
    theirs = NearestNeighbors(n_neighbors=9, algorithm="brute", metric=metric).fit(gallery)
    distances, rows = theirs.kneighbors(queries)
    found, found_rows = nearest(queries, gallery, 9, distance)
    assert (found_rows == rows).all()
    np.testing.assert_allclose(found if distance == "l2" else 1 - found, distances, atol=2e-6, rtol=1e-5)


def test_arrays_that_are_mapped_from_files(tmp_path):
    gallery = made(700)
    np.save(tmp_path / "gallery.npy", gallery)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    for one, other in zip(nearest(mapped[:90], mapped, 4, "l2"), nearest(gallery[:90], gallery, 4, "l2"), strict=True):
        assert (one == other).all()


def test_zeros_have_a_cosine_of_0_and_are_told_of(caplog):
    gallery = np.array([[0, 0], [1, 0], [-1, 0.1], [0, 1]], np.float32)
    with caplog.at_level(logging.WARNING):
        scores, rows = nearest(gallery, gallery, 4)
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "1 of 4 query embeddings are all zeros", "1 of 4 gallery embeddings are all zeros",
    ]  # fmt: skip
    assert rows[0].tolist() == [0, 1, 2, 3] and scores[0].tolist() == [0, 0, 0, 0]
    assert rows[1].tolist() == [1, 0, 3, 2]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_values_that_are_not_finite_are_an_error(value, distance):
    gallery = made(20)
    gallery[13, 5] = gallery[17, 0] = value
    with pytest.raises(InputError, match=r"2 of 20 gallery embeddings are not finite, the first in row 13"):
        nearest(made(20, seed=4)[:3], gallery, 2, distance)
    with pytest.raises(InputError, match="2 of 20 query embeddings"):
        nearest(gallery, made(20, seed=4), 2, distance)


@pytest.mark.parametrize(("k", "leave_one_out", "most"), [(21, False, 20), (20, True, 19), (0, False, 20)])
def test_k_beyond_the_gallery_is_an_error(k, leave_one_out, most):
    gallery = made(20)
    with pytest.raises(InputError, match=f"k: {k} is not from 1 to {most}"):
        nearest(gallery, gallery, k, leave_one_out=leave_one_out)
    assert nearest(gallery, gallery, most, leave_one_out=leave_one_out)[1].shape == (20, most)


def test_other_bad_input_is_an_error():
    gallery = made(20)
    with pytest.raises(InputError, match="distance: 'dot' is not one of cosine, l2"):
        nearest(gallery, gallery, 1, "dot")
    with pytest.raises(InputError, match=r"queries \(20, 24\) and gallery \(20, 8\)"):
        nearest(gallery, gallery[:, :8], 1)
    with pytest.raises(InputError, match="own has 3 rows for 20 queries"):
        nearest(gallery, gallery, 1, own=np.arange(3))
    with pytest.raises(InputError, match="own row is 19, the gallery has 10 rows"):
        nearest(gallery, gallery[:10], 1, leave_one_out=True)


def test_no_queries_have_no_neighbours():
    scores, rows = nearest(made(20)[:0], made(20), 3)
    assert scores.shape == rows.shape == (0, 3)


def test_the_precision_that_the_caller_computes_in_is_kept():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        scores, _ = nearest(made(30), made(40), 3)
        assert torch.get_float32_matmul_precision() == "medium" and scores.std() > 0
    finally:
        torch.set_float32_matmul_precision(before)


def test_keys_are_in_the_order_of_scores_then_rows():
    scores = torch.tensor([-torch.inf, -3.5, -1e-30, -0.0, 0.0, 1e-30, 0.25, 1.0, 2.0, 1e30])
    rows = torch.tensor([2**32 - 1, 0, 5, 9, 3, 4, 1, 7, 2, 6])
    keys = _keys_of(scores, rows)
    assert (keys.argsort() == torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])).all()  # of the zeros row 3 is the better
    assert (_scores_of(keys) == scores).all() and (_rows_of(keys) == rows).all()
    assert (
        _scores_of(torch.tensor([exact_search.EMPTY_KEY])) == -torch.inf and keys.min() + 2**32 > exact_search.EMPTY_KEY
    )


def test_the_last_goes_where_the_own_row_is_not_found():
    scores, rows = np.arange(6.0).reshape(2, 3), np.array([[4, 1, 2], [7, 8, 9]])
    scores, rows = without_own(scores, rows, np.array([1, 0]))
    assert rows.tolist() == [[4, 2], [7, 8]] and scores.tolist() == [[0, 2], [3, 4]]
