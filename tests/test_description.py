"""model.json may have been written by anyone: it opens, or is refused in one line that says what is wrong in it."""

import json
import operator

import numpy as np
import pytest

import carvision
from carvision.errors import InputError
from tests.inference.tiny import save_tiny
from tests.model_files import change, refusal, rewrite


@pytest.fixture
def saved(tmp_path):
    return save_tiny(tmp_path)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("preprocessing.size_px", 64, "network.size_px"),
        ("preprocessing.mean", [float("nan"), 0, 0], "not a number below"),
        ("preprocessing.std", [1e31, 1, 1], "not a number below"),
        ("network.heads.speed.std", None, "one of mean and std"),
        ("network.heads.speed.mean", 10**400, "not a number below"),
        ("network.heads.speed.std", float("inf"), "not a number below"),
        ("network.heads.make.mean", 1.0, "one of mean and std"),
        ("network.heads", {}, "no head"),
        ("network", {"size_px": 32}, "network.backbone is missing"),
        ("network.backbone_kwargs", {"drop_rate": [[10**400]]}, "not a number below"),
        ("labels", {}, "has no label"),
        ("labels.make.parent", "model", "parent_codes"),
        ("labels.model.parent", "speed", "has no classes"),
        ("labels.speed.parent", "make", "without a parent"),
        ("labels.speed", {"unit": "km/h"}, "std of a number"),
        ("labels.two\nlines", {"unit": ""}, "no such head"),
        ("weights.file", "a" * 300 + ".safetensors", "too long"),
        ("format", 10**400, "is newer than"),
        ("config", {"data": []}, "config.data"),
        ("config", {"data": "x"}, "config.data"),
        ("config", {"data": {"crop_to_box": "x"}}, "config.data.crop_to_box"),
        ("config", {"loss": None}, "config.loss"),
        ("config", {"seed": 10**400}, "not a number below"),
        ("metrics", {"test": [1]}, "metrics.test"),
        ("versions", {"carvision": 1}, "is not a mapping"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_line(saved, place, value, words):
    change(saved, place, value)
    assert words in refusal(saved)


def test_a_label_above_itself_is_refused(saved):
    change(saved, "labels.model.parent", "model")
    change(saved, "labels.model.parent_codes", [0, 1, 2])
    assert "is above itself" in refusal(saved)
    change(saved, "labels.model.parent", "make")
    change(saved, "labels.model.parent_codes", [0, 1, 1])
    change(saved, "labels.make.parent", "model")
    change(saved, "labels.make.parent_codes", [0, 1])
    assert "is above itself" in refusal(saved)


def test_what_was_not_told_is_empty_and_figures_may_be_no_numbers(saved):
    file = saved / "model.json"
    described = json.loads(file.read_text())
    for key in ("config", "metrics", "versions"):
        del described[key]
    file.write_text(json.dumps(described))
    about = carvision.load(saved).about
    assert about["config"] == about["metrics"] == about["versions"] == {}
    rewrite(saved, metrics={"val": {"loss": float("nan")}}, config={"trainer": {"gradient_clip_val": float("inf")}})
    assert np.isnan(carvision.load(saved).about["metrics"]["val"]["loss"])  # of a run that diverged


def _places(value, above=()):
    """Of all that a description holds, at every depth: the keys and list positions that lead there."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*above, key)
        yield from _places(each, (*above, key))


def _with(description: dict, place: tuple, change) -> dict:
    """A copy in which change(mapping or list, key) was done at a place."""
    described = json.loads(json.dumps(description))
    inner = described
    for key in place[:-1]:
        inner = inner[key]
    change(inner, place[-1])
    return described


ODD = [None, -1, 10**400, float("nan"), "x", "a\nb" * 200, [], {}, True, [None], [[[1]], "x"], {"a\nb": {"": []}}]


def test_whatever_a_description_holds_it_loads_or_is_refused_in_one_line(saved):
    """Each value in turn is left out, or replaced by one of another kind."""
    file = saved / "model.json"
    original = json.loads(file.read_text())
    original["temperature"] = {"make": 1.5}
    original["network"]["backbone_kwargs"] = {"drop_rate": 0.1}
    original["config"] = {"data": {"crop_to_box": False}, "loss": {"name": "cross_entropy"}}
    places = list(_places(original))
    changes = [lambda inner, key: inner.pop(key)]
    changes += [lambda inner, key, odd=odd: operator.setitem(inner, key, odd) for odd in ODD]
    num_refused = 0
    for turn, place in enumerate(places):
        for number, other in enumerate(changes[turn % 2 :: 2]):  # half of them, in turn: all would take ten seconds
            file.write_text(json.dumps(_with(original, place, other)))
            try:
                carvision.load(saved)
            except InputError as error:
                assert "\n" not in str(error) and len(str(error)) < 1200, (place, number)
                num_refused += 1
    assert num_refused > 0.75 * len(places) * len(changes) / 2
