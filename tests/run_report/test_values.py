"""What a run's page says, against plain recomputation: thresholds, the slider, the order of the confusion matrix."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import carvision
from carvision.data.images import Preprocessing
from carvision.data.table import UNKNOWN
from carvision.evaluation.calibration import MIN_ANSWERS
from carvision.evaluation.metrics import confusions
from carvision.evaluation.page.confusion import similar_order
from carvision.evaluation.page.write import slider_steps
from carvision.explanation.cam import class_activation_maps
from carvision.explanation.overlay import overlay
from carvision.reports.photos import small_photo
from carvision.run_report.examples import examples_of, wrong_labels
from carvision.run_report.gather import Judged
from carvision.run_report.verdict import threshold_of
from tests.evaluation.made import CODES, LABELS, made
from tests.inference.tiny import save_tiny
from tests.run_report.test_label_errors import naive_label_errors


def photos(num: int, seed: int, power: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities with ties, and which answers are right: the surer, the more often."""
    random = np.random.default_rng(seed)
    confidence = np.round(random.uniform(0.2, 1, num), 2)
    return confidence, random.uniform(0, 1, num) < confidence**power


def results_of(confidence: np.ndarray, right: np.ndarray):
    heads = {"class": SimpleNamespace(confidence=confidence, right=right)}
    return SimpleNamespace(judged={"val": None}, split="val", heads=heads)


@pytest.mark.parametrize("power", [0.3, 0.05])  # of 13 and 3 % mistakes: at most 5 %, and half of them
@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_the_lowest_that_halves_the_mistakes(seed, power):
    confidence, right = photos(300, seed, power)
    wanted = max(0.95, 1 - (1 - right.mean()) / 2)
    good = [
        threshold
        for threshold in np.unique(confidence)
        if (confidence >= threshold).sum() >= MIN_ANSWERS and right[confidence >= threshold].mean() >= wanted
    ]
    found = threshold_of(results_of(confidence, right), "class")
    assert found == (pytest.approx(min(good)) if good else None)


def test_no_threshold_where_sure_answers_are_no_better():
    confidence = np.linspace(0.5, 1, 100)
    assert threshold_of(results_of(confidence, np.arange(100) % 2 == 0), "class") is None
    assert threshold_of(results_of(confidence[:0], np.zeros(0, bool)), "class") is None


def test_a_threshold_needs_enough_answers():
    for num, threshold in ((MIN_ANSWERS, 0.9), (MIN_ANSWERS - 1, None)):
        confidence, right = np.repeat([0.9, 0.5], [num, 60]), np.repeat([True, False], [num, 60])
        assert threshold_of(results_of(confidence, right), "class") == threshold


def test_the_slider_counts_answers_at_each_hundredth():
    confidence, right = photos(80, 1)
    for i, (accuracy, share) in enumerate(slider_steps(confidence, right)):
        answered = [r for c, r in zip(confidence, right, strict=True) if c >= i / 100]
        assert share == pytest.approx(len(answered) / 80)
        assert accuracy == (pytest.approx(np.mean(answered)) if answered else None)


def test_classes_that_are_confused_stand_together():
    random = np.random.default_rng(0)
    targets = random.integers(0, 40, 4000)
    partner = (targets + 20) % 40  # each class is taken for one that is far away by its code
    predicted = np.where(random.uniform(0, 1, 4000) < 0.3, partner, targets)
    predicted[targets >= 38] = targets[targets >= 38]
    predicted[np.isin(targets, (18, 19))] = targets[np.isin(targets, (18, 19))]
    order = similar_order(confusions(targets, predicted), 42)
    assert sorted(order) == list(range(42))
    place = {code: i for i, code in enumerate(order)}
    assert all(abs(place[code] - place[code + 20]) == 1 for code in range(18))
    assert set(order[-6:]) == {18, 19, 38, 39, 40, 41}  # never confused, or without any photo


def test_two_confused_classes_need_no_clustering():
    cells = pd.DataFrame({"true": [0, 1, 1], "predicted": [0, 1, 3], "photos": [5, 4, 1]})
    assert similar_order(cells, 5).tolist() == [1, 3, 0, 2, 4]


