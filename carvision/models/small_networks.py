"""Small networks that timm lacks, registered with it, so that every network is timm.create_model(name)."""

from typing import Any

from timm.models import register_model
from timm.models._builder import build_model_with_cfg
from timm.models._registry import generate_default_cfgs
from timm.models.resnet import BasicBlock, ResNet

default_cfgs = generate_default_cfgs({
    "resnet10_slim": {
        "num_classes": 1000, "input_size": (3, 64, 64), "pool_size": (2, 2), "crop_pct": 1.0,
        "interpolation": "bicubic", "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25),
        "first_conv": "conv1.0", "classifier": "fc",
    },
})  # fmt: skip


SLIM: dict[str, Any] = {
    "layers": (1, 1, 1, 1),
    "channels": (24, 48, 96, 192),
    "stem_type": "deep_tiered",
    "stem_width": 16,
    "avg_down": True,
}

# The same networks in timm's own words, for exports that open without carvision: {name: (architecture, arguments)}.
IN_TIMM = {"resnet10_slim": ("resnet18", SLIM)}


@register_model
def resnet10_slim(pretrained: bool = False, **kwargs) -> ResNet:
    """ResNet-10 with a deep stem and 24 to 192 channels: 0.7 million parameters, made for the demo data at 64 px.

    There are no pretrained weights.
    """
    arguments: dict[str, Any] = {"block": BasicBlock} | SLIM | kwargs
    return build_model_with_cfg(ResNet, "resnet10_slim", pretrained, **arguments)
