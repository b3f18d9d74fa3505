"""Grad-CAM against captum, on networks of each kind, and at the sizes and on the parts of photos that they see."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import carvision
from carvision.data.decode import decode_image
from carvision.data.images import BadImage, Preprocessing
from carvision.errors import InputError
from carvision.explanation.cam import class_activation_maps, grad_cam, last_attention
from carvision.models.classifier import Classifier, Head, Layers
from carvision.models.parts import Neck
from tests.inference.tiny import save_tiny

HEADS = {"make": Head(4), "model": Head(6, Layers((8,)))}
CODES = torch.arange(6)
SWIN = {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
# The backbone, its size, what else the classifier has, and the module whose output is the feature map
MAPS = {
    "test_resnet": (224, {}, "layer4"),
    "test_efficientnet": (224, {"trunk": Layers((16,))}, "bn2"),
    "test_convnext": (224, {"pool": "avgmax"}, "norm_pre"),
    "mobilenetv2_035": (96, {"neck": Neck(("spatial_dropout", "attention", "se")), "trunk": Layers((16,))}, "bn2"),
    "resnet10_slim": (96, {"pool": "gem"}, "layer4"),
    "oxford102_benchmark": (64, {"pool": "flatten", "trunk": Layers((16,), dropout=0.5)}, "features"),
    "alexnet": (224, {"neck": Neck(("attention", "se")), "pool": "flatten", "trunk": Layers((16,))}, "features"),
    "stanford_small_cnn": (128, {}, "features"),
    "cars196_cnn": (224, {"pool": "flatten"}, "features"),
}
# Transformers, whose last attention is `attn`; the number of tokens before the patches
TOKENS = {"test_vit": (160, {}, 1), "test_vit2": (160, {}, None), "test_vit3": (160, {}, None)}


class Patches(nn.Module):
    """An attention with the map of its patches (B, C, h, w) as the output of a module, for captum."""

    def __init__(self, attention: nn.Module, first: int):
        super().__init__()
        self.attention, self.map, self.first = attention, nn.Identity(), first

    def forward(self, tokens, **options):
        patches = tokens[:, self.first :].transpose(1, 2)
        side = math.isqrt(patches.shape[2])
        patches = self.map(patches.reshape(*patches.shape[:2], side, side)).flatten(2).transpose(1, 2)
        return self.attention(torch.cat([tokens[:, : self.first], patches], dim=1), **options)


class ChannelsFirst(nn.Module):
    """The identity on (B, h, w, C), with (B, C, h, w) as the output of a module, for captum."""

    def __init__(self):
        super().__init__()
        self.map = nn.Identity()

    def forward(self, x):
        return self.map(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def to_input(image: Image.Image, preprocessing: Preprocessing) -> torch.Tensor:
    """Return an image as a network's input, normalised plainly."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return (decode_image(image, preprocessing).float() / 255 - mean) / std


def build(name: str, size_px: int, **parts) -> Classifier:
    torch.manual_seed(0)
    model = Classifier(name, HEADS, size_px, **parts).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    return model


