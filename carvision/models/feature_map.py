"""A backbone's feature map, and its layers that come after it."""

import logging

import torch
from torch import Tensor, nn

from carvision.models.backbones import Backbone

log = logging.getLogger(__name__)


@torch.no_grad()
def take_feature_map(backbone: Backbone, size_px: int) -> tuple[Tensor, list[str]]:
    """The feature map of one empty image, (1, C, H, W) or, where `has_channels_last`, (1, H, W, C); and the names of
    the largest modules with parameters that took no part in it. The backbone must be in eval mode.
    """
    called = set()
    hooks = [module.register_forward_hook(lambda module, *_: called.add(module)) for module in backbone.modules()]
    try:
        feature_map = backbone.forward_features(torch.zeros(1, 3, size_px, size_px))
    finally:
        for hook in hooks:
            hook.remove()
    return feature_map, _uncalled(backbone, called)


def _uncalled(module: nn.Module, called: set[nn.Module], prefix: str = "") -> list[str]:
    """Within a module that was called all counts as used: some read the weights of a layer without calling it."""
    found = []
    for name, child in module.named_children():
        if child in called or not any(True for _ in child.parameters()):
            continue
        within = called.intersection(child.modules())
        found += _uncalled(child, called, f"{prefix}{name}.") if within else [f"{prefix}{name}"]
    return found


def leave_out(backbone: Backbone, names: list[str], why: str) -> None:
    """Replace these modules, which nothing would use, so that they are neither counted, trained nor saved.

    backbone.left_out then names them, and weights for them are passed over, be they timm's or of an earlier run.
    """
    for name in names:
        parent, _, last = name.rpartition(".")
        setattr(backbone.get_submodule(parent), last, nn.Identity())
    backbone.left_out = tuple(names)
    if names:
        backbone.register_load_state_dict_pre_hook(_pass_over)
        log.info("%s: the backbone's layers after its feature map are left out: %s", why, ", ".join(names))


def _pass_over(backbone: Backbone, tensors: dict[str, Tensor], prefix: str, *_) -> None:
    for key in [key for key in tensors if key.startswith(tuple(f"{prefix}{name}." for name in backbone.left_out))]:
        del tensors[key]


def has_channels_last(backbone: nn.Module) -> bool:
    """Whether its feature maps are (B, H, W, C), as Swin's are."""
    return getattr(backbone, "output_fmt", "NCHW") == "NHWC"
