"""The three decoding rules against every pair of make and model, tried one by one."""

import itertools
import math

import pytest
import torch

from carvision.models.decoding import RULES, decode

CODES = [2, 0, 0, 1, 2, 2, 0]  # the make of each of seven models
PARENTS = {"model": ("make", torch.tensor(CODES))}


def batch() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    scales = {"make": (2, 3), "model": (2, 7), "doors": (1, 4)}
    return {name: scale * torch.randn(50, num, generator=random) for name, (scale, num) in scales.items()}


def probs(row: torch.Tensor) -> list[float]:
    values = [math.exp(value) for value in row.tolist()]
    return [value / sum(values) for value in values]


def brute_force(make: list[float], model: list[float], rule: str) -> tuple[int, int]:
    pairs = list(itertools.product(range(len(make)), range(len(model))))
    if rule == "joint":
        pairs = [pair for pair in pairs if CODES[pair[1]] == pair[0]]
    if rule != "marginal":
        return max(pairs, key=lambda pair: make[pair[0]] * model[pair[1]])
    sums = [sum(p for p, code in zip(model, CODES, strict=True) if code == i) for i in range(len(make))]
    return sums.index(max(sums)), model.index(max(model))


@pytest.mark.parametrize("rule", RULES)
def test_rule_is_the_best_of_all_pairs(rule):
    logits = batch()
    predicted = decode(logits, PARENTS, rule)
    rows = zip(logits["make"], logits["model"], strict=True)
    expected = [brute_force(probs(make), probs(model), rule) for make, model in rows]
    assert list(zip(predicted["make"].tolist(), predicted["model"].tolist(), strict=True)) == expected
    assert predicted["doors"].tolist() == logits["doors"].argmax(1).tolist()
    assert predicted["make"].dtype == predicted["model"].dtype == torch.int64
    for name in ("make", "model"):  # without the other head, or without parents, each is decoded by itself
        independent = logits[name].argmax(1).tolist()
        assert decode({name: logits[name]}, PARENTS, rule)[name].tolist() == independent
        assert decode(logits, {}, rule)[name].tolist() == independent


def test_half_precision_and_extreme_logits_decode():
    logits = {"make": torch.tensor([[-6e4, 6e4, 0]]).half(), "model": torch.tensor([[6e4, 0, 0, 10, 0, 0, 0]]).half()}
    assert {k: v.tolist() for k, v in decode(logits, PARENTS, "joint").items()} == {"make": [1], "model": [3]}
    assert decode(logits, PARENTS, "marginal")["make"].tolist() == [2]
