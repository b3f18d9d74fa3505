"""What comes after a backbone's feature map is used with the backbone's own pool, and left out with others."""

import pytest
import timm
import torch
from torch import nn

from carvision.errors import InputError
from carvision.models.backbones import load_backbone_weights
from carvision.models.classifier import Classifier, Head, classifier_from
from carvision.models.parts import ChannelGate, Neck

AFTER = {  # small networks, and what they have after the feature map
    "test_resnet": (),
    "test_convnext": ("head",),  # a norm
    "test_mambaout": ("head",),  # channels last
    "mobilenetv3_small_050": ("conv_head",),
    "test_efficientnet": (),
    "swin_tiny_patch4_window7_224": (),
}
NECK = Neck(("spatial_dropout", "attention", "se"))


def create(backbone: str, **kwargs) -> Classifier:
    torch.manual_seed(0)
    return Classifier(backbone, {"class": Head(2)}, 64, **kwargs)


def photos() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def unused(model: Classifier) -> list[str]:
    """Names of parameters that the loss does not depend on."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss = model.eval()(photos())["class"].square().sum()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]


@pytest.mark.parametrize("backbone", AFTER)
def test_no_layer_is_left_unused(backbone):
    small = {"depths": (1,) * 4, "embed_dim": 24, "num_heads": (1, 2, 4, 8)} if "swin" in backbone else {}
    with_pool = create(backbone, pool="gem", neck=NECK, backbone_kwargs=small)
    assert with_pool.backbone.left_out == AFTER[backbone]
    assert unused(with_pool) == []
    own_pool = create(backbone, neck=NECK, backbone_kwargs=small)
    assert unused(own_pool) == []
    assert not hasattr(own_pool.backbone, "left_out")
    whole = timm.create_model(backbone, num_classes=0, **({"img_size": 64, **small} if small else {}))
    assert own_pool.backbone.state_dict().keys() == whole.state_dict().keys()


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "test_mambaout"])
def test_the_neck_stands_between_feature_map_and_own_pool(backbone):
    model = create(backbone, neck=Neck(("attention",))).eval()
    feature_map = model.backbone.forward_features(photos())
    gate = model.neck[0]
    channels = -1 if backbone == "test_mambaout" else 1
    dims = (1, 2) if channels == -1 else (2, 3)
    weights = gate.expand(gate.reduce(feature_map.mean(dims)).relu()).sigmoid()
    weights = weights[:, None, None, :] if channels == -1 else weights[:, :, None, None]
    expected = model.backbone.forward_head(feature_map * weights)
    torch.testing.assert_close(model.features(photos()), expected)
    assert not torch.allclose(model.features(photos()), model.backbone(photos()))
    assert gate.reduce.in_features == feature_map.shape[channels]


def test_vgg_is_keras_without_its_top():
    with torch.device("meta"):
        model = Classifier("vgg16", {"class": Head(2)}, 224, pool="flatten")
        own = Classifier("vgg16", {"class": Head(2)}, 224)
    assert model.trunk.num_outputs == 512 * 7 * 7
    assert sum(p.numel() for p in model.backbone.parameters()) == 14_714_688
    assert own.trunk.num_outputs == 4096


def test_a_neck_on_tokens_is_one_line():
    with pytest.raises(
        InputError, match=r"model\.neck: it needs a feature map, and test_vit gives tokens; use model\.neck=\[\]"
    ):
        create("test_vit", neck=NECK)


def test_feature_maps_of_several_sizes_are_one_line(monkeypatch):
    monkeypatch.setattr(timm.models.ResNet, "forward_features", lambda self, x: [x, x])
    with pytest.raises(InputError, match=r"model\.pool: 'max' needs a feature map"):
        create("test_resnet", pool="max")


def test_weights_of_the_whole_network_load_without_what_is_left_out(caplog):
    """timm's files and runs of former versions hold the layers after the feature map too."""
    with caplog.at_level("INFO"):
        model = create("mobilenetv3_small_050", pool="avg")
    assert "layers after its feature map are left out: conv_head" in caplog.text
    torch.manual_seed(1)
    whole = timm.create_model("mobilenetv3_small_050", num_classes=10)
    load_backbone_weights(model.backbone, whole.state_dict(), "file")
    torch.testing.assert_close(model.backbone.conv_stem.weight, whole.conv_stem.weight)
    former = model.state_dict() | {"backbone.conv_head.weight": whole.conv_head.weight}
    assert create("mobilenetv3_small_050", pool="avg").load_state_dict(former).missing_keys == []
    with pytest.raises(InputError, match=r"1 belong to no part of it \(first: conv_header\.weight\)"):
        load_backbone_weights(model.backbone, whole.state_dict() | {"conv_header.weight": torch.zeros(1)}, "file")


def test_neck_goes_through_the_description_and_may_lack_in_it():
    model = create("test_resnet", pool="gem", neck=Neck(("se", "spatial_dropout"), dropout=0.3, se_reduction=4))
    other = classifier_from(model.description)
    assert other.description == model.description
    assert isinstance(other.neck[0], ChannelGate) and isinstance(other.neck[1], nn.Dropout2d)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.eval().features(photos()), model.eval().features(photos()))
    former = {key: value for key, value in create("test_resnet").description.items() if key != "neck"}
    for layers in (former["trunk"], former["heads"]["class"]["layers"]):
        del layers["activation_slope"]
    assert len(classifier_from(former).neck) == 0
