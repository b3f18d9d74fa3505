"""Recall@K, R-precision and MAP@R against loops over photos, and against pytorch-metric-learning's."""

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from carvision.metrics import neighbours as figures
from carvision.metrics.exact_search import nearest
from carvision.metrics.neighbours import leave_one_out_metrics, num_relevant, query_metrics


def made(num: int, num_classes: int, seed: int, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings about their class' own place, classes of very different sizes."""
    random = np.random.default_rng(seed)
    codes = (num_classes * random.random(num) ** 2).astype(int)
    embeddings = random.normal(size=(num_classes, width))[codes] + random.normal(size=(num, width))
    return embeddings.astype(np.float32), codes


def of_loops(scores: np.ndarray, right_class: np.ndarray, left_out: np.ndarray, recall_at) -> list[dict]:
    """scores, right_class (Q, G): nearness, and whether the gallery's photo is of the class; left_out (Q, G)."""
    found = []
    for row in range(len(scores)):
        order = [i for i in np.argsort(-scores[row], kind="stable") if not left_out[row, i]]
        right = [bool(right_class[row, i]) for i in order]
        relevant = sum(right)
        if not relevant:
            continue
        precisions = [sum(right[: i + 1]) / (i + 1) for i in range(relevant) if right[i]]
        figures = {f"recall_at_{k}": float(any(right[:k])) for k in recall_at}
        figures |= {"r_precision": sum(right[:relevant]) / relevant, "map_at_r": sum(precisions) / relevant}
        found.append(figures)
    return found


def mean_of(found: list[dict]) -> dict[str, float]:
    return {name: float(np.mean([each[name] for each in found])) for name in found[0]}


def test_leave_one_out_is_that_of_loops_and_of_pytorch_metric_learning():
    embeddings, codes = made(150, 9, seed=1)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    found = leave_one_out_metrics(embeddings, codes, recall_at=(1, 3))
    expected = of_loops(unit @ unit.T, codes[:, None] == codes, np.eye(150, dtype=bool), (1, 3))
    assert found == pytest.approx(mean_of(expected))
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    theirs = AccuracyCalculator(include=names).get_accuracy(
        torch.from_numpy(unit), torch.from_numpy(codes), torch.from_numpy(unit), torch.from_numpy(codes), True
    )
    ours = [found[name] for name in ("recall_at_1", "r_precision", "map_at_r")]
    assert ours == pytest.approx([theirs[name] for name in names])


def test_queries_and_gallery_are_those_of_loops_and_of_pytorch_metric_learning():
    (queries, query_codes), (gallery, codes) = made(60, 7, seed=2), made(140, 6, seed=3)
    relevant = num_relevant(query_codes, codes, own=np.full(60, -1))
    assert (relevant == 0).any() and relevant.max() > 30
    some = relevant > 0
    _, rows = nearest(queries[some], gallery, int(relevant.max()), "l2")
    found = query_metrics(codes[rows] == query_codes[some, None], relevant[some], (1, 2, 4))
    distances = np.linalg.norm(queries[:, None].astype(np.float64) - gallery[None], axis=2)
    expected = of_loops(-distances, query_codes[:, None] == codes, np.zeros((60, 140), bool), (1, 2, 4))
    assert {name: values.tolist() for name, values in found.items()} == {
        name: pytest.approx([each[name] for each in expected]) for name in expected[0]
    }
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    parts = [torch.from_numpy(part) for part in (queries, query_codes, gallery, codes)]
    theirs = AccuracyCalculator(include=names).get_accuracy(*parts, False)
    ours = [found[name].mean() for name in ("recall_at_1", "r_precision", "map_at_r")]
    assert ours == pytest.approx([theirs[name] for name in names])


def test_the_blocks_of_queries_make_no_difference(monkeypatch):
    embeddings, codes = made(100, 5, seed=4)
    whole = leave_one_out_metrics(embeddings, codes)
    monkeypatch.setattr(figures, "queries_per_block", lambda k: 7)
    assert leave_one_out_metrics(embeddings, codes) == pytest.approx(whole)


def test_photos_without_another_of_their_class_count_nowhere():
    embeddings = np.eye(4, dtype=np.float32) + 0.1
    assert leave_one_out_metrics(embeddings, np.arange(4)) == {}
    assert leave_one_out_metrics(embeddings[:0], np.arange(0)) == {}
    codes = np.array([0, 1, 0, 2])
    assert leave_one_out_metrics(embeddings, codes)["recall_at_1"] in (0.0, 0.5, 1.0)  # of two photos
