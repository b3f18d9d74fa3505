"""Thresholds and ROC curves equal scikit-learn's, plain loops and cases by hand."""

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score, roc_curve

from carvision.verification.metrics import (
    Roc,
    accuracy,
    best_threshold,
    equal_error_rate,
    pair_metrics,
    roc,
    roc_auc,
    tar_at_far,
)


def made_scores(num: int, seed: int, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    same = np.append([True, False], rng.random(num - 2) < 0.4)
    scores = rng.normal(size=num) + same
    return (np.round(2 * scores) / 2 if ties else scores).astype(np.float32), same


CASES = [(2, 0, False), (7, 1, True), (50, 3, True), (1000, 4, False), (1000, 5, True)]


@pytest.mark.parametrize("case", CASES)
def test_roc_and_auc_are_scikit_learns_and_no_other_threshold_is_more_accurate(case):
    scores, same = made_scores(*case)
    curve = roc(scores, same)
    far, tar, _ = roc_curve(same, scores, drop_intermediate=False)
    np.testing.assert_allclose([curve.far, curve.tar], [far, tar])
    assert curve.num_negatives == (~same).sum() and roc_auc(curve) == pytest.approx(roc_auc_score(same, scores))
    best = best_threshold(scores, same)
    every = [scores.min() - 1, *((a + b) / 2 for a in scores for b in scores[:60]), scores.max() + 1]
    reached = accuracy(scores, same, best)
    assert reached == accuracy_score(same, scores >= best)
    assert reached == pytest.approx(max(np.mean((scores >= threshold) == same) for threshold in every))


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
    # rejected same pairs and accepted different ones: (1, 0), (0.5, 0), (0.5, 0.5), (0, 0.5), (0, 1)
    assert equal_error_rate(roc(np.array([4.0, 3, 2, 1]), np.array([1, 0, 1, 0], bool))) == 0.5
    assert equal_error_rate(roc(np.array([4.0, 3, 2, 1]), np.array([1, 1, 0, 0], bool))) == 0
    assert equal_error_rate(roc(np.array([4.0, 3, 2, 1]), np.array([0, 0, 1, 1], bool))) == 1
    assert equal_error_rate(roc(np.zeros(4), np.array([0, 0, 1, 1], bool))) == 0.5
    # from (far 0, tar 0.75) to (1/3, 1): 0 + t / 3 = 1 - (0.75 + t / 4), t = 3/7
    curve = Roc(np.array([0, 0, 1 / 3, 1]), np.array([0, 0.75, 1, 1]), 3)
    assert equal_error_rate(curve) == pytest.approx(1 / 7)


def test_true_accept_rates_equal_a_loop():
    rng = np.random.default_rng(0)
    same = np.arange(3000) < 1000
    scores = np.round(rng.normal(size=3000) + 2 * same, 2)
    curve = roc(scores, same)
    for level in (0.5, 1e-2, 1e-3, 5e-4):
        best = 0.0
        for threshold in np.unique(scores):
            if (scores[~same] >= threshold).sum() <= level * 2000:
                best = max(best, (scores[same] >= threshold).mean())
        assert tar_at_far(curve, level) == pytest.approx(best)
    assert math.isnan(tar_at_far(curve, 4.9e-4))  # one of 2,000 is more


def test_low_false_accept_rates_need_enough_different_pairs():
    for num_negatives, known in ((999, False), (1000, True)):
        same = np.arange(num_negatives + 10) < 10
        metrics = pair_metrics(np.where(same, 1.0, 0.0), same, 0.5)
        assert [metrics[name] for name in ("accuracy", "auc", "eer", "tar_at_far_0.01")] == [1, 1, 0, 1]
        assert metrics["tar_at_far_0.001"] == 1 if known else math.isnan(metrics["tar_at_far_0.001"])
