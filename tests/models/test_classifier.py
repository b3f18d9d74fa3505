"""Classifier: heads, pools, penalties, the embedding beside the heads, and their description."""

import json

import pytest
import torch

from carvision.errors import InputError
from carvision.models.classifier import Classifier, Head, classifier_from
from carvision.models.parts import Embedding, Layers, Neck


def images(num: int = 4, size_px: int = 32) -> torch.Tensor:
    return torch.randn(num, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))


def network(trunk: tuple = (7,), layers: tuple = (5,), difference: tuple = (), proxies: int = 0) -> Classifier:
    torch.manual_seed(0)
    embedding = Embedding(Layers(layers, activation="none"), Layers(difference), proxies, 3 if proxies else 0)
    return Classifier("test_resnet", {"model": Head(3)}, 32, trunk=Layers(trunk), embedding=embedding).eval()


def assert_same_outputs(model: Classifier, other: Classifier, size_px: int = 32) -> None:
    ours, theirs = (each.eval().outputs(images(size_px=size_px)) for each in (model, other))
    assert list(ours.logits) == list(theirs.logits) == list(model.labels)
    torch.testing.assert_close(theirs.logits, ours.logits, rtol=0, atol=0)
    torch.testing.assert_close(tuple(theirs)[1:3], tuple(ours)[1:3], rtol=0, atol=0)
    assert ours.cosines is theirs.cosines or torch.equal(ours.cosines, theirs.cosines)


def test_any_number_of_heads_under_any_name():
    torch.manual_seed(0)
    labels = ["a.b", "a_b", "a%2Eb", "a b", "forward", "train"]
    model = Classifier("test_resnet", {name: Head(i + 2) for i, name in enumerate(labels)}, 32).eval()
    logits = model(images())
    assert {name: values.shape for name, values in logits.items()} == {n: (4, i + 2) for i, n in enumerate(labels)}
    other = classifier_from(model.description)
    other.load_state_dict(model.state_dict())
    assert_same_outputs(model, other)


def test_the_penalties_of_all_layers_are_added():
    """Each is Keras' formula: test_parts.py."""
    torch.manual_seed(0)
    trunk = Layers(hidden=(8, 6), l2=0.01, activity_l1=0.002, batch_norm=True, dropout=0.5, activation="tanh")
    heads = {"make": Head(3), "model": Head(7, Layers(hidden=(5,), l2=0.3, activation="none", activity_l1=0.07))}
    embedding = Embedding(Layers((5,), l2=0.5), Layers((4,), l2=0.25))
    model = Classifier("test_resnet", heads, 32, trunk=trunk, embedding=embedding).double().eval()
    photos = images().double()
    pooled = model.features(photos)
    x, expected = model.trunk(pooled)
    expected = expected + model.get_submodule("head_model").layers(x)[1]
    for part, l2 in ((model.embedding.layers, 0.5), (model.embedding.difference, 0.25)):
        expected = expected + l2 * part.blocks[0][0].weight.square().sum()
    torch.testing.assert_close(model.outputs(photos).penalty, expected)


POOLS = {
    "default": lambda maps: maps.mean((2, 3)), "avg": lambda maps: maps.mean((2, 3)),
    "max": lambda maps: maps.amax((2, 3)), "avgmax": lambda maps: 0.5 * (maps.mean((2, 3)) + maps.amax((2, 3))),
    "catavgmax": lambda maps: torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1),
    "flatten": lambda maps: maps.reshape(len(maps), -1),
    "gem": lambda maps: maps.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3),
}  # fmt: skip


@pytest.mark.parametrize(("backbone", "pool"), [
    *(("test_resnet", p) for p in POOLS), *(("test_mambaout", p) for p in POOLS if p != "default")
])  # fmt: skip
def test_pools(backbone, pool):
    model = Classifier(backbone, {"class": Head(2)}, 64, pool=pool).eval()
    photos = images(num=2, size_px=64)
    maps = model.backbone.forward_features(photos)
    if backbone == "test_resnet":
        assert maps.shape == (2, 96, 2, 2)
        expected = POOLS[pool](maps)
    else:  # channels last
        expected = maps.flatten(1) if pool == "flatten" else POOLS[pool](maps.permute(0, 3, 1, 2))
    torch.testing.assert_close(model.features(photos), expected)
    assert model.get_submodule("head_class").output.in_features == expected.shape[1]


