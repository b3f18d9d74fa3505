"""Weighted metrics equal those of training on photos that are really repeated; areas equal plain loops."""

import numpy as np
import pytest
import torch

from carvision.evaluation.auc import areas_of_classes, micro_auc, scores_of
from carvision.evaluation.bootstrap import draw_weights, measure, weighted_metrics
from carvision.evaluation.calibration import calibration_error, reliability
from carvision.models.decoding import RULES
from tests.evaluation.made import HEAD_WEIGHTS, LABELS, epoch_of, made, photo_losses


@pytest.mark.parametrize("rule", RULES)
def test_with_every_photo_once_the_metrics_are_those_of_training(rule):
    predictions = made()
    epoch = epoch_of(predictions, rule)
    expected = {name: value for name, value in epoch.compute().items() if name != "loss_total"}
    found = measure(predictions, LABELS, rule, photo_losses(predictions), HEAD_WEIGHTS, num_samples=0)
    more = {f"{head}/{name}" for head in ("make", "model") for name in ("nll", "ece")}
    assert set(found.values) == set(expected) | more and found.intervals == {}
    for name, value in expected.items():  # training has its areas from histograms
        assert found.values[name] == pytest.approx(value, rel=1e-6, abs=0.01 if "auc" in name else 1e-9), name
    assert found.decodings.keys() == set(RULES)
    for each, values in epoch.compute_rules().items():
        assert found.decodings[each] == pytest.approx(values)


def test_weights_equal_repeated_photos():
    predictions = made(40, 1, {"model": 2.0})
    weights = draw_weights(int(predictions.valid.sum()), 4, 1)
    weights[0] = 1
    found, decodings = weighted_metrics(predictions, LABELS, "joint", photo_losses(predictions), HEAD_WEIGHTS, weights)
    for sample, drawn in enumerate(weights):
        times = torch.zeros(len(predictions.valid), dtype=torch.int64)
        times[predictions.valid] = drawn.long()
        epoch = epoch_of(predictions, "joint", weights=times)
        expected = {name: value for name, value in epoch.compute().items() if "auc" not in name and name in found}
        assert {name: float(found[name][sample]) for name in expected} == pytest.approx(expected, rel=1e-6, abs=1e-9)
        expected = epoch.compute_rules()["marginal"]
        assert {name: float(decodings["marginal"][name][sample]) for name in expected} == pytest.approx(expected)
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


def test_areas_are_exact_with_ties_and_those_of_samples_of_first_order():
    """Those of samples are near those of the drawn photos, and their interval is nearly the same."""
    random = torch.Generator().manual_seed(0)
    targets = torch.randint(4, (80,), generator=random)
    logits = torch.randn(80, 5, generator=random) + 1.5 * torch.eye(5)[targets]
    logits[20:30] = logits[10:20]
    one_hot = torch.eye(5, dtype=torch.bool)[targets].numpy()
    scores, weights = scores_of(logits), torch.ones(2, 80)
    weights[1, ::2] = 3  # beside other weightings
    expected = [naive_area(scores[:, c].numpy(), one_hot[:, c], np.ones(80)) for c in range(5)]
    found = areas_of_classes(scores, targets, weights)[0].numpy()
    assert np.isnan(expected[4]) and found == pytest.approx(expected, abs=1e-14, nan_ok=True)
    expected = naive_area(scores.numpy().ravel(), one_hot.ravel(), np.ones(400))
    assert float(micro_auc(scores, targets, weights)[0]) == pytest.approx(expected)
    weights = draw_weights(80, 200, 0)
    of_classes, micro = (area(scores, targets, weights).numpy() for area in (areas_of_classes, micro_auc))
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
    measured = measure(*arguments, 2000, seed=1)
    assert set(measured.intervals) == set(measured.values)
    known = predictions.known("model")[predictions.valid].numpy()
    right = (predictions.logits["model"].argmax(1) == predictions.targets["model"])[predictions.valid].numpy()
    random, values = np.random.default_rng(7), []
    for _ in range(2000):
        drawn = random.integers(len(right), size=len(right))
        values.append(right[drawn][known[drawn]].mean())
    ends = np.quantile(values, (0.025, 0.975)).tolist()
    assert measured.intervals["model/top1"] == pytest.approx(ends, abs=0.02)
    for name, (low, high) in measured.intervals.items():
        assert low <= high
        assert name.endswith("ece") or low <= measured.values[name] <= high, name
    assert measure(*arguments, 50, seed=1) == measure(*arguments, 50, seed=1)


def test_heads_without_a_known_label_and_undefined_metrics_are_left_out():
    predictions = made(50)
    predictions.targets["make"][:], predictions.targets["speed"][:] = -1, torch.nan
    found = measure(predictions, LABELS, "independent", photo_losses(predictions), HEAD_WEIGHTS, 20)
    assert not [name for name in found.values if name.startswith(("make/", "speed/")) or name == "joint/top1"]
    assert found.values["loss"] == pytest.approx(2 * found.values["model/loss"])
    assert set(found.intervals) == set(found.values)
    predictions.valid[:] = False
    found = measure(predictions, LABELS, "independent", photo_losses(predictions), HEAD_WEIGHTS)
    assert found.values == found.intervals == {} and found.decodings == {rule: {} for rule in RULES}
    single = made(1)
    single.valid[:], single.targets["model"][:] = True, 2
    single.logits["model"][:] = torch.nan
    found = measure(single, LABELS, "independent", photo_losses(single), HEAD_WEIGHTS, 5)
    assert found.intervals["model/top1"] == (0, 0) and "model/auc" not in found.values
    assert np.isnan(found.values["model/loss"])  # the photo counts
