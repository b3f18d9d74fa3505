"""The networks registered with timm, and the reports' totals of two of them."""

import pytest
import timm
import torch
from torch import nn

from carvision.models.classifier import Classifier, Head
from carvision.models.parts import Layers, Neck
from carvision.models.report_networks import REPORTS

MAPS = {  # size_px, feature map
    "alexnet": (224, (256, 5, 5)),
    "oxford102_benchmark": (256, (64, 30, 30)),
    "stanford_small_cnn": (224, (256, 14, 14)),
    "cars196_cnn": (224, (512, 7, 7)),
}


@pytest.mark.parametrize("name", MAPS)
def test_networks_behave_as_timms(name):
    size_px, shape = MAPS[name]
    cfg = timm.get_pretrained_cfg(name)
    assert cfg.input_size == (3, size_px, size_px) and cfg.pool_size == shape[1:] and not cfg.has_weights
    with torch.device("meta"):
        network, photos = timm.create_model(name), torch.zeros(2, 3, size_px, size_px)
        assert network.forward_features(photos).shape == (2, *shape)
        assert network(photos).shape == (2, 1000)
    assert isinstance(network.get_submodule(cfg.first_conv), nn.Conv2d)
    assert network.get_submodule(cfg.classifier) is network.get_classifier()
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0, in_chans=1).eval()
    photos = torch.randn(2, 1, 96, 96)
    pooled = network(photos)
    assert pooled.shape == (2, network.num_features)
    torch.testing.assert_close(network.forward_head(network.forward_features(photos)), pooled)
    network.reset_classifier(7, "catavgmax")
    assert network(photos).shape == (2, 7) and network.get_classifier().in_features == 2 * network.num_features


def test_the_reports_networks_exist_with_weights_where_the_report_has_them():
    for name in {name for names in REPORTS.values() for name in names}:
        plain, _, tag = name.partition(".")
        assert timm.is_model(plain)
        assert (plain in MAPS) == (not tag)
        assert bool(timm.get_pretrained_cfg(name).has_weights) == (plain not in MAPS)
        assert not tag or name in timm.list_models(f"{plain}.*", pretrained=True)


def keras_total(network: nn.Module) -> int:
    """Count the parameters, and the running means and variances, which Keras counts among them."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    return sum(p.numel() for p in network.parameters()) + sum(2 * norm.num_features for norm in norms)


def test_totals_and_layers_are_those_of_the_reports():
    neck = Neck(("attention", "se", "attention", "se"))
    with torch.device("meta"):  # without memory for the weights
        alexnet = Classifier("alexnet", {"a": Head(196)}, 224, None, "flatten", Layers((4096, 4096), 0.5), neck=neck)
        benchmark = Classifier("oxford102_benchmark", {"a": Head(102)}, 256, None, "flatten", Layers((256,), 0.5))
    assert (keras_total(alexnet), keras_total(benchmark)) == (47_605_796, 14_800_710)
    kinds = [type(module) for module in alexnet.backbone.modules()]
    counts = [kinds.count(kind) for kind in (nn.Conv2d, nn.Dropout2d, nn.MaxPool2d, nn.BatchNorm2d)]
    assert counts == [5, 5, 3, 5]
