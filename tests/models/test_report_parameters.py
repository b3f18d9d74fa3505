"""The totals of the reports, recomputed: Keras' base + our neck, trunk and head; and timm's bases against Keras'."""

from functools import cache

import pytest
import torch
from torch import nn

from carvision.models.classifier import Classifier, Head
from carvision.models.parts import NO_LAYERS, NO_NECK, Layers, Neck

# Keras' totals without the top (include_top=False), as its model summaries print them
KERAS = {
    "vgg16": 14_714_688,
    "vgg19": 20_024_384,
    "resnet50": 23_587_712,
    "densenet121": 7_037_504,
    "densenet201": 18_321_984,
    "tf_efficientnet_b0": 4_049_571,
    "inception_v3": 21_802_784,
    "inception_resnet_v2": 54_336_736,
    "mobilenetv2_100": 2_257_984,
    "mobilenetv1_100": 3_228_864,
    "legacy_xception": 20_861_480,
    "nasnetalarge": 84_916_818,
}
ONCE = Neck(("spatial_dropout", "attention", "se"))
TWICE = Neck(("spatial_dropout", "attention", "se", "attention", "se"))
DENSE = Layers((512,), dropout=0.5)


@cache
def network(backbone: str, num_classes: int, size_px: int, pool: str, trunk: Layers, neck: Neck) -> Classifier:
    """Built on the meta device, without memory for the weights: in a tenth of the time."""
    with torch.device("meta"):
        return Classifier(backbone, {"class": Head(num_classes)}, size_px, None, pool, trunk, neck=neck)


