"""model.json may have been written by anyone: it is loaded, or refused in one line that says what is wrong with it."""

import copy
import functools
import json
import operator
import shutil

import numpy as np
import pytest

import carvision
from carvision.errors import InputError
from carvision.inference import model_file
from carvision.models import backbones
from tests.inference.tiny import change, refusal, rewrite, save_tiny


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("original"))


@pytest.fixture
def saved(original, tmp_path):
    """Copy a saved model: saving waits for the disk."""
    return shutil.copytree(original, tmp_path / "run")


@pytest.mark.parametrize(("key", "value", "words"), [
    ("weights.file", "..\\model.safetensors", "same folder"), ("format", 10**400, "is newer than"),
    ("network", {"pool": "avg"}, "network.backbone is missing"),
    ("network.backbone", "local-dir:/tmp/evil", "no model of timm"),
    ("network.backbone_kwargs", {"checkpoint_path": "/tmp/evil.pth"}, "no argument of the network itself"),
    ("network.heads", {}, "no head"), ("network.heads.make.layers.hidden", [10**12], "no weights of that size"),
    ("network.trunk.surprise", 1, "no part of format"), ("network.pool", "__import__('os')", "is not one of"),
    ("labels", {}, "has no label"), ("labels.make.ids", ["3", "3"], "different ids"),
    ("labels.make.names", ["Audi"], "1 names"), ("labels.model.parent", "speed", "has no classes"),
    ("labels.model.parent_codes", [0, 1, 9], "parent_codes"), ("labels.speed", {"unit": "km/h"}, "std of a number"),
    ("labels.two\nlines", {"unit": ""}, "no such head"), ("preprocessing.std", [1e31, 1, 1], "not a number below"),
    ("network.neck.blocks", ["se"] * 100, "more parameters than the weights leave room for"),
    ("temperature", {"make": -1}, "is not a mapping"), ("operating_points", {"make": [{}]}, "keys accuracy, threshold"),
    ("operating_points", {"make": [{"accuracy": 0.9, "threshold": 1.5, "coverage": 1}]}, "threshold is a number"),
    ("metrics", {"test": [1]}, "metrics.test"),
])  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(saved, key, value, words):
    change(saved, key, value)
    assert words in refusal(saved)


def test_missing_parts_are_empty_and_metrics_may_be_nan(saved):
    file = saved / "model.json"
    described = json.loads(file.read_text())
    for key in ("config", "metrics", "versions"):
        del described[key]
    file.write_text(json.dumps(described))
    about = carvision.load(saved).about
    assert about["config"] == about["metrics"] == about["versions"] == {}
    rewrite(saved, metrics={"val": {"loss": float("nan")}}, config={"trainer": {"gradient_clip_val": float("inf")}})
    assert np.isnan(carvision.load(saved).about["metrics"]["val"]["loss"])  # of a run that diverged


def paths_in(value, above=()):
    """Yield the keys and list indices that lead to each value of a description, at every depth."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*above, key)
        yield from paths_in(each, (*above, key))


ODD = [None, -1, 10**400, float("nan"), "x", "a\nb" * 200, [], {}, True, [None], [[[1]], "x"], {"a\nb": {"": []}}]


def test_any_description_is_loaded_or_refused_in_one_line(saved):
    """Each value in turn is left out, or replaced by one of another kind."""
    file = saved / "model.json"
    original = json.loads(file.read_text())
    original["temperature"] = {"make": 1.5}
    original["operating_points"] = {"make": [{"accuracy": 0.9, "threshold": 0.5, "coverage": 0.75}]}
    original["network"]["backbone_kwargs"] = {"drop_rate": 0.1}
    original["config"] = {"data": {"crop_to_box": False}, "loss": {"name": "cross_entropy"}}
    paths = list(paths_in(original))
    changes = [lambda inner, key: inner.pop(key)]
    changes += [lambda inner, key, odd=odd: operator.setitem(inner, key, odd) for odd in ODD]
    num_refused = 0
    for turn, path in enumerate(paths):
        for number, other in enumerate(changes[turn % 2 :: 2]):  # half of them, in turn: all would take ten seconds
            described = copy.deepcopy(original)
            other(functools.reduce(operator.getitem, path[:-1], described), path[-1])
            file.write_text(json.dumps(described))
            try:
                carvision.load(saved)
            except InputError as error:
                assert "\n" not in str(error) and len(str(error)) < 1200, (path, number)
                num_refused += 1
    assert num_refused > 0.75 * len(paths) * len(changes) / 2


HUGE_NETWORKS = {
    "depth_multiplier": ("network.backbone_kwargs", {"depth_multiplier": 1e7}),
    "long lists": ("network.backbone_kwargs", {"layers": [9999] * 900}),
    "giant": ("network.backbone", "vit_giant_patch14_224"),
    "neck": ("network.neck.blocks", ["spatial_dropout"] * 100_000),
    "trunk": ("network.trunk.hidden", [32] * 100_000), "squared": ("network.trunk.hidden", [2000, 2000]),
    "proxies": ("network.embedding", {"num_classes": 10**7, "proxies_per_class": 100}),
    "classes": ("labels.make.ids", [str(i) for i in range(300_000)]),
    "keys": ("metrics", {str(i): 1 for i in range(1_100_000)}), "long": ("metrics", {"a" * 17_000_000: 1}),
}  # fmt: skip


@pytest.mark.parametrize("what", HUGE_NETWORKS)
def test_networks_larger_than_their_weights_are_never_built(saved, what, monkeypatch):
    change(saved, *HUGE_NETWORKS[what])
    monkeypatch.setattr(model_file, "load_file", None)  # before the weights are read
    refused = refusal(saved)
    assert len(refused) < 1200 and "NoneType" not in refused


def test_a_weights_file_of_too_many_tensors_is_refused(saved, monkeypatch):
    monkeypatch.setattr(backbones, "MAX_TENSORS", 5)
    assert "tensors are more than the 5 allowed" in refusal(saved)
    with pytest.raises(InputError, match=r"model.weights: .*tensors are more than the 5 allowed"):
        backbones.read_weights(saved)
    monkeypatch.setattr(backbones, "MAX_HEADER_BYTES", 100)
    assert "its header has more than the 0 MB allowed" in refusal(saved)
