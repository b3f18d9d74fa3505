"""Averages of networks and views against loops over them."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

import carvision
from carvision.data.images import Preprocessing
from carvision.errors import InputError
from carvision.inference.predictor import CROP, Predictor, predict_items, views
from tests.inference.tiny import LABELS, save_tiny, write_photos


def load(folder, seed: int, preprocessing: Preprocessing, labels: dict = LABELS, temperature: float = 1.0):
    model = carvision.load(save_tiny(folder, seed, False, preprocessing, labels))
    model.temperature = dict.fromkeys(model.classes, temperature)
    return model


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return [str(file) for file in write_photos(tmp_path_factory.mktemp("photos"), 7)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    half = (0.5, 0.5, 0.5)
    turned = copy.deepcopy(LABELS)
    turned["model"] |= {"ids": ["9", "1", "2"], "names": ["X5", "A4", "X5"], "parent_codes": [1, 0, 1]}
    return [
        load(folder / "a", 0, Preprocessing(32, half, half), temperature=2.0),
        load(folder / "b", 1, Preprocessing(32, (0.1, 0.2, 0.3), half)),
        load(folder / "c", 2, Preprocessing(48, half, (0.2, 0.2, 0.2), resize="crop"), turned, temperature=0.5),
    ]


def probs_one_by_one(models, photos, tta: str) -> dict[str, np.ndarray]:
    """Return {head: (N, C)}, computed model by model, view by view, photo by photo."""
    found: dict = {"make": [], "model": [], "speed": []}
    for path in photos:
        rows: dict = {"make": [], "model": [], "speed": []}
        for model in models:
            mean, std = (torch.tensor(v)[:, None, None] for v in (model.preprocessing.mean, model.preprocessing.std))
            with Image.open(path) as image, torch.no_grad():
                pixels = model.transform(image) * std + mean
                for view in views(pixels[None], tta):
                    logits = model(((view[0] - mean) / std)[None])
                    rows["speed"].append(logits["speed"][0])
                    for head in ("make", "model"):
                        probs = (logits[head][0] / model.temperature[head]).softmax(0)
                        order = [model.class_ids[head].index(id_) for id_ in LABELS[head]["ids"]]
                        rows[head].append(probs[order])
        for head in found:
            found[head].append(torch.stack(rows[head]).mean(0))
    return {head: torch.stack(values).numpy() for head, values in found.items()}


@pytest.mark.parametrize("chosen, tta", [([0], "none"), ([0, 1, 2], "flip"), ([2, 0], "flip_crops")])
def test_probabilities_are_the_mean_over_models_and_views(models, photos, chosen, tta):
    predictor = Predictor([models[i] for i in chosen], tta)
    batches = list(predict_items(predictor, ((path, None) for path in photos), "cpu", batch_size=3, num_workers=0))
    logits = {head: torch.cat([batch.logits[head] for batch in batches]) for head in LABELS}
    probs = predictor.probs(logits)
    wanted = probs_one_by_one([models[i] for i in chosen], photos, tta)
    order = [models[chosen[0]].class_ids["model"].index(id_) for id_ in LABELS["model"]["ids"]]
    np.testing.assert_allclose(probs["make"].numpy(), wanted["make"], atol=2e-5)
    np.testing.assert_allclose(probs["model"].numpy()[:, order], wanted["model"], atol=2e-5)
    np.testing.assert_allclose(logits["speed"].numpy(), wanted["speed"], rtol=1e-4)
    assert probs["model"].std() > 0.05  # the predictions differ from photo to photo
    alone = len(chosen) == 1 and tta == "none"  # the logits themselves, so that a temperature can be fitted to them
    assert predictor.temperature == dict.fromkeys(("make", "model"), 2.0 if alone else 1.0)


def test_views_are_mirror_images_and_crops_of_the_corners_and_the_centre():
    size = 16
    picture = torch.arange(size * size, dtype=torch.float32).view(1, 1, size, size).expand(1, 3, size, size)
    assert len(views(picture, "none")) == 1
    whole, mirrored = views(picture, "flip")
    assert torch.equal(whole, picture) and torch.equal(mirrored, picture.flip(-1))
    crops = views(picture, "crops")
    side = round(CROP * size)
    assert len(crops) == 6 and all(crop.shape == picture.shape for crop in crops)
    far = size - side
    for crop, (top, left) in zip(crops[1:], [(0, 0), (0, far), (far, 0), (far, far), (1, 1)], strict=True):
        part = picture[..., top : top + side, left : left + side]
        assert abs(crop.mean() - part.mean()) < 0.5  # the picture is a plane, of which each crop has its own mean


def test_models_of_other_classes_are_refused(models, tmp_path):
    labels = {**LABELS, "make": {**LABELS["make"], "ids": ["3", "8"]}}
    other = load(tmp_path / "other", 0, models[0].preprocessing, labels)
    with pytest.raises(InputError, match=r"model 2 has other classes of make than the first.*'7'"):
        Predictor([models[0], other])
