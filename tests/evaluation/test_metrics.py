"""The table of the classes equals scikit-learn's; confusions and pairs equal plain loops."""

import warnings

import numpy as np
import pytest
import sklearn.metrics as sk

from carvision.evaluation.metrics import class_table, confused_pairs, confusions, share_within_parent
from tests.evaluation.made import CODES, LABELS, made


def test_the_table_of_classes_is_scikit_learns():
    predictions = made(300, temperature={"model": 2.0})
    predictions.targets["model"][predictions.targets["model"] == 3] = -1  # a class without photos
    predicted = predictions.logits["model"].argmax(1)
    predicted[predicted == 5] = 0  # and one that is never predicted
    table = class_table(predictions, "model", LABELS, predicted)
    assert table["parent"].tolist() == ["Ironholt"] * 3 + ["Kestrano"] * 2 + ["Velmora"] * 2
    assert table["name"].tolist() == ["a", "b", "d", "c", "g", "e", "f"]
    table = table.set_index("id").loc[LABELS["model"]["ids"]]
    known = predictions.known("model")
    true, guess = predictions.targets["model"][known].numpy(), predicted[known].numpy()
    probs = predictions.probs("model")[known].numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        each = sk.precision_recall_fscore_support(true, guess, labels=range(7), zero_division=np.nan)
    for name, values in zip(("precision", "recall", "f1", "photos"), each, strict=True):
        assert table[name].to_numpy() == pytest.approx(values, nan_ok=True), name
    confusion = sk.confusion_matrix(true, guess, labels=range(7))
    assert table["predicted"].tolist() == confusion.sum(axis=0).tolist()
    assert table["right"].tolist() == confusion.diagonal().tolist()
    raw = predictions.logits["model"][known].double().softmax(1).numpy()  # areas are without the temperature
    for code in range(7):
        own, row = true == code, table.iloc[code]
        if not own.any():
            assert np.isnan([row["recall"], row["top5"], row["confidence"], row["auc"]]).all()
            assert row["taken_for"] == ""
            continue
        best = np.argsort(-probs[own], axis=1)[:, :5]
        assert row["top5"] == pytest.approx((best == code).any(axis=1).mean())
        assert row["confidence"] == pytest.approx(probs[own, guess[own]].mean(), rel=1e-5)
        assert row["auc"] == pytest.approx(sk.roc_auc_score(own, raw[:, code]))
        others = np.where(np.arange(7) == code, 0, confusion[code])
        assert row["taken_for_photos"] == others.max() == others[int(row["taken_for_id"])]
        assert row["taken_for"] == LABELS["model"]["names"][int(row["taken_for_id"])]


def test_confusions_and_confused_pairs():
    true = np.array([0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 5, 6, 4])
    guess = np.array([0, 4, 4, 2, 1, 1, 1, 3, 0, 5, 5, 4, 6])
    cells = confusions(true, guess)
    matrix = np.zeros((7, 7), int)
    matrix[cells["true"], cells["predicted"]] = cells["photos"]
    assert (matrix == sk.confusion_matrix(true, guess, labels=range(7))).all() and (cells["photos"] > 0).all()
    expected = [[2, 1, 2, 1, 3], [0, 4, 2, 0, 2], [4, 6, 1, 1, 2], [3, 0, 1, 0, 1], [3, 5, 1, 0, 1]]
    assert confused_pairs(cells).to_numpy().tolist() == expected
    same = [CODES[t] == CODES[g] for t, g in zip(true, guess, strict=True) if t != g]
    assert share_within_parent(cells, CODES) == pytest.approx(np.mean(same)) and 0 < np.mean(same) < 1
    without = confusions(np.array([0, 1]), np.array([0, 1]))
    assert len(confused_pairs(without)) == 0 and np.isnan(share_within_parent(without, [0, 0]))
    assert list(confused_pairs(without)) == ["a", "b", "a_as_b", "b_as_a", "photos"]
