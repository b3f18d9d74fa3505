"""Resampled metrics equal those of training on photos that are really repeated; areas equal plain loops."""

import numpy as np
import pytest
import torch

from carvision.evaluation.auc import class_aucs, resampled_aucs, resampled_micro_auc, scores_of
from carvision.evaluation.bootstrap import bootstrap_intervals, draw_weights, point_metrics, resampled_metrics
from carvision.evaluation.calibration import calibration_error, reliability
from carvision.models.decoding import RULES
from tests.evaluation.made import HEAD_WEIGHTS, LABELS, epoch_of, made, photo_losses


def without_areas(metrics: dict[str, float]) -> dict[str, float]:
    others = ("auc", "auc_micro", "auc_keras", "loss_total")
    return {name: value for name, value in metrics.items() if not name.endswith(others)}


@pytest.mark.parametrize("rule", RULES)
def test_with_every_photo_once_the_metrics_are_those_of_training(rule):
    predictions = made()
    expected = epoch_of(predictions, rule).compute()
    found = point_metrics(predictions, LABELS, rule, photo_losses(predictions), HEAD_WEIGHTS)
    more = {f"{head}/{name}" for head in ("make", "model") for name in ("nll", "ece")}
    assert set(found) == set(expected) - {"loss_total"} | more
    plain = without_areas(expected)
    assert {name: found[name] for name in plain} == pytest.approx(plain, rel=1e-6, abs=1e-9)
    for name in set(expected) - set(plain) - {"loss_total"}:
        assert found[name] == pytest.approx(expected[name], abs=0.01), name  # training has its areas from histograms


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_weights_equal_repeated_photos(seed):
    predictions = made(40, seed, {"model": 2.0})
    weights = draw_weights(int(predictions.valid.sum()), 4, seed)
    found = resampled_metrics(predictions, LABELS, "joint", photo_losses(predictions), HEAD_WEIGHTS, weights)
    for sample, drawn in enumerate(weights):
        times = torch.zeros(len(predictions.valid), dtype=torch.int64)
        times[predictions.valid] = drawn.long()
        expected = without_areas(epoch_of(predictions, "joint", weights=times).compute())
        assert {name: float(found[name][sample]) for name in expected} == pytest.approx(expected, rel=1e-6, abs=1e-9)
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
    """Return the weight of the pairs in which the positive scores higher, as a fraction of all pairs."""
    own, other = scores[positive], scores[~positive]
    higher = (own[:, None] > other) + 0.5 * (own[:, None] == other)
    pairs = weights[positive][:, None] * weights[~positive]
    return (higher * pairs).sum() / pairs.sum() if pairs.sum() else np.nan


@pytest.fixture
def areas() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Logits (80, 5) with ties, targets of classes 0 to 3, and bool (80, 5) of these."""
    random = torch.Generator().manual_seed(0)
    targets = torch.randint(4, (80,), generator=random)
    logits = torch.randn(80, 5, generator=random) + 1.5 * torch.eye(5)[targets]
    logits[20:30] = logits[10:20]
    return logits, targets, torch.eye(5, dtype=torch.bool)[targets].numpy()


def test_areas_are_exact_with_ties(areas):
    logits, targets, one_hot = areas
    scores, ones = scores_of(logits), torch.ones(1, 80)
    expected = [naive_area(scores[:, c].numpy(), one_hot[:, c], np.ones(80)) for c in range(5)]
    assert np.isnan(expected[4]) and class_aucs(scores, targets).numpy() == pytest.approx(expected, nan_ok=True)
    assert resampled_aucs(scores, targets, ones)[0].numpy() == pytest.approx(expected, abs=1e-6, nan_ok=True)
    expected = naive_area(scores.numpy().ravel(), one_hot.ravel(), np.ones(400))
    assert float(resampled_micro_auc(scores, targets, ones)[0]) == pytest.approx(expected)


def test_areas_of_samples_are_of_first_order(areas):
    """They are near those of the samples themselves, and their interval is nearly the same."""
    logits, targets, one_hot = areas
    scores, weights = scores_of(logits), draw_weights(80, 200, 0)
    of_classes = resampled_aucs(scores, targets, weights).numpy()
    micro = resampled_micro_auc(scores, targets, weights).numpy()
    assert np.isnan(of_classes[:, 4]).all()
    values, of_pairs = scores.numpy(), np.repeat(weights.numpy()[..., None], 5, axis=2).reshape(200, -1)
    exact_class = np.array([naive_area(values[:, 1], one_hot[:, 1], w) for w in weights.numpy()])
    exact_micro = np.array([naive_area(values.ravel(), one_hot.ravel(), w) for w in of_pairs])
    for found, exact, spread in ((of_classes[:, 1], exact_class, 0.02), (micro, exact_micro, 0.005)):
        assert np.std(exact) > spread
        assert np.abs(found - exact).max() < 0.3 * np.std(exact) + spread
        ends = np.quantile(exact, (0.025, 0.975))
        assert np.quantile(found, (0.025, 0.975)) == pytest.approx(ends, abs=0.2 * (ends[1] - ends[0]))


def test_intervals_are_quantiles_of_photos_drawn_with_replacement():
    predictions = made(150)
    arguments = (predictions, LABELS, "independent", photo_losses(predictions), HEAD_WEIGHTS)
    intervals, metrics = bootstrap_intervals(*arguments, 2000, seed=1), point_metrics(*arguments)
    assert set(intervals) == set(metrics)
    known = predictions.known("model")[predictions.valid].numpy()
    right = (predictions.logits["model"].argmax(1) == predictions.targets["model"])[predictions.valid].numpy()
    random, values = np.random.default_rng(7), []
    for _ in range(2000):
        drawn = random.integers(len(right), size=len(right))
        values.append(right[drawn][known[drawn]].mean())
    assert intervals["model/top1"] == pytest.approx(np.quantile(values, (0.025, 0.975)).tolist(), abs=0.02)
    for name, (low, high) in intervals.items():
        assert low <= high
        assert name.endswith("ece") or low <= metrics[name] <= high, name
    assert bootstrap_intervals(*arguments, 50, seed=1) == bootstrap_intervals(*arguments, 50, seed=1)


def test_heads_without_a_known_label_and_undefined_metrics_are_left_out():
    predictions = made(50)
    predictions.targets["make"][:], predictions.targets["speed"][:] = -1, torch.nan
    arguments = (predictions, LABELS, "independent", photo_losses(predictions), HEAD_WEIGHTS)
    metrics = point_metrics(*arguments)
    assert not [name for name in metrics if name.startswith(("make/", "speed/")) or name == "joint/top1"]
    assert metrics["loss"] == pytest.approx(2 * metrics["model/loss"])
    assert set(bootstrap_intervals(*arguments, 20)) == set(metrics)
    single = made(1)
    single.valid[:], single.targets["model"][:] = True, 2
    single.logits["model"][:] = torch.nan
    intervals = bootstrap_intervals(single, LABELS, "independent", photo_losses(single), HEAD_WEIGHTS, 5)
    assert intervals["model/top1"] == (0, 0) and "model/auc" not in intervals
