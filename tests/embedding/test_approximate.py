"""Indexes of faiss find nearly what the exact search finds, and report how much."""

import sys

import numpy as np
import pytest

from carvision.embedding.search import Engine, Index
from carvision.errors import InputError
from carvision.metrics.exact_search import nearest
from tests.metrics.test_neighbours import made


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


def test_the_recall_of_an_index_is_reported():
    embeddings, _ = made(1500, 20, seed=9, width=16)
    assert Engine(embeddings, "cosine", "exact", "cpu").checked(embeddings, np.arange(1500)) == {}
    share = Engine(embeddings, "cosine", "ivf", "cpu").checked(embeddings, np.arange(1500))["index_recall"]
    assert 0.5 < share <= 1


def test_without_faiss_the_package_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match="--index: hnsw needs faiss; pip install faiss-cpu"):
        Index(np.eye(3, dtype=np.float32), "hnsw", "cosine")


def test_inf_and_nan_are_errors():
    embeddings, _ = made(100, 3, seed=10)
    index = Index(embeddings, "ivf", "l2")
    embeddings[4, 0] = np.nan
    with pytest.raises(InputError, match="1 of 100 gallery embeddings are not finite, the first in row 4"):
        Index(embeddings, "ivf", "l2")
    with pytest.raises(InputError, match="1 of 10 query embeddings"):
        index.nearest(embeddings[:10], 3)
