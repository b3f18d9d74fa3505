"""Temperature, calibration error and accuracy by coverage equal grids and plain loops."""

import math

import numpy as np
import pytest
import torch

from carvision.evaluation import calibration
from carvision.evaluation.calibration import calibration_error, fit_temperature, operating_points_of, reliability
from carvision.evaluation.predict import Predictions
from tests.evaluation.made import CODES, LABELS, made


def confident(scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (400, 6) that would be right with temperature `scale`, and targets drawn by their probabilities."""
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(400, 6, generator=random)
    return scale * logits, torch.multinomial(logits.softmax(1), 1, generator=random)[:, 0]


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_the_temperature_is_that_of_a_fine_grid(scale):
    logits, targets = confident(scale)
    grid = np.exp(np.linspace(math.log(0.05), math.log(20), 4001))
    nll = [torch.nn.functional.cross_entropy(logits.double() / t, targets).item() for t in grid]
    temperature = fit_temperature(logits, targets)
    assert temperature == pytest.approx(grid[np.argmin(nll)], rel=2e-3) == pytest.approx(scale, rel=0.15)
    more = torch.cat([logits, torch.randn(50, 6)]), torch.cat([targets, torch.full((50,), -1)])  # unknown ones
    assert fit_temperature(*more) == pytest.approx(temperature)


def test_the_temperature_stays_within_its_bounds_and_is_1_if_it_can_not_be_determined(caplog):
    _, targets = confident()
    faint = 0.001 * torch.eye(6)[targets]
    targets[0] = (targets[0] + 1) % 6  # all but one right
    assert fit_temperature(faint, targets) == pytest.approx(calibration.MIN_TEMPERATURE, rel=1e-2)
    assert fit_temperature(faint, (targets + 1) % 6) == pytest.approx(calibration.MAX_TEMPERATURE, rel=1e-2)
    assert caplog.text.count("at its bound") == 2
    for logits in (torch.zeros(0, 3), torch.zeros(4, 1), torch.full((4, 3), torch.nan), torch.eye(3)[[0] * 4]):
        assert fit_temperature(logits, torch.zeros(len(logits), dtype=torch.int64)) == 1
    assert caplog.text.count("no temperature") == 3
    assert "all of 4 photos are right" in caplog.text  # the optimum, 0, would make one mistake cost anything


def test_the_calibration_error_equals_a_loop():
    logits, targets = confident()
    probs = logits.double().softmax(1)  # in float32 the edge below would be a little more than 3 / 15
    probs[0] = torch.tensor([2, 2, 2, 2, 1, 1]).double() / 10  # at the edge of two bins: in the lower one
    bins = reliability(probs, targets)
    confidence = probs.max(1).values.numpy()
    right = (probs.argmax(1) == targets).numpy()
    total = 0.0
    for number in range(15):
        inside = (number / 15 < confidence) & (confidence <= (number + 1) / 15)
        assert bins["photos"][number] == inside.sum()
        if inside.any():
            assert bins["confidence"][number] == pytest.approx(confidence[inside].mean())
            assert bins["accuracy"][number] == pytest.approx(right[inside].mean())
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(bins) == pytest.approx(total) and total > 0.1


def test_accuracy_by_coverage_equals_a_loop():
    random = np.random.default_rng(0)
    confidence = random.random(97).round(1)  # many ties
    right = random.random(97) < confidence
    accuracy, threshold = calibration.accuracy_by_coverage(confidence, right)
    for k in range(1, 98):
        least = sorted(confidence, reverse=True)[k - 1]
        above, tied = right[confidence > least], right[confidence == least]
        expected = (above.sum() + (k - len(above)) * tied.mean()) / k  # the mean over many orders of the ties
        assert accuracy[k - 1] == pytest.approx(expected) and threshold[k - 1] == least
    table = calibration.coverage_table(confidence, right)
    assert table["photos"].tolist() == [97, 93, 88, 78, 68, 49]  # rounded up
    assert table["accuracy"].tolist() == pytest.approx([accuracy[k - 1] for k in table["photos"]])
    for row in table.itertuples():
        assert (confidence >= row.threshold).sum() >= row.photos > (confidence > row.threshold).sum()
    assert calibration.area_under_risk(confidence, right) == pytest.approx(np.mean(1 - accuracy))
    assert calibration.coverage_table(np.array([0.3]), np.array([True]))["photos"].tolist() == [1] * 6


def answers_one_by_one(predictions: Predictions, head: str) -> list[tuple[float, bool]]:
    """The probability of each photo's answer by the rule "joint", and whether it is right; of photos of known class."""
    found = []
    for i in range(len(predictions.paths)):
        make, model = (predictions.logits[name][i].tolist() for name in ("make", "model"))
        best = max(range(len(CODES)), key=lambda code: make[CODES[code]] + model[code])
        answer, logits = (best, model) if head == "model" else (CODES[best], make)
        target = int(predictions.targets[head][i])
        if predictions.valid[i] and target >= 0:
            powers = [math.exp(value / predictions.temperature[head]) for value in logits]
            found.append((powers[answer] / sum(powers), answer == target))
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_operating_points_are_those_of_a_search_over_all_thresholds(seed):
    predictions = made(400, seed=seed, temperature={"make": 0.7, "model": 1.5})
    predictions.logits["make"][::2] *= 0.2  # half of the photos are hard
    points = operating_points_of(predictions, LABELS, "joint")
    assert list(points) == ["make", "model"]  # not the number
    found = []
    for head, of_head in points.items():
        answers, expected = answers_one_by_one(predictions, head), []
        for accuracy, min_answers in ((0.8, 20), (0.9, 20), (0.95, 20), (0.98, 50), (0.99, 100)):
            good = []
            for threshold, _ in answers:
                above = [right for confidence, right in answers if confidence >= threshold]
                if len(above) >= min_answers and sum(above) >= accuracy * len(above):
                    good.append((threshold, len(above) / len(answers)))
            if good:
                expected.append((accuracy, *min(good)))
        assert [tuple(point.values()) for point in of_head] == [pytest.approx(each) for each in expected]
        found += expected
    assert 2 <= len(found) < 10 and any(coverage < 1 for *_, coverage in found)  # some are reached, and not all


def test_no_operating_point_by_few_answers_unknown_classes_or_nan():
    logits = {"class": torch.eye(2)[[0, 1] * 15] * 9}
    targets = {"class": torch.tensor([0, 1] * 15)}
    labels = {"class": {"ids": ["a", "b"], "names": ["a", "b"]}}

    def points(num: int = 30) -> list:
        valid = torch.arange(30) < num
        predictions = Predictions([""] * 30, "", None, logits, targets, valid, {})
        return operating_points_of(predictions, labels, "independent")["class"]

    sure = 1 / (1 + math.exp(-9))
    assert [point["accuracy"] for point in points()] == [0.8, 0.9, 0.95]  # 30 right answers may be 98 %, or not
    assert points(20)[0] == {"accuracy": 0.8, "threshold": pytest.approx(sure), "coverage": 1.0}
    assert points(19) == [] == points(0)
    logits["class"][:9] = torch.nan
    assert [point["coverage"] for point in points()] == [0.7] * 3
    logits["class"][:] = torch.nan
    assert points() == []
