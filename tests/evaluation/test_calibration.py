"""Temperature, calibration error and coverage against grids and loops."""

import math

import numpy as np
import pytest
import torch

from carvision.evaluation.calibration import (
    COLDEST,
    COVERAGES,
    HOTTEST,
    accuracy_by_coverage,
    area_under_risk,
    bin_of,
    calibration_error,
    coverage_table,
    fit_temperature,
    reliability,
)


def confident(num: int = 400, classes: int = 6, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that would be right with temperature `scale`, and targets drawn by their probabilities."""
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(num, classes, generator=random)
    targets = torch.multinomial(logits.softmax(1), 1, generator=random)[:, 0]
    return scale * logits, targets


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_the_temperature_is_that_of_a_fine_grid(scale):
    logits, targets = confident(scale=scale)
    grid = np.exp(np.linspace(math.log(0.05), math.log(20), 4001))
    nll = [torch.nn.functional.cross_entropy(logits.double() / t, targets).item() for t in grid]
    temperature = fit_temperature(logits, targets)
    assert temperature == pytest.approx(grid[np.argmin(nll)], rel=2e-3)
    assert temperature == pytest.approx(scale, rel=0.15)
    targets_with_unknown = torch.cat([targets, torch.full((50,), -1)])
    more = torch.cat([logits, torch.randn(50, 6)])
    assert fit_temperature(more, targets_with_unknown) == pytest.approx(temperature)


def test_the_temperature_stays_within_its_bounds(caplog):
    _, targets = confident()
    faint = 0.001 * torch.eye(6)[targets]
    targets[0] = (targets[0] + 1) % 6  # all but one right
    assert fit_temperature(faint, targets) == pytest.approx(COLDEST, rel=1e-2)
    assert fit_temperature(faint, (targets + 1) % 6) == pytest.approx(HOTTEST, rel=1e-2)
    assert caplog.text.count("at its bound") == 2


def test_photos_that_are_all_right_tell_no_temperature(caplog):
    """The least likelihood would be at 0, where one mistake among other photos costs without bound."""
    _, targets = confident()
    assert fit_temperature(torch.eye(6)[targets], targets) == 1
    assert "all of 400 photos are right" in caplog.text


@pytest.mark.parametrize("logits", [torch.zeros(0, 3), torch.zeros(4, 1), torch.full((4, 3), torch.nan)])
def test_where_nothing_can_be_fitted_the_temperature_is_one(logits, caplog):
    assert fit_temperature(logits, torch.zeros(len(logits), dtype=torch.int64)) == 1
    assert "no temperature" in caplog.text


def test_calibration_error_by_a_loop():
    logits, targets = confident()
    probs = logits.softmax(1)
    probs[0] = torch.tensor([0.2, 0.2, 0.2, 0.2, 0.1, 0.1])  # at the edge of two bins: of the lower
    bins = reliability(probs, targets)
    total = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = []
        for row, target in zip(probs.double(), targets, strict=True):
            confidence = float(row.max())
            if low < confidence <= high:
                inside.append((confidence, int(row.argmax()) == int(target)))
        assert bins["photos"][number] == len(inside)
        if inside:
            confidence, right = np.mean(inside, axis=0)
            assert bins["confidence"][number] == pytest.approx(confidence)
            assert bins["accuracy"][number] == pytest.approx(right)
            total += len(inside) / len(targets) * abs(right - confidence)
    assert calibration_error(bins) == pytest.approx(total) and total > 0.1
    mended = reliability((logits / fit_temperature(logits, targets)).softmax(1), targets)
    assert calibration_error(mended) < total / 2


def test_bins_hold_their_upper_edge():
    assert bin_of(np.array([1e-9, 1 / 15, 0.2, 0.2000001, 14 / 15, 1.0])).tolist() == [0, 0, 2, 3, 13, 14]


def test_accuracy_at_coverage_by_a_loop():
    random = np.random.default_rng(0)
    confidence = random.random(97).round(1)  # many ties
    right = random.random(97) < confidence
    accuracy, threshold = accuracy_by_coverage(confidence, right)
    for k in range(1, 98):
        # the mean over many orders of the ties
        least = sorted(confidence, reverse=True)[k - 1]
        sure, tied = right[confidence > least], right[confidence == least]
        expected = (sure.sum() + (k - len(sure)) * tied.mean()) / k
        assert accuracy[k - 1] == pytest.approx(expected) and threshold[k - 1] == least
    table = coverage_table(confidence, right)
    assert table["coverage"].tolist() == list(COVERAGES)
    assert table["photos"].tolist() == [97, 93, 88, 78, 68, 49]
    assert table["accuracy"].tolist() == pytest.approx([accuracy[k - 1] for k in table["photos"]])
    assert table["accuracy"][0] == pytest.approx(right.mean())
    for row in table.itertuples():
        assert (confidence >= row.threshold).sum() >= row.photos > (confidence > row.threshold).sum()
    assert area_under_risk(confidence, right) == pytest.approx(np.mean(1 - accuracy))


def test_coverage_counts_are_rounded_up():
    table = coverage_table(np.arange(10.0), np.ones(10, bool))
    assert table["photos"].tolist() == [10, 10, 9, 8, 7, 5]
    assert table["threshold"].tolist() == [0, 0, 1, 2, 3, 5]
    assert coverage_table(np.array([0.3]), np.array([True]))["photos"].tolist() == [1] * 6


def test_ties_do_not_depend_on_the_order_of_photos():
    confidence, right = np.ones(10), np.array([1, 0] * 5, bool)
    for order in (np.arange(10), np.argsort(right), np.argsort(~right)):
        accuracy, _ = accuracy_by_coverage(confidence[order], right[order])
        assert accuracy == pytest.approx(np.full(10, 0.5))
    assert area_under_risk(confidence, right) == pytest.approx(0.5)
