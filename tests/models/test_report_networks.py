"""The networks registered with timm: shapes, a training step, and what timm expects of a network."""

import json

import pytest
import timm
import torch
from torch import nn

from carvision.models.classifier import Classifier, Head, classifier_from
from carvision.models.parts import Layers
from carvision.models.report_networks import REPORTS

MAPS = {  # size_px, feature map
    "alexnet": (224, (256, 5, 5)),
    "oxford102_benchmark": (256, (64, 30, 30)),
    "stanford_small_cnn": (224, (256, 14, 14)),
    "cars196_cnn": (224, (512, 7, 7)),
}


@pytest.mark.parametrize("name", MAPS)
def test_feature_map_at_its_own_size(name):
    size_px, shape = MAPS[name]
    cfg = timm.get_pretrained_cfg(name)
    assert cfg.input_size == (3, size_px, size_px) and cfg.pool_size == shape[1:] and not cfg.has_weights
    with torch.device("meta"):
        network = timm.create_model(name)
        photos = torch.zeros(2, 3, size_px, size_px)
        assert network.forward_features(photos).shape == (2, *shape)
        assert network(photos).shape == (2, 1000)
    assert isinstance(network.get_submodule(cfg.first_conv), nn.Conv2d)
    assert network.get_submodule(cfg.classifier) is network.get_classifier()


@pytest.mark.parametrize("name", MAPS)
def test_networks_do_as_timms(name):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0, in_chans=1).eval()
    photos = torch.randn(2, 1, 96, 96)
    pooled = network(photos)
    assert pooled.shape == (2, network.num_features)
    torch.testing.assert_close(network.forward_head(network.forward_features(photos)), pooled)
    network.reset_classifier(7)
    assert network(photos).shape == (2, 7)
    torch.testing.assert_close(network.forward_head(network.forward_features(photos), pre_logits=True), pooled)
    network.reset_classifier(7, "catavgmax")
    assert network.get_classifier().in_features == 2 * network.num_features


@pytest.mark.parametrize("name", MAPS)
def test_a_step_trains_all_of_it_and_it_can_be_saved(name):
    torch.manual_seed(0)
    trunk = Layers((8,), activation="leaky_relu", activation_slope=0.3, batch_norm="keras")
    model = Classifier(name, {"class": Head(3)}, 96, pool="flatten", trunk=trunk)
    photos = torch.rand(4, 3, 96, 96)
    model(photos)["class"].square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.backbone.features[0].weight.grad.abs().sum() > 0
    other = classifier_from(json.loads(json.dumps(model.description)))
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.eval()(photos), model.eval()(photos))


def test_spatial_dropout_of_alexnet_is_its_argument():
    for rate, count in ((0.2, 5), (0.5, 5), (0.0, 0)):
        drops = [m.p for m in timm.create_model("alexnet", spatial_drop_rate=rate).modules() if type(m) is nn.Dropout2d]
        assert drops == [rate] * count
    assert timm.create_model("alexnet").features[2].p == 0.2


def test_slope_and_norms_of_the_network_of_r2():
    kinds = [type(layer) for layer in timm.create_model("cars196_cnn").features]
    assert kinds == [nn.Conv2d, nn.LeakyReLU, nn.BatchNorm2d, nn.MaxPool2d] * 5
    assert timm.create_model("cars196_cnn").features[1].negative_slope == 0.3


def test_every_network_of_the_reports_is_there_with_weights_where_the_report_has_them():
    own = {"alexnet", "oxford102_benchmark", "stanford_small_cnn", "cars196_cnn"}
    for names in REPORTS.values():
        for name in names:
            plain, _, tag = name.partition(".")
            assert timm.is_model(plain)
            assert (plain in own) == (not tag)
            assert bool(timm.get_pretrained_cfg(name).has_weights) == (plain not in own)
            assert not tag or name in timm.list_models(pretrained=True)
