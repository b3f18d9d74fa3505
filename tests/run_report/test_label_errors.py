"""Confident learning against a naive recomputation of its rule, and on labels that were made wrong."""

import numpy as np
import pytest

from carvision.data.table import UNKNOWN
from carvision.run_report.label_errors import find_label_errors


def naive_label_errors(probs, targets) -> list[tuple]:
    """(row, given, suggested, score) as the paper has it, with loops."""
    num_classes = len(probs[0])
    thresholds = {}
    for code in range(num_classes):
        own = [row[code] for row, target in zip(probs, targets, strict=True) if target == code]
        if own:
            thresholds[code] = sum(own) / len(own)
    found = []
    for number, (row, target) in enumerate(zip(probs, targets, strict=True)):
        reached = [code for code, threshold in thresholds.items() if row[code] >= threshold]
        if target == UNKNOWN or not reached:
            continue
        best = max(reached, key=lambda code: row[code])
        if best != target:
            found.append((number, target, best, row[best] - row[target]))
    return sorted(found, key=lambda error: -error[3])


@pytest.mark.parametrize("seed", range(5))
def test_the_rule_of_the_paper(seed):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(300, 7))
    targets = random.integers(0, 6, 300)  # none is labelled with the last class
    logits[np.arange(300), targets] += 1.5
    targets[::20] = UNKNOWN
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = find_label_errors(probs, targets)
    expected = naive_label_errors(probs.tolist(), targets.tolist())
    assert list(found[["row", "given", "suggested"]].itertuples(index=False, name=None)) == [e[:3] for e in expected]
    np.testing.assert_allclose(found["score"], [error[3] for error in expected])
    assert len(found) > 20 and 6 not in set(found["suggested"])


def test_labels_that_were_made_wrong_are_found_first():
    random = np.random.default_rng(0)
    true = random.integers(0, 10, 1000)
    logits = random.normal(size=(1000, 10))
    logits[np.arange(1000), true] += 6
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets, wrong = true.copy(), random.choice(1000, 50, replace=False)
    targets[wrong] = (true[wrong] + random.integers(1, 10, 50)) % 10
    found = find_label_errors(probs, targets)
    # Of the others, none reaches the threshold of its true class, the mean over photos labelled so
    assert len(found) >= 40 and set(found["row"]) <= set(wrong)
    assert (found["suggested"] == true[found["row"]]).all() and found["score"].is_monotonic_decreasing


def test_nothing_to_find():
    certain = np.full((6, 3), 1 / 3)
    for probs, targets in ((np.eye(3), np.arange(3)), (np.empty((0, 3)), np.empty(0, int)), (certain, np.zeros(6, int)),
                           (np.full((2, 3), np.nan), np.zeros(2, int)), (np.eye(3), np.full(3, UNKNOWN))):  # fmt: skip
        found = find_label_errors(probs, targets)
        assert list(found) == ["row", "given", "suggested", "score"] and len(found) == 0
