"""Rows recomputed from logits one number at a time."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from carvision.errors import InputError
from carvision.inference.rows import NOT_A_NUMBER, Layout, rows_of
from carvision.inference.sources import Photo

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
    photos = [Photo(f"{i}.jpg", "") for i in range(20)]
    truths = [{"make": i % 2 if i else None} for i in range(20)]
    reasons = [None] * 20
    reasons[3] = "the file is empty"
    rows = rows_of(predictor, Layout(top=2, probs=True), photos, truths, logits, reasons)
    assert [row["path"] for row in rows] == [photo.path for photo in photos]
    assert rows[3] == {"path": "3.jpg", "error": "the file is empty", "make_true": "BMW"}
    assert rows[4] == {"path": "4.jpg", "error": NOT_A_NUMBER, "make_true": "Audi"}
    for i in set(range(20)) - {3, 4}:
        row = rows[i]
        for head in ("make", "model"):
            powers = [math.exp(value / 2) for value in logits[head][i].tolist()]
            expected = [power / sum(powers) for power in powers]
            np.testing.assert_allclose(row[f"{head}_probs"], expected, rtol=1e-5)
            order = sorted(range(len(expected)), key=lambda code: -expected[code])
            first = order[1] if head == "model" else order[0]
            second = next(code for code in order if code != first)
            for name, code in ((head, first), (f"{head}_2", second)):
                assert (row[name], row[f"{name}_id"]) == (NAMES[head][code], IDS[head][code])
                assert row[f"{name}_prob"] == pytest.approx(expected[code], rel=1e-5)
        assert (row["only_id"], row["only_prob"]) == ("o", 1.0) and "only_2" not in row
        assert row["speed"] == logits["speed"][i].item() and "error" not in row
        assert row.get("make_true") == (["Audi", "BMW"][i % 2] if i else None)


def test_columns(predictor):
    columns = Layout(top=5, probs=True, true_heads=("model",)).columns(IDS, predictor.labels)
    assert list(columns) == [
        "path", "make", "make_id", "make_prob", "make_2", "make_2_id", "make_2_prob", "make_probs", "model_true",
        "model", "model_id", "model_prob", "model_2", "model_2_id", "model_2_prob", "model_3", "model_3_id",
        "model_3_prob", "model_probs", "only", "only_id", "only_prob", "only_probs", "speed", "error",
    ]  # fmt: skip
    assert columns["model_probs"] == ("1", "2", "9") and columns["speed"] == "number" and columns["make_id"] == "text"
    assert list(Layout(brief=True, true_heads=("make",)).columns(IDS, predictor.labels)) == [
        "path", "make", "model", "only", "speed",
    ]  # fmt: skip


def test_labels_that_would_share_a_column_are_refused():
    with pytest.raises(InputError, match="two columns 'make_id'"):
        Layout().columns({"make": ["1"], "make_id": ["1"]}, ("make", "make_id"))
    with pytest.raises(InputError, match="two columns 'error'"):  # a row's error would be read as its class
        Layout(brief=True).columns({"error": ["1"]}, ("error",))
