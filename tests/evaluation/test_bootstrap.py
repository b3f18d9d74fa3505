"""Resampled figures against those of training on photos that are really repeated, and against loops."""

import numpy as np
import pytest
import torch

from carvision.evaluation.auc import class_aucs, resampled_aucs, resampled_micro_auc, scores_of
from carvision.evaluation.bootstrap import bootstrap_intervals, draw_weights, point_metrics, resampled_metrics
from carvision.evaluation.calibration import calibration_error, reliability
from carvision.models.decoding import RULES
from tests.evaluation.made import HEAD_WEIGHTS, LABELS, epoch_of, made, photo_losses

AREAS = ("auc", "auc_micro", "auc_keras")


def without_areas(figures: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if not name.endswith(AREAS)}


@pytest.mark.parametrize("rule", RULES)
def test_with_every_photo_once_the_figures_are_those_of_training(rule):
    predictions = made()
    expected = epoch_of(predictions, rule).compute()
    del expected["loss_total"]
    figures = point_metrics(predictions, LABELS, rule, photo_losses(predictions), HEAD_WEIGHTS)
    assert set(figures) - set(expected) == {f"{head}/{name}" for head in ("make", "model") for name in ("nll", "ece")}
    assert without_areas({name: figures[name] for name in expected}) == pytest.approx(
        without_areas(expected), rel=1e-6, abs=1e-9
    )
    for name in expected:
        assert figures[name] == pytest.approx(expected[name], abs=0.01), name  # training has its areas from histograms


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_weights_are_as_good_as_repeating_photos(seed):
    predictions = made(40, seed, {"model": 2.0})
    weights = draw_weights(int(predictions.valid.sum()), 4, seed)
    found = resampled_metrics(predictions, LABELS, "joint", photo_losses(predictions), HEAD_WEIGHTS, weights)
    for sample, drawn in enumerate(weights):
        times = torch.zeros(len(predictions.valid), dtype=torch.int64)
        times[predictions.valid] = drawn.long()
        expected = without_areas(epoch_of(predictions, "joint", weights=times).compute())
        del expected["loss_total"]
        figures = {name: float(found[name][sample]) for name in expected}
        assert figures == pytest.approx(expected, rel=1e-6, abs=1e-9)
        rows = torch.arange(len(times)).repeat_interleave(times * predictions.known("model"))
        targets = predictions.targets["model"][rows]
        for end, calibrated in (("", False), ("_calibrated", True)):
            probs = predictions.probs("model", calibrated)[rows]
            nll = -probs.gather(1, targets[:, None]).log().mean()
            assert float(found[f"model/nll{end}"][sample]) == pytest.approx(float(nll), rel=1e-5)
            ece = calibration_error(reliability(probs, targets))
            assert float(found[f"model/ece{end}"][sample]) == pytest.approx(ece, rel=1e-5)
    assert "make/ece_calibrated" not in found  # it has no temperature


def naive_area(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float:
    """The weight of pairs where the positive scores higher, of all pairs."""
    above = total = 0.0
    for i in np.flatnonzero(positive):
        for j in np.flatnonzero(~positive):
            total += weights[i] * weights[j]
            above += weights[i] * weights[j] * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
    return above / total if total else np.nan


def area_case() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    targets = torch.randint(4, (80,), generator=random)
    logits = torch.randn(80, 5, generator=random) + 1.5 * torch.eye(5)[targets]  # nothing is of class 4
    logits[20:30] = logits[10:20]  # ties
    return logits, targets


def test_areas_are_exact_with_ties():
    logits, targets = area_case()
    scores, ones = scores_of(logits), np.ones(80)
    expected = [naive_area(scores[:, c].numpy(), (targets == c).numpy(), ones) for c in range(5)]
    assert np.isnan(expected[4]) and class_aucs(scores, targets).numpy() == pytest.approx(expected, nan_ok=True)
    found = resampled_aucs(scores, targets, torch.ones(1, 80))[0].numpy()
    assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)
    one_hot = torch.eye(5, dtype=bool)[targets].numpy().ravel()
    expected = naive_area(scores.numpy().ravel(), one_hot, np.ones(400))
    assert float(resampled_micro_auc(scores, targets, torch.ones(1, 80))[0]) == pytest.approx(expected)