@pytest.mark.parametrize("rule", ["joint", "independent"])
def test_the_threshold_is_of_answers_by_the_rule_of_the_page(rule):
    predictions = made(400, seed=3)
    logits = {head: predictions.logits[head].double() for head in ("make", "model")}
    for head in logits:
        logits[head] = logits[head] + 2.0 * torch.nn.functional.one_hot(
            predictions.targets[head].clamp(0), logits[head].shape[1]
        )
    predictions.logits.update({head: values.float() for head, values in logits.items()})
    confidence, right = [], []
    for row in torch.flatten(predictions.known("model").nonzero()).tolist():
        p_make, p_model = (torch.softmax(predictions.logits[head][row], dim=0) for head in ("make", "model"))
        fits = [float(p_model[code] * (p_make[CODES[code]] if rule == "joint" else 1)) for code in range(len(CODES))]
        answer = int(np.argmax(fits))
        confidence.append(float(p_model[answer]))
        right.append(answer == int(predictions.targets["model"][row]))
    confidence, right = np.array(confidence), np.array(right)
    wanted = max(0.95, 1 - (1 - right.mean()) / 2)
    good = [
        at for at in confidence if (confidence >= at).sum() >= MIN_ANSWERS and right[confidence >= at].mean() >= wanted
    ]
    results = SimpleNamespace(
        judged={"val": Judged(None, predictions), "test": None}, split="test", heads={}, labels=LABELS,
        model=SimpleNamespace(about={"decoding": rule}),
    )  # fmt: skip
    assert threshold_of(results, "model") == pytest.approx(min(good), abs=1e-6)


def image_of(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")


@pytest.mark.parametrize(("resize", "size"), [("crop", (130, 130)), ("squash", (260, 130))])
def test_heat_maps_lie_over_the_part_that_the_network_saw(tmp_path, resize, size):
    preprocessing = Preprocessing(32, (0.5,) * 3, (0.5,) * 3, resize=resize)
    model = carvision.load(save_tiny(tmp_path / "run", preprocessing=preprocessing))
    blocks = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 8, 3), dtype=np.uint8))
    blocks.resize((520, 260), Image.Resampling.NEAREST).save(tmp_path / "a.png")
    image = small_photo(tmp_path / "a.png", 260)
    predictions = SimpleNamespace(
        paths=["a.png"], targets={"model": torch.tensor([0])}, photo=lambda row: str(tmp_path / "a.png"),
        probs=lambda head: torch.full((1, 3), 1 / 3),
    )  # fmt: skip
    table = SimpleNamespace(has_boxes=False)
    results = SimpleNamespace(
        judged={"val": Judged(table, predictions)}, split="val", heads={"model": SimpleNamespace(predicted=[1])},
        labels={"model": {"names": ["a", "b", "c"]}}, chosen=SimpleNamespace(data={"crop_to_box": False}),
        preprocessing=preprocessing, model=model,
    )  # fmt: skip
    [example] = examples_of(results, "model", [0], None)
    shown = image_of(example.photo)
    part = image.crop((65, 0, 195, 130)) if resize == "crop" else image
    assert shown.size == size and image_of(example.heat_map).size == size
    assert np.abs(np.asarray(shown, float) - np.asarray(part, float)).mean() < 10  # the same but for JPEG's loss
    [made_map] = class_activation_maps(model, [image], [None], "model", [1])
    expected = np.asarray(overlay(part, made_map.values), float)
    assert np.abs(np.asarray(image_of(example.heat_map), float) - expected).mean() < 10


def test_labels_are_checked_by_the_photos_of_all_folds_together():
    folds = {f"fold_{i}": Judged(None, made(150, seed=i)) for i in range(3)}
    found = wrong_labels(folds, "model", LABELS["model"]["names"])
    probs, targets, places = [], [], []
    for name, fold in folds.items():
        known = fold.predictions.known("model")
        places += [(name, row) for row in torch.flatten(known.nonzero()).tolist()]
        probs += fold.predictions.probs("model")[known].tolist()
        targets += fold.predictions.targets["model"][known].tolist()
    assert UNKNOWN not in targets
    naive = [error for error in naive_label_errors(probs, targets) if error[3] > 0]
    assert len(naive) > 10 and {part for part, _ in (places[error[0]] for error in naive)} == set(folds)
    names = LABELS["model"]["names"]
    assert list(zip(found["split"], found["row"], strict=True)) == [places[error[0]] for error in naive]
    assert found["given"].tolist() == [names[error[1]] for error in naive]
    assert found["suggested"].tolist() == [names[error[2]] for error in naive]
    assert found["path"].tolist() == [f"{places[error[0]][1]}.jpg" for error in naive]
    np.testing.assert_allclose(found["score"], [error[3] for error in naive], rtol=1e-5)
