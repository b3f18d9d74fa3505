"""Networks that timm lacks, registered with it so that every network is timm.create_model(name): the reports' own and a
small one for the demo data; and which report used which network.

What a report put on top of the convolutions (neck, flatten, dense layers) belongs to the experiments' configuration:
model.neck, model.pool, model.trunk. Like timm's networks, these end in an average pool and a linear classifier, and
none has pretrained weights.
"""

from functools import partial
from typing import Any

from timm.layers import ClassifierHead
from timm.models import register_model
from timm.models._builder import build_model_with_cfg
from timm.models._registry import generate_default_cfgs
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

# The weights nearest to Keras' of the same name; R0 names its own
REPORTS = {
    "r0": tuple(f"tf_efficientnet_b{i}.ns_jft_in1k" for i in range(6)),
    "r1": (
        "alexnet", "vgg16.tv_in1k", "resnet50.tv_in1k", "densenet121.tv_in1k", "tf_efficientnet_b0.aa_in1k",
        "inception_v3.tf_in1k", "stanford_small_cnn",
    ),
    "r2": ("resnet50.tv_in1k", "vgg16.tv_in1k", "cars196_cnn"),
    "r3": ("mobilenetv2_100.ra_in1k",),
    "r4": (
        "mobilenetv2_100.ra_in1k", "vgg16.tv_in1k", "vgg19.tv_in1k", "inception_resnet_v2.tf_in1k",
        "mobilenetv1_100.ra4_e3600_r224_in1k", "legacy_xception.tf_in1k", "resnet50.tv_in1k", "inception_v3.tf_in1k",
        "densenet201.tv_in1k", "nasnetalarge.tf_in1k", "oxford102_benchmark",
    ),
}  # fmt: skip


class PlainCNN(nn.Module):
    """Layers in a row, then an average pool and a classifier. Initialised as Keras does (Glorot and Bengio 2010)."""

    def __init__(self, create_layers, in_chans=3, num_classes=1000, global_pool="avg", drop_rate=0.0):
        """create_layers: in_chans -> list of modules, whose last convolution has the channels of the feature map."""
        super().__init__()
        self.features = nn.Sequential(*create_layers(in_chans))
        self.num_classes = num_classes
        self.num_features = [m.out_channels for m in self.features.modules() if isinstance(m, nn.Conv2d)][-1]
        self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.head_hidden_size = self.head.num_features
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        self.head_hidden_size = self.head.num_features

    def forward_features(self, x: Tensor) -> Tensor:
        return self.features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _cfg(size_px: int, map_px: int) -> dict:
    """Return a pretrained_cfg with images in 0..1, as the reports fed them to networks without weights."""
    return {
        "num_classes": 1000, "input_size": (3, size_px, size_px), "pool_size": (map_px, map_px), "crop_pct": 1.0,
        "interpolation": "bilinear", "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0),
        "first_conv": "features.0", "classifier": "head.fc",
    }  # fmt: skip


default_cfgs = generate_default_cfgs({
    "alexnet": _cfg(224, 5),
    "stanford_small_cnn": _cfg(224, 14),
    "cars196_cnn": _cfg(224, 7),
    "oxford102_benchmark": _cfg(256, 30),
    "resnet10_slim": _cfg(64, 2) | {
        "interpolation": "bicubic", "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25),
        "first_conv": "conv1.0", "classifier": "fc",
    },
})  # fmt: skip