def test_areas_of_samples_are_of_first_order():
    """Near those of the samples themselves, one by one, and with the same interval."""
    logits, targets = area_case()
    scores, weights = scores_of(logits), draw_weights(80, 200, 0)
    one_hot = torch.eye(5, dtype=bool)[targets].numpy()
    areas, micro = (
        resampled_aucs(scores, targets, weights).numpy(),
        resampled_micro_auc(scores, targets, weights).numpy(),
    )
    assert np.isnan(areas[:, 4]).all()
    for found, column, spread in ((areas[:, 1], 1, 0.02), (micro, None, 0.005)):
        exact = np.array(
            [naive_area(scores[:, column].numpy(), one_hot[:, column], w) if column is not None
             else naive_weighted_micro(scores.numpy(), one_hot, w) for w in weights.numpy()]
        )  # fmt: skip
        assert np.std(exact) > spread
        assert np.abs(found - exact).max() < 0.3 * np.std(exact) + spread
        ends = np.quantile(exact, (0.025, 0.975))
        assert np.quantile(found, (0.025, 0.975)) == pytest.approx(ends, abs=0.2 * (ends[1] - ends[0]))


def naive_weighted_micro(scores: np.ndarray, one_hot: np.ndarray, weights: np.ndarray) -> float:
    of_pair = np.repeat(weights[:, None], scores.shape[1], axis=1)
    positive, negative = scores[one_hot], scores[~one_hot]
    higher = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    pairs = of_pair[one_hot][:, None] * of_pair[~one_hot]
    return (higher * pairs).sum() / pairs.sum()


def test_intervals_are_the_quantiles_of_photos_drawn_anew():
    """top1 by a loop that draws photos itself."""
    predictions = made(150)
    losses = photo_losses(predictions)
    intervals = bootstrap_intervals(predictions, LABELS, "independent", losses, HEAD_WEIGHTS, 2000, seed=1)
    figures = point_metrics(predictions, LABELS, "independent", losses, HEAD_WEIGHTS)
    assert set(intervals) == set(figures)
    known = predictions.known("model")[predictions.valid].numpy()
    right = (predictions.logits["model"].argmax(1) == predictions.targets["model"])[predictions.valid].numpy()
    random, values = np.random.default_rng(7), []
    for _ in range(2000):
        drawn = random.integers(len(right), size=len(right))
        values.append(right[drawn][known[drawn]].mean())
    assert intervals["model/top1"] == pytest.approx(np.quantile(values, (0.025, 0.975)).tolist(), abs=0.02)
    for name, (low, high) in intervals.items():
        assert low <= high
        assert name.split("/")[-1] == "ece" or low <= figures[name] <= high, name
    again = bootstrap_intervals(predictions, LABELS, "independent", losses, HEAD_WEIGHTS, 50, seed=1)
    assert again == bootstrap_intervals(predictions, LABELS, "independent", losses, HEAD_WEIGHTS, 50, seed=1)


def test_draws_are_of_as_many_photos():
    weights = draw_weights(30, 2000, 0)
    assert (weights.sum(dim=1) == 30).all()
    assert weights.mean(dim=0).numpy() == pytest.approx(np.ones(30), abs=0.12)
    assert float(weights.var()) == pytest.approx(29 / 30, abs=0.05)  # of a multinomial
    assert not torch.equal(weights, draw_weights(30, 2000, 1))


def test_a_head_without_a_known_label_has_no_figures():
    predictions = made(50)
    predictions.targets["make"][:] = -1
    predictions.targets["speed"][:] = torch.nan
    losses = photo_losses(predictions)
    figures = point_metrics(predictions, LABELS, "independent", losses, HEAD_WEIGHTS)
    assert not [name for name in figures if name.startswith(("make/", "speed/")) or name == "joint/top1"]
    assert figures["loss"] == pytest.approx(2 * figures["model/loss"])
    intervals = bootstrap_intervals(predictions, LABELS, "independent", losses, HEAD_WEIGHTS, 20)
    assert set(intervals) == set(figures)


def test_one_photo_and_logits_that_are_no_numbers():
    predictions = made(1)
    predictions.valid[:], predictions.targets["model"][:] = True, 2
    predictions.logits["model"][:] = torch.nan
    intervals = bootstrap_intervals(predictions, LABELS, "independent", photo_losses(predictions), HEAD_WEIGHTS, 5)
    assert intervals["model/top1"] == (0, 0) and "model/auc" not in intervals