def require_equal(model: Classifier, reference: nn.Module, layer: nn.Module, size_px: int) -> None:
    images = torch.randn(6, 3, size_px, size_px)
    maps, logits = grad_cam(model, images, "model", CODES)
    captums = LayerGradCam(lambda x: reference(x)["model"], layer)
    known = captums.attribute(images, CODES, relu_attributions=True).detach()[:, 0]
    assert maps.shape == known.shape and (known.amax(dim=(1, 2)) > 0).any()
    known = known / known.amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)
    torch.testing.assert_close(maps, known, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(logits, model(images)["model"], rtol=1e-4, atol=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", MAPS)
def test_the_map_of_a_convolutional_network_is_captums(name):
    size_px, parts, layer = MAPS[name]
    model = build(name, size_px, **parts)
    require_equal(model, model, model.backbone.get_submodule(layer), size_px)


def test_the_map_of_swin_is_captums_although_its_channels_are_last():
    model = build("swin_tiny_patch4_window7_224", 224, backbone_kwargs=SWIN, neck=Neck(("se",)))
    reference = copy.deepcopy(model)
    reference.backbone.norm = nn.Sequential(reference.backbone.norm, last := ChannelsFirst())
    require_equal(model, reference, last.map, 224)


@pytest.mark.parametrize("name", TOKENS)
def test_the_map_of_a_transformer_is_captums_of_the_patches_before_the_last_attention(name):
    size_px, parts, first = TOKENS[name]
    model = build(name, size_px, **parts)
    assert first in (None, model.backbone.num_prefix_tokens)
    assert last_attention(model.backbone, torch.zeros(1, 3, size_px, size_px)) is model.backbone.blocks[-1].attn
    reference = copy.deepcopy(model)
    block = reference.backbone.blocks[-1]
    block.attn = Patches(block.attn, model.backbone.num_prefix_tokens)
    require_equal(model, reference, block.attn.map, size_px)


def photo(seed: int = 0, size=(60, 40)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return carvision.load(save_tiny(tmp_path_factory.mktemp("run")))


def test_a_map_of_few_cells_is_computed_at_a_larger_input(tiny):
    maps = class_activation_maps(tiny, [photo(0), photo(1)], None, "model", [0, 2])
    large = Preprocessing(224, tiny.preprocessing.mean, tiny.preprocessing.std)
    images = torch.stack([to_input(photo(i), large) for i in range(2)])
    known, logits = grad_cam(tiny, images, "model", torch.tensor([0, 2]))
    for number, cam in enumerate(maps):
        assert cam.values.dtype == np.float32 and cam.values.shape == (7, 7) and cam.size_px == 224
        np.testing.assert_allclose(cam.values, known[number].numpy(), atol=1e-5)
        assert "computed at 224 px, as the map has 1 x 1 cells at 32 px" in cam.note
        usual = tiny(tiny.transform(photo(number))[None])["model"].argmax()
        assert cam.note.endswith("; at that size the network predicts another class") == (
            logits[number].argmax() != usual
        )
        assert ("no part of the photo" in cam.note) == (not cam.values.any())


def test_a_transformer_gets_more_patches_and_stays_as_it_was(tiny):
    model = build("test_vit", 64)
    model.preprocessing = dataclasses.replace(tiny.preprocessing, size_px=64)
    before = model.backbone.pos_embed.shape
    [cam] = class_activation_maps(model, [photo()], None, "make", [1])
    assert cam.values.shape == (7, 7) and cam.size_px == 112 and "4 x 4 cells at 64 px" in cam.note
    assert model.backbone.pos_embed.shape == before


def test_a_network_for_one_size_alone_gives_its_coarse_map(tiny):
    model = build("test_resnet", 64, pool="flatten")
    model.preprocessing = dataclasses.replace(tiny.preprocessing, size_px=64)
    [cam] = class_activation_maps(model, [photo()], None, "make", [1])
    assert cam.values.shape == (2, 2) and cam.size_px == 64
    assert cam.note.endswith("coarse: 2 x 2 cells at 64 px, and the network takes no larger images")


def test_the_map_is_of_the_box_and_a_photo_may_be_asked_about_twice(tiny, tmp_path):
    photo(0, (1200, 800)).save(tmp_path / "a.jpg", quality=95)
    box = [300, 200, 900, 500]
    with Image.open(tmp_path / "a.jpg") as image:  # not decoded yet
        first, second, whole = class_activation_maps(tiny, [image] * 3, [box, box, None], "make", [0, 1, 0])
        [cropped] = class_activation_maps(tiny, [image.crop(box)], None, "make", [0])
    np.testing.assert_allclose(first.values, cropped.values, atol=1e-5)
    assert not np.allclose(first.values, second.values) and not np.allclose(first.values, whole.values)


def test_a_number_has_a_map_and_a_damaged_photo_has_none(tiny, tmp_path):
    [cam] = class_activation_maps(tiny, [photo()], [None], "speed", [0])
    assert cam.values.shape == (7, 7) and "another class" not in cam.note
    photo(0, (300, 200)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-400])
    with Image.open(tmp_path / "a.jpg") as image, pytest.raises(BadImage, match="can't be decoded"):
        class_activation_maps(tiny, [image], None, "make", [0])


def test_a_backbone_without_a_map_is_one_line():
    class Vectors(nn.Module):
        def forward_features(self, images):
            return images.mean(dim=(2, 3))

    model = build("test_resnet", 64)
    model.backbone = Vectors()
    model._pooled = lambda features: torch.zeros(len(features), 96) + features.sum()
    with pytest.raises(InputError, match="Vectors gives neither a feature map nor square patches"):
        grad_cam(model, torch.zeros(2, 3, 64, 64), "make", torch.tensor([0, 0]))


def test_hiding_the_brightest_parts_of_real_photos_lowers_the_logit_most(real_photos):
    weights = load_file(real_photos / "weights" / "mobilenetv2_100_imagenet.safetensors")
    model = Classifier("mobilenetv2_100", {"class": Head(1000)}, 224, {"pad_type": "same"}).eval()
    renamed = {name.replace("classifier", "output"): tensor for name, tensor in weights.items()}
    model.backbone.load_state_dict({name: tensor for name, tensor in renamed.items() if "output" not in name})
    model.head_class.output.load_state_dict({name: renamed[f"output.{name}"] for name in ("weight", "bias")})
    folders = sorted((real_photos / "imagenette" / "val").iterdir())
    files = [file for folder in folders for file in sorted(folder.iterdir())[:2]]
    how = Preprocessing(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    images = torch.stack([to_input(Image.open(file), how) for file in files])
    with torch.no_grad():
        codes = model(images)["class"].argmax(dim=1)
        maps, logits = grad_cam(model, images, "class", codes)
        order = maps.flatten(1).argsort(dim=1)
        drops = []
        for cells in (order[:, -12:], order[:, :12]):  # the brightest quarter, the darkest
            hidden = torch.zeros(len(files), 49).scatter(1, cells, 1).view(-1, 1, 7, 7)
            seen = images * (1 - hidden.repeat_interleave(32, 2).repeat_interleave(32, 3))
            drops.append((logits - model(seen)["class"]).gather(1, codes[:, None])[:, 0])
    brightest, darkest = drops
    assert (brightest > darkest).float().mean() > 0.85 and brightest.mean() > 2 * darkest.mean()