@register_model
def alexnet(pretrained: bool = False, spatial_drop_rate: float = 0.2, **kwargs) -> PlainCNN:
    """AlexNet of report R1: at 224 px -> (256, 5, 5).

    Derived from the report's total: Krizhevsky et al. 2012 in one stream, with batch norm after each of its five
    convolutions, each block of the neck twice and dense layers of 4096, 4096 and 196 units have exactly its
    47,605,796 parameters, and with spatial dropout in all five its 29 layers. The order is that in which the report
    lists the layers: convolution, spatial dropout, max pooling, batch norm.
    """

    def create_layers(in_chans: int) -> list[nn.Module]:
        layers = []
        for channels, kernel, stride, padding, pooled in (
            (96, 11, 4, 0, True), (256, 5, 1, 2, True), (384, 3, 1, 1, False), (384, 3, 1, 1, False),
            (256, 3, 1, 1, True),
        ):  # fmt: skip
            layers += [nn.Conv2d(in_chans, channels, kernel, stride, padding), nn.ReLU(inplace=True)]
            layers += [nn.Dropout2d(spatial_drop_rate)] if spatial_drop_rate else []
            layers += [nn.MaxPool2d(3, 2)] if pooled else []
            layers += [nn.BatchNorm2d(channels)]
            in_chans = channels
        return layers

    return build_model_with_cfg(PlainCNN, "alexnet", pretrained, create_layers=create_layers, **kwargs)


@register_model
def oxford102_benchmark(pretrained: bool = False, **kwargs) -> PlainCNN:
    """Benchmark of report R4 (its table 1): three unpadded convolutions of 3 x 3; at 256 px -> (64, 30, 30).

    With its flatten, 256 units and 102 classes it has the report's 14,800,710 parameters.
    """
    create_layers = partial(_conv_blocks, channels=(32, 32, 64), padding=0)
    return build_model_with_cfg(PlainCNN, "oxford102_benchmark", pretrained, create_layers=create_layers, **kwargs)


@register_model
def stanford_small_cnn(pretrained: bool = False, **kwargs) -> PlainCNN:
    """The "model1" of report R1, at 224 px -> (256, 14, 14).

    The report does not describe it. This is the usual first network: four blocks of a padded convolution of 3 x 3 that
    doubles the channels, relu, max pooling.
    """
    create_layers = partial(_conv_blocks, channels=(32, 64, 128, 256), padding=1)
    return build_model_with_cfg(PlainCNN, "stanford_small_cnn", pretrained, create_layers=create_layers, **kwargs)


@register_model
def cars196_cnn(pretrained: bool = False, **kwargs) -> PlainCNN:
    """Report R2's own network, at 224 px -> (512, 7, 7).

    The report does not print the notebook with its layers. It says: more channels and less space from block to block,
    leaky relu (Keras' slope 0.3), batch norm, then flatten and dense layers of decreasing width (the trunk).
    """
    create_layers = partial(_conv_blocks, channels=(32, 64, 128, 256, 512), padding=1, slope=0.3, batch_norm=True)
    return build_model_with_cfg(PlainCNN, "cars196_cnn", pretrained, create_layers=create_layers, **kwargs)


def _conv_blocks(in_chans: int, channels: tuple[int, ...], padding: int, slope: float = 0.0, batch_norm: bool = False):
    layers = []
    for num in channels:
        layers += [nn.Conv2d(in_chans, num, 3, padding=padding)]
        layers += [nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)]
        layers += [nn.BatchNorm2d(num)] if batch_norm else []
        layers += [nn.MaxPool2d(2)]
        in_chans = num
    return layers


SLIM: dict[str, Any] = {
    "layers": (1, 1, 1, 1), "channels": (24, 48, 96, 192), "stem_type": "deep_tiered", "stem_width": 16,
    "avg_down": True,
}  # fmt: skip

# The same network by timm's own names, for exports that open without carvision: {name: (architecture, arguments)}
IN_TIMM = {"resnet10_slim": ("resnet18", SLIM)}


@register_model
def resnet10_slim(pretrained: bool = False, **kwargs) -> ResNet:
    """ResNet-10 with a deep stem and 24 to 192 channels: 0.7 million parameters, made for the demo data at 64 px."""
    arguments: dict[str, Any] = {"block": BasicBlock} | SLIM | kwargs
    return build_model_with_cfg(ResNet, "resnet10_slim", pretrained, **arguments)
