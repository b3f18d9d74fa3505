"""Rows recomputed from logits one number at a time."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from carvision.errors import InputError
from carvision.inference.rows import NOT_A_NUMBER, Layout, Row, flatten, rows_of

IDS = {"make": ["3", "7"], "model": ["1", "2", "9"], "only": ["o"]}
NAMES = {"make": ["Audi", "BMW"], "model": ["A4", "X5", "X5"], "only": ["One"]}


@pytest.fixture
def predictor():
    def probs(logits):
        return {head: (logits[head] / 2).softmax(dim=1) for head in IDS}

    def decode(logits):  # the second best of model: a rule may choose another than the most probable
        return {"make": logits["make"].argmax(1), "model": logits["model"].argsort(1)[:, 1]}

    labels = ("make", "speed", "model", "only")
    return SimpleNamespace(labels=labels, classes=NAMES, class_ids=IDS, probs=probs, decode=decode)


def test_rows_against_a_recomputation(predictor):
    torch.manual_seed(0)
    logits = {head: 4 * torch.randn(20, len(ids)) for head, ids in IDS.items()} | {"speed": 100 * torch.rand(20, 1)}
    logits["speed"][4] = math.nan
    paths = [f"{i}.jpg" for i in range(20)]
    truths = [{"make": i % 2 if i else None} for i in range(20)]
    reasons = [None] * 20
    reasons[3] = "the file is empty"
    layout = Layout(IDS, predictor.labels, top=2, probs=True)
    rows = rows_of(predictor, layout, paths, truths, logits, reasons)
    assert [row.path for row in rows] == paths
    none = {"make": [], "speed": None, "model": [], "only": []}
    assert rows[3] == ("3.jpg", none, "the file is empty", {"make": "BMW"}, {})
    assert rows[4] == ("4.jpg", none, NOT_A_NUMBER, {"make": "Audi"}, {})
    for i in set(range(20)) - {3, 4}:
        row = rows[i]
        for head in ("make", "model"):
            powers = [math.exp(value / 2) for value in logits[head][i].tolist()]
            expected = [power / sum(powers) for power in powers]
            np.testing.assert_allclose(row.probs[head], expected, rtol=1e-5)
            order = sorted(range(len(expected)), key=lambda code: -expected[code])
            first = order[1] if head == "model" else order[0]
            second = next(code for code in order if code != first)
            for best, code in zip(row.labels[head], (first, second), strict=True):
                assert (best["name"], best["id"]) == (NAMES[head][code], IDS[head][code])
                assert best["prob"] == pytest.approx(expected[code], rel=1e-5)
        assert row.labels["only"] == [{"id": "o", "name": "One", "prob": 1.0}]
        assert row.labels["speed"] == logits["speed"][i].item() and row.error is None
        assert row.truth == ({"make": ["Audi", "BMW"][i % 2]} if i else {})


def test_columns_which_no_two_labels_share_and_the_cells_of_a_row(predictor):
    layout = Layout(IDS, predictor.labels, top=5, probs=True, true_heads=("model",))
    assert list(layout.columns) == [
        "path", "make", "make_id", "make_prob", "make_2", "make_2_id", "make_2_prob", "make_probs", "model_true",
        "model", "model_id", "model_prob", "model_2", "model_2_id", "model_2_prob", "model_3", "model_3_id",
        "model_3_prob", "model_probs", "only", "only_id", "only_prob", "only_probs", "speed", "error",
    ]  # fmt: skip
    assert layout.columns["model_probs"] == ("1", "2", "9") and layout.columns["speed"] == "number"
    brief = Layout(IDS, predictor.labels, brief=True, true_heads=("make",))
    assert list(brief.columns) == ["path", "make", "model", "only", "speed"]
    best = [{"id": "9", "name": "X5", "prob": 0.6}, {"id": "1", "name": "A4", "prob": 0.4}]
    cells = flatten(Row("a.jpg", {"make": [], "model": best, "speed": 1.5}, None, {"model": "A4"}), layout.columns)
    assert list(cells) == list(layout.columns)
    assert {name: value for name, value in cells.items() if value is not None} == {
        "path": "a.jpg", "model_true": "A4", "model": "X5", "model_id": "9", "model_prob": 0.6, "model_2": "A4",
        "model_2_id": "1", "model_2_prob": 0.4, "speed": 1.5,
    }  # fmt: skip
    with pytest.raises(InputError, match="two columns 'make_id'"):
        Layout({"make": ["1"], "make_id": ["1"]}, ("make", "make_id"))
