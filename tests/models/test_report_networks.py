"""The networks registered with timm, the list of them, and the totals of the reports: Keras' base + what we add."""

import pytest
import timm
import torch
from torch import nn

from carvision.errors import InputError
from carvision.models.__main__ import matching_names, row_of, show
from carvision.models.classifier import Classifier, Head
from carvision.models.parts import NO_NECK, Layers, Neck
from carvision.models.report_networks import REPORTS

MAPS = {  # size_px, feature map
    "alexnet": (224, (256, 5, 5)), "oxford102_benchmark": (256, (64, 30, 30)),
    "stanford_small_cnn": (224, (256, 14, 14)), "cars196_cnn": (224, (512, 7, 7)),
}  # fmt: skip
# Keras' totals without the top (include_top=False), as its model summaries print them
KERAS = {
    "vgg16": 14_714_688, "resnet50": 23_587_712, "densenet121": 7_037_504, "tf_efficientnet_b0": 4_049_571,
    "inception_v3": 21_802_784, "mobilenetv2_100": 2_257_984,
}  # fmt: skip
ONCE = Neck(("spatial_dropout", "attention", "se"))
TWICE = Neck(("spatial_dropout", "attention", "se", "attention", "se"))
DENSE = Layers((512,), dropout=0.5)


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
    pooled.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert network.features[0].weight.grad.abs().sum() > 0
    assert pooled.shape == (2, network.num_features)
    torch.testing.assert_close(network.forward_head(network.forward_features(photos)), pooled)
    network.reset_classifier(7, "catavgmax")
    assert network(photos).shape == (2, 7) and network.get_classifier().in_features == 2 * network.num_features


def test_layers_that_only_some_of_the_networks_have():
    for rate, count in ((0.2, 5), (0.5, 5), (0.0, 0)):
        drops = [m.p for m in timm.create_model("alexnet", spatial_drop_rate=rate).modules() if type(m) is nn.Dropout2d]
        assert drops == [rate] * count
    assert timm.create_model("alexnet").features[2].p == 0.2
    layers = timm.create_model("cars196_cnn").features
    assert [type(layer) for layer in layers] == [nn.Conv2d, nn.LeakyReLU, nn.BatchNorm2d, nn.MaxPool2d] * 5


def network(backbone: str, num_classes: int, size_px: int, pool: str, trunk: Layers, neck: Neck) -> Classifier:
    """Built on the meta device, without memory for the weights: in a tenth of the time."""
    with torch.device("meta"):
        return Classifier(backbone, {"class": Head(num_classes)}, size_px, None, pool, trunk, neck=neck)


def num_parameters(*modules: nn.Module) -> int:
    """Count as Keras does: also running means and variances, as parameters that are not trainable."""
    norms = [m for module in modules for m in module.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    statistics = sum(2 * norm.num_features for norm in norms if norm.track_running_stats)
    return statistics + sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize(("backbone", "arguments", "total"), [
    ("vgg16", (196, 224, "flatten", DENSE, TWICE), 27_859_652),  # R1 but for the last
    ("resnet50", (196, 224, "avg", DENSE, TWICE), 27_892_036),
    ("densenet121", (196, 224, "flatten", DENSE, ONCE), 33_224_132),
    ("resnet50", (196, 224, "flatten", DENSE, TWICE), 78_223_684),
    ("tf_efficientnet_b0", (196, 224, "flatten", DENSE, TWICE), 37_497_671),
    ("inception_v3", (196, 224, "avg", DENSE, ONCE), 24_529_764),
    ("mobilenetv2_100", (10, 160, "avg", Layers((64,), dropout=0.2), NO_NECK), 2_340_618),  # R3
])  # fmt: skip
def test_total_of_a_report_is_keras_base_and_what_stands_on_it(backbone, arguments, total):
    model = network(backbone, *arguments)
    assert KERAS[backbone] + num_parameters(model.neck, model.trunk, model.get_submodule("head_class")) == total


def test_totals_of_networks_without_keras_base():
    neck = Neck(TWICE.blocks[1:])  # AlexNet's own spatial dropout stands between its convolutions
    alexnet = network("alexnet", 196, 224, "flatten", Layers((4096, 4096), 0.5), neck)
    assert num_parameters(alexnet) == 47_605_796
    benchmark = network("oxford102_benchmark", 102, 256, "flatten", Layers((256,), 0.5), NO_NECK)
    assert num_parameters(benchmark) == 14_800_710


def names(*words: str, report=None, pretrained=False, tags=False) -> list[str]:
    return matching_names(list(words), report, pretrained, tags)


def test_words_tags_and_reports_narrow_the_list_and_the_reports_networks_exist():
    for name in {name for listed in REPORTS.values() for name in listed}:
        plain, _, tag = name.partition(".")
        assert timm.is_model(plain) and (plain in MAPS) == (not tag)
        assert bool(timm.get_pretrained_cfg(name).has_weights) == (plain not in MAPS)
        assert not tag or name in timm.list_models(f"{plain}.*", pretrained=True)
    assert len(names()) > 1000
    assert {"resnet50", "seresnet50", "alexnet", "oxford102_benchmark", "cars196_cnn", "resnet10_slim"} <= set(names())
    assert all("resnet" in name and "50" in name for name in names("ResNet", "50"))
    assert names("resnet5?") == ["resnet50"] and names("oxford102") == ["oxford102_benchmark"]
    assert set(names("test_", pretrained=True)) <= set(names("test_"))
    assert "resnet50.tv_in1k" in names("resnet50", tags=True) and "alexnet" in names("alexnet", tags=True)
    assert names("small", report="r1") == ["stanford_small_cnn"] and len(names(report="r1", pretrained=True)) == 5
    with pytest.raises(InputError, match="no network is left of convnext --report r4 --pretrained"):
        names("convnext", report="r4", pretrained=True)
    assert row_of("resnet50")[3].startswith("a1_in1k (+")
    assert row_of("resnet50.tv_in1k") == ("resnet50.tv_in1k", "23.51", "224", "yes", "R1 R2 R4")


def test_large_networks_and_long_lists_are_cut(capsys):
    show(["vgg16", "resnet50", "mobilenetv2_100", "mobilenetv1_100"], 30.0, 2)
    done = capsys.readouterr()
    assert [line.split()[0] for line in done.out.splitlines()] == ["network", "resnet50", "mobilenetv2_100"]
    assert done.err == "the first 2; more words narrow the list, --limit 0 shows all of it\n"


def test_the_command_without_a_match_ends_with_one_line(run_forked):
    done = run_forked("carvision.models", "mobilnetv2_100", check=1)
    assert done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: no network is named like mobilnetv2_100; nearest: mobilenetv2_100")