@pytest.mark.parametrize(("arguments", "message"), [
    ({"pool": "gem"}, "model.pool: 'gem' needs a feature map, and test_vit gives tokens; use default"),
    ({"neck": Neck(("se",))}, r"model.neck: it needs a feature map, .* use model.neck=\[\]"),
    ({"size_px": 33, "backbone_kwargs": {"img_size": 32}}, "data.image_px: test_vit does not take images of 33 px"),
])  # fmt: skip
def test_what_does_not_fit_the_backbone_is_one_line(arguments, message):
    with pytest.raises(InputError, match=message):
        Classifier("test_vit", {"class": Head(2)}, **{"size_px": 32} | arguments)


def test_a_number_is_given_in_its_own_unit():
    torch.manual_seed(0)
    heads = {"class": Head(3), "speed": Head(1, mean=220.0, std=35.0)}
    model = Classifier("test_resnet", heads, 32).eval()
    head, logits, pooled = model.get_submodule("head_speed"), model(images()), model.features(images())
    torch.testing.assert_close(logits["speed"], head["output"](pooled) * 35 + 220)
    torch.testing.assert_close(logits["class"], model.get_submodule("head_class")["output"](pooled))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_numbers_survive_mixed_precision(dtype):
    """A price of 150,003 is beyond float16, and bfloat16 has three digits."""
    model = Classifier("test_resnet", {"price": Head(1, mean=150_003.0, std=1.0)}, 32).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype):
        estimates = model(images())["price"]
    assert (estimates - 150_003).abs().max() < 50


def test_description_goes_through_json():
    torch.manual_seed(0)
    heads = {"make": Head(3, Layers(hidden=(5, 4), dropout=0.1)), "speed": Head(1, mean=220.0, std=35.0)}
    trunk = Layers(hidden=(8,), activation="gelu", batch_norm=True, bias=False, l2=0.1, activity_l1=0.2)
    neck = Neck(("se", "spatial_dropout"), dropout=0.3, se_reduction=4)
    model = Classifier("test_resnet", heads, 48, {"stem_width": 24}, "gem", trunk, "none", neck=neck)
    assert model.backbone.conv1[0].out_channels == 24
    assert "embedding" not in model.description and not any("embedding" in name for name in model.state_dict())
    other = classifier_from(json.loads(json.dumps(model.description)))
    assert json.dumps(other.description) == json.dumps(model.description)
    other.load_state_dict(model.state_dict())
    assert_same_outputs(model, other, 48)
    embedding = network(difference=(4,), proxies=2)
    described = json.loads(json.dumps(embedding.description))
    other = classifier_from(described)
    other.load_state_dict(embedding.state_dict())
    assert other.description == embedding.description
    assert_same_outputs(embedding, other)
    del described["neck"], described["trunk"]["activation_slope"]  # as earlier versions wrote it
    assert len(classifier_from(described).neck) == 0


def test_each_embedding_is_the_output_of_its_part_and_auto_of_the_last_with_layers():
    model, photos = network(difference=(4,)), images()
    pooled = model.backbone(photos)
    trunk = model.trunk(pooled)[0]
    joined = torch.cat([trunk, model.embedding.difference(pooled)[0]], dim=1)
    expected = {"pooled": pooled, "trunk": trunk, "embedding": model.embedding.layers(joined)[0]}
    for layer, values in expected.items():
        torch.testing.assert_close(model.embed(photos, layer), values)
    torch.testing.assert_close(model.outputs(photos).embeddings, expected["embedding"])
    assert expected["embedding"].shape == (4, 5) and joined.shape == (4, 11)
    for trunk, layers, last in (((), (), "pooled"), ((7,), (), "trunk"), ((), (5,), "embedding")):
        model = network(trunk, layers)
        assert model.last_layer == last
        torch.testing.assert_close(model.embed(photos), model.embed(photos, last))


def learning(model: Classifier, value: torch.Tensor) -> set[str]:
    """Return the parts of the network that learn from it."""
    model.zero_grad()
    value.sum().backward()
    return {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def test_which_parts_learn_from_which_loss():
    model = network(difference=(4,), proxies=1)
    assert learning(model, model.outputs(images()).logits["model"]) == {"backbone", "trunk", "head_model"}
    shared = {"backbone", "trunk", "embedding"}
    assert learning(model, model.outputs(images()).embeddings.square()) == shared
    assert learning(model, model.outputs(images()).cosines.square()) == shared | {"proxies"}
    model.heads_are_probes = True
    assert learning(model, model.outputs(images()).logits["model"]) == {"head_model"}