def num_trainable(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def num_statistics(*modules: nn.Module) -> int:
    """Running means and variances, which Keras counts among the parameters, as not trainable."""
    norms = [
        norm for module in modules for norm in module.modules() if isinstance(norm, nn.modules.batchnorm._NormBase)
    ]
    return sum(2 * norm.num_features for norm in norms if norm.track_running_stats)


def above_base(model: Classifier) -> list[nn.Module]:
    return [model.neck, model.trunk, model.get_submodule("head_class")]


@pytest.mark.parametrize(
    ("report", "backbone", "num_classes", "size_px", "pool", "trunk", "neck", "total", "trainable"),
    [
        ("R1 VGG16", "vgg16", 196, 224, "flatten", DENSE, TWICE, 27_859_652, None),
        ("R1 ResNet50", "resnet50", 196, 224, "avg", DENSE, TWICE, 27_892_036, None),
        ("R1 DenseNet121", "densenet121", 196, 224, "flatten", DENSE, ONCE, 33_224_132, 33_140_484),
        ("R1 ImageNet", "resnet50", 196, 224, "flatten", DENSE, TWICE, 78_223_684, 78_170_564),
        ("R1 EfficientNetB0", "tf_efficientnet_b0", 196, 224, "flatten", DENSE, TWICE, 37_497_671, 37_455_648),
        ("R1 InceptionV3", "inception_v3", 196, 224, "avg", DENSE, ONCE, 24_529_764, 24_495_332),
        ("R3", "mobilenetv2_100", 10, 160, "avg", Layers((64,), dropout=0.2), NO_NECK, 2_340_618, None),
    ],
)
def test_total_of_a_report_is_keras_base_and_what_stands_on_it(
    report, backbone, num_classes, size_px, pool, trunk, neck, total, trainable
):
    """Keras trains what timm has as parameters, but for the terms that `differences` names."""
    model = network(backbone, num_classes, size_px, pool, trunk, neck)
    assert KERAS[backbone] + num_trainable(*above_base(model)) + num_statistics(*above_base(model)) == total
    more = differences(backbone, model.backbone)
    assert num_trainable(model.backbone) + sum(more.values()) == KERAS[backbone]
    trained = num_trainable(model) + sum(n for name, n in more.items() if name not in NOT_TRAINED)
    assert trainable is None or trained == trainable


@pytest.mark.parametrize(
    "name", ["vgg19", "densenet201", "inception_resnet_v2", "mobilenetv1_100", "legacy_xception", "nasnetalarge"]
)
def test_timm_and_what_keras_counts_otherwise_is_keras_total(name):
    backbone = network(name, 2, 224, "avg", NO_LAYERS, NO_NECK).backbone
    assert num_trainable(backbone) + sum(differences(name, backbone).values()) == KERAS[name]


@pytest.mark.parametrize(
    ("report", "backbone", "num_classes", "size_px", "trunk", "neck", "total"),
    [
        # AlexNet's own spatial dropout stands between its convolutions
        ("R1 AlexNet", "alexnet", 196, 224, Layers((4096, 4096), 0.5), Neck(TWICE.blocks[1:]), 47_605_796),
        ("R4 benchmark", "oxford102_benchmark", 102, 256, Layers((256,), 0.5), NO_NECK, 14_800_710),
    ],
)
def test_total_of_a_network_without_keras_base(report, backbone, num_classes, size_px, trunk, neck, total):
    model = network(backbone, num_classes, size_px, "flatten", trunk, neck)
    assert num_trainable(model) + num_statistics(model) == total


def test_layers_of_alexnet_are_the_29_of_the_report():
    trunk, neck = Layers((4096, 4096), dropout=0.5), Neck(TWICE.blocks[1:])
    model = network("alexnet", 196, 224, "flatten", trunk, neck)
    count = {kind: sum(type(m) is kind for m in model.backbone.modules()) for kind in map(type, model.modules())}
    of_kinds = [count[kind] for kind in (nn.Conv2d, nn.Dropout2d, nn.MaxPool2d, nn.BatchNorm2d)]
    assert of_kinds == [5, 5, 3, 5]
    photos, flatten, dense, dropout, attention, se, custom = 1, 1, 3, 2, 1, 1, 2  # a "custom" holds one more block
    assert sum(of_kinds) + photos + flatten + dense + dropout + attention + se + custom == 29


def test_heads_of_r0():
    """Its text gives the layers of the baseline (B5: 2,048 features) and of the optimal network, for both tails."""
    baseline, tail = Layers((256, 256), dropout=0.25), Layers((128, 64), dropout=0.25)
    optimal, optimal_tail = Layers((512,), dropout=0.3, l2=1e-3), Layers((256,), dropout=0.3, l2=1e-3)
    expected = {
        True: 2048 * 256 + 256 + 256 * 256 + 256 + 2 * (256 * 128 + 128 + 128 * 64 + 64) + 65 * (163 + 1716),
        False: 2048 * 512 + 512 + 2 * (512 * 256 + 256) + 257 * (163 + 1716),
    }
    for is_baseline, total in expected.items():
        layers = tail if is_baseline else optimal_tail
        heads = {"make": Head(163, layers), "model": Head(1716, layers)}
        with torch.device("meta"):
            model = Classifier("tf_efficientnet_b5", heads, 224, trunk=baseline if is_baseline else optimal)
        assert num_trainable(model) - num_trainable(model.backbone) == total


STATISTICS = "running means and variances of batch norms"
PIXELS = "mean, variance and count of the layer that normalises the pixels"
NOT_TRAINED = (STATISTICS, PIXELS)


def differences(name: str, backbone: nn.Module) -> dict[str, int]:
    """What Keras counts more than timm does (less where negative), counted on timm's modules."""
    found = {STATISTICS: num_statistics(backbone)}
    if name == "resnet50":  # Keras' convolutions have biases, though a batch norm follows
        convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
        found["biases of convolutions"] = sum(conv.out_channels for conv in convolutions if conv.bias is None)
    if name.startswith("inception"):  # Keras' batch norms have no scale there
        norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
        found["scales of batch norms"] = -sum(norm.num_features for norm in norms)
    if "efficientnet" in name:  # Keras has it within the network
        found[PIXELS] = 3 + 3 + 1
    return found
