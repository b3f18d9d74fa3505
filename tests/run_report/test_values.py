"""What a run's page says, against plain recomputation: thresholds, the slider, the order of the confusion matrix."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from carvision.evaluation.calibration import MIN_ANSWERS
from carvision.evaluation.metrics import confusions
from carvision.evaluation.page.confusion import similar_order
from carvision.evaluation.page.write import slider_steps
from carvision.run_report.verdict import threshold_of


def photos(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities with ties, and which answers are right: the surer, the more often."""
    random = np.random.default_rng(seed)
    confidence = np.round(random.uniform(0.2, 1, num), 2)
    return confidence, random.uniform(0, 1, num) < confidence**0.3


def results_of(confidence: np.ndarray, right: np.ndarray):
    heads = {"class": SimpleNamespace(confidence=confidence, right=right)}
    return SimpleNamespace(judged={"val": None}, split="val", heads=heads)


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_the_lowest_that_halves_the_mistakes(seed):
    confidence, right = photos(300, seed)
    wanted = max(0.95, 1 - (1 - right.mean()) / 2)
    good = [
        threshold
        for threshold in np.unique(confidence)
        if (confidence >= threshold).sum() >= MIN_ANSWERS and right[confidence >= threshold].mean() >= wanted
    ]
    found = threshold_of(results_of(confidence, right), "class")
    assert found == (pytest.approx(min(good)) if good else None)


def test_no_threshold_where_sure_answers_are_no_better():
    confidence = np.linspace(0.5, 1, 100)
    assert threshold_of(results_of(confidence, np.arange(100) % 2 == 0), "class") is None
    assert threshold_of(results_of(confidence[:0], np.zeros(0, bool)), "class") is None


def test_the_slider_counts_answers_at_each_hundredth():
    confidence, right = photos(80, 1)
    for i, (accuracy, share) in enumerate(slider_steps(confidence, right)):
        answered = [r for c, r in zip(confidence, right, strict=True) if c >= i / 100]
        assert share == pytest.approx(len(answered) / 80)
        assert accuracy == (pytest.approx(np.mean(answered)) if answered else None)


def test_classes_that_are_confused_stand_together():
    random = np.random.default_rng(0)
    targets = random.integers(0, 40, 4000)
    partner = (targets + 20) % 40  # each class is taken for one that is far away by its code
    predicted = np.where(random.uniform(0, 1, 4000) < 0.3, partner, targets)
    predicted[targets >= 38] = targets[targets >= 38]
    predicted[np.isin(targets, (18, 19))] = targets[np.isin(targets, (18, 19))]
    order = similar_order(confusions(targets, predicted), 42)
    assert sorted(order) == list(range(42))
    place = {code: i for i, code in enumerate(order)}
    assert all(abs(place[code] - place[code + 20]) == 1 for code in range(18))
    assert set(order[-6:]) == {18, 19, 38, 39, 40, 41}  # never confused, or without any photo


def test_two_confused_classes_need_no_clustering():
    cells = pd.DataFrame({"true": [0, 1, 1], "predicted": [0, 1, 3], "photos": [5, 4, 1]})
    assert similar_order(cells, 5).tolist() == [1, 3, 0, 2, 4]
