"""The embedding beside the heads: what it is made of, what learns from which loss, that it travels with the model."""

import json

import pytest
import torch

import carvision
from carvision.data.images import Preprocessing
from carvision.errors import InputError
from carvision.inference import model_file
from carvision.models.classifier import Classifier, Head, classifier_from
from carvision.models.parts import Embedding, Layers

LABELS = {"model": {"ids": ["1", "2", "9"], "names": ["A4", "X5", "X6"], "parent": None, "parent_codes": []}}


def network(trunk: tuple = (7,), layers: tuple = (5,), difference: tuple = (), proxies: int = 0) -> Classifier:
    torch.manual_seed(0)
    embedding = Embedding(Layers(layers, activation="none"), Layers(difference), proxies, 3 if proxies else 0)
    return Classifier("test_resnet", {"model": Head(3)}, 32, trunk=Layers(trunk), embedding=embedding).eval()


def save(model: Classifier, folder) -> Classifier:
    model_file.save(model, folder, LABELS, Preprocessing(32, (0.5,) * 3, (0.5,) * 3), "independent", {}, {})
    return model


def photos(num: int = 2) -> torch.Tensor:
    return torch.randn(num, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def slopes(model: Classifier, value: torch.Tensor) -> set[str]:
    """The parts of the network that learn from it."""
    model.zero_grad()
    value.backward()
    return {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def test_each_layer_is_what_the_parts_give():
    model, images = network(difference=(4,)), photos()
    pooled = model.backbone(images)
    trunk = model.trunk(pooled)[0]
    joined = torch.cat([trunk, model.embedding.difference(pooled)[0]], dim=1)
    expected = {"pooled": pooled, "trunk": trunk, "embedding": model.embedding.layers(joined)[0]}
    for layer, values in expected.items():
        torch.testing.assert_close(model.embed(images, layer), values)
    torch.testing.assert_close(model.outputs(images).embeddings, expected["embedding"])
    assert expected["embedding"].shape == (2, 5) and joined.shape == (2, 11)


@pytest.mark.parametrize(
    ("trunk", "layers", "last"),
    [((), (), "pooled"), ((7,), (), "trunk"), ((7,), (5,), "embedding"), ((), (5,), "embedding")],
)
def test_auto_is_the_last_part_that_has_layers(trunk, layers, last):
    model = network(trunk, layers)
    assert model.last_layer == last
    torch.testing.assert_close(model.embed(photos()), model.embed(photos(), last))


def test_without_layers_the_embedding_is_what_the_trunk_gives():
    model = network(layers=())
    torch.testing.assert_close(model.outputs(photos()).embeddings, model.embed(photos(), "trunk"))
    assert not any(True for _ in model.embedding.parameters())


def test_which_parts_learn_from_which_loss():
    model = network(difference=(4,), proxies=1)
    outputs = model.outputs(photos())
    assert slopes(model, outputs.logits["model"].sum()) == {"backbone", "trunk", "head_model"}
    assert slopes(model, model.outputs(photos()).embeddings.square().sum()) == {"backbone", "trunk", "embedding"}
    learning = {"backbone", "trunk", "embedding", "proxies"}
    assert slopes(model, model.outputs(photos()).cosines.square().sum()) == learning


def test_heads_that_are_probes_shape_nothing_below_them():
    model = network()
    model.heads_are_probes = True
    assert slopes(model, model.outputs(photos()).logits["model"].sum()) == {"head_model"}


def test_penalties_of_the_embedding_count():
    torch.manual_seed(0)
    embedding = Embedding(Layers((5,), l2=0.5), Layers((4,), l2=0.25))
    model = Classifier("test_resnet", {"model": Head(3)}, 32, embedding=embedding)
    weights = [model.embedding.layers.blocks[0][0].weight, model.embedding.difference.blocks[0][0].weight]
    expected = 0.5 * weights[0].square().sum() + 0.25 * weights[1].square().sum()
    torch.testing.assert_close(model.outputs(photos()).penalty, expected)


@pytest.mark.parametrize("parts", [{}, {"difference": (4,)}, {"proxies": 2}, {"trunk": (), "proxies": 1}])
def test_it_travels_with_the_model(tmp_path, parts):
    model = save(network(**parts), tmp_path)
    loaded = carvision.load(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for ours, theirs in zip(model.outputs(photos())[2:], loaded.outputs(photos())[2:], strict=True):
        torch.testing.assert_close(theirs, ours)
    torch.testing.assert_close(loaded(photos())["model"], model(photos())["model"])


def test_a_network_without_one_is_described_as_ever(tmp_path):
    plain = Classifier("test_resnet", {"model": Head(3)}, 32)
    assert "embedding" not in plain.description
    assert not any("embedding" in name or "proxies" in name for name in plain.state_dict())
    described = json.loads(json.dumps(network(difference=(4,), proxies=2).description))
    assert classifier_from(described).description == network(difference=(4,), proxies=2).description


def test_a_description_that_asks_for_more_memory_than_its_weights_is_refused(tmp_path):
    save(network(proxies=1), tmp_path)
    file = tmp_path / "model.json"
    for change in ({"layers": {"hidden": [10**9]}}, {"num_classes": 10**9}, {"proxies_per_class": 101}, {"odd": 1}):
        described = json.loads(file.read_text())
        described["network"]["embedding"] |= change
        file.write_text(json.dumps(described))
        with pytest.raises(InputError) as caught:
            carvision.load(tmp_path)
        assert "\n" not in str(caught.value)
