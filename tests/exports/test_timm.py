"""timm's folder: the run's logits, names and preprocessing, from timm's own functions."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import CustomDatasetInfo, create_transform, resolve_model_data_config

import carvision
from carvision.data.images import Preprocessing
from carvision.errors import InputError
from carvision.exports.timm import export_timm
from carvision.models.parts import Layers, Neck
from tests.exports.conftest import LABELS, save_model


def exported(folder: Path, head: str | None = None, **network):
    """Return the run's model, timm's network, and the summary line."""
    model = carvision.load(save_model(folder, **network))
    summary = export_timm(model, folder / "timm", head)
    return model, timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True).eval(), summary


VGG = {"backbone": "vgg11", "size_px": 32, "backbone_kwargs": {"mlp_ratio": 0.01}}  # 40 units of 4096: 400 MB fewer
CASES = {
    "resnet10_slim": {}, "test_resnet": {}, "mobilenetv2_035": {"backbone_kwargs": {"pad_type": "same"}},
    "test_vit": {"size_px": 96}, "test_convnext": {},  # 96: not its own size
}  # fmt: skip


@pytest.mark.parametrize(("backbone", "network"), CASES.items(), ids=CASES)
@torch.no_grad()
def test_the_linear_head_is_timms_classifier(backbone, network, tmp_path):
    model, theirs, summary = exported(tmp_path, backbone=backbone, **network)
    images = torch.randn(2, 3, *2 * [network.get("size_px", 64)])
    torch.testing.assert_close(theirs(images), model(images)["model.name"], rtol=0, atol=1e-5)
    assert "model.name as its classifier with 3 classes (--head chooses another: make)" in summary
    theirs.reset_classifier(0)
    torch.testing.assert_close(theirs(images), model.features(images), rtol=0, atol=1e-5)
    if backbone == "resnet10_slim":  # whose first convolution is not that of timm's resnet18
        grey = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True, in_chans=1)
        assert grey.conv1[0].weight.shape[1] == 1


@torch.no_grad()
def test_another_head_and_one_beside_hidden_layers(tmp_path):
    images = torch.randn(2, 3, 64, 64)
    model, theirs, _ = exported(tmp_path / "a", head="make")
    torch.testing.assert_close(theirs(images), model(images)["make"], rtol=0, atol=1e-5)
    assert theirs.pretrained_cfg["label_names"] == ["Audi", "BMW"]
    model, theirs, summary = exported(tmp_path / "b", head_layers=Layers((8,)))  # of make, which is passed over
    torch.testing.assert_close(theirs(images), model(images)["model.name"], rtol=0, atol=1e-5)
    assert "--head chooses" not in summary
    info = CustomDatasetInfo(theirs.pretrained_cfg["label_names"], theirs.pretrained_cfg["label_descriptions"])
    # two classes are called X5, so that the ids are the names
    assert [info.index_to_label_name(code) for code in range(3)] == LABELS["model.name"]["ids"]
    assert [info.index_to_description(code) for code in range(3)] == ["A4 (Audi)", "X5 (BMW)", "X5 (BMW)"]
    model, theirs, summary = exported(tmp_path / "c", trunk=Layers((8,)))  # behind which the heads are no classifiers
    torch.testing.assert_close(theirs(images), model.features(images), rtol=0, atol=1e-5)
    assert theirs.num_classes == 0 and "the backbone alone, whose pooled features are the run's" in summary


POOLS = {"flatten": {**VGG, "pool": "flatten"}, "gem": {"pool": "gem"}, "neck": {"neck": Neck(("se",))}}


@pytest.mark.parametrize(("pool", "network"), POOLS.items(), ids=POOLS)
@torch.no_grad()
def test_before_another_pool_only_the_feature_map_is_the_runs(pool, network, tmp_path):
    model, theirs, summary = exported(tmp_path, **network)
    images = torch.randn(2, 3, *2 * [network.get("size_px", 64)])
    ours = model.backbone.forward_features(images)
    torch.testing.assert_close(theirs.forward_features(images), ours, rtol=0, atol=1e-5)
    notes = json.loads((tmp_path / "timm" / "config.json").read_text())["pretrained_cfg"]["notes"]
    for text in (summary, *notes):
        assert "forward_features(images) is the run's and what follows is not" in text
        assert ("the weights of pre_logits are random" in text) == (pool == "flatten")
    export_timm(model, tmp_path / "again")  # left-out layers have the same values each time
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "timm/model.safetensors").read_bytes()


@pytest.mark.parametrize(("resize", "size"), [("squash", (300, 200)), ("crop", (90, 123))])
def test_timm_reads_photos_nearly_as_we_do(resize, size, tmp_path):
    """The pixels are equal if the whole photo is squashed; a crop's edges lie between pixels, and timm rounds them."""
    model = carvision.load(save_model(tmp_path))
    model.preprocessing = Preprocessing(64, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), "bicubic", resize)
    export_timm(model, tmp_path / "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    transform = create_transform(**resolve_model_data_config(theirs))
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    pixels = np.stack([np.sin(x + y), np.cos(x * y), np.sin(3 * x)], axis=-1) * 120 + 128
    photo = Image.fromarray(pixels.astype(np.uint8))
    levels = (transform(photo) - model.transform(photo)).abs() * 255 * 0.3
    # timm resizes with Pillow, we with torch: where both round, one in some fifty values differs by one
    assert levels.mean() < (0.02 if resize == "squash" else 1)


def test_heads_and_networks_that_timm_can_not_have_are_refused(tmp_path):
    for head, network, message in (
        ("modle", {}, "--head: 'modle' is not a head of this run; it has make, model.name, speed"),
        ("speed", {}, "--head: speed estimates a number, .* give model.name or make"),
        ("make", {"head_layers": Layers((8,))}, "--head: make is more than one linear layer .* give model.name"),
        (None, {"backbone": "stanford_small_cnn"}, "timm lacks the network stanford_small_cnn; use --format onnx"),
    ):
        model = carvision.load(save_model(tmp_path, **network))
        with pytest.raises(InputError, match=message):
            export_timm(model, tmp_path / "timm", head)
        assert not (tmp_path / "timm").exists()
