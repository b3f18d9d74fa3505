"""Backbones by name, and weights from files: good, damaged, and those of other networks."""

from contextlib import contextmanager

import pytest
import timm
import torch
from safetensors.torch import save_file

from carvision.errors import InputError
from carvision.models.backbones import create_backbone, load_backbone_weights, read_weights
from carvision.models.classifier import Classifier, Head


def backbone(seed: int = 1):
    torch.manual_seed(seed)
    return create_backbone("test_resnet")


@contextmanager
def refused(message: str):
    """Expect an InputError of one line that matches."""
    with pytest.raises(InputError, match=message) as raised:
        yield
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "message"), [
    ("efficentnet_b0", "model.backbone: 'efficentnet_b0' is no model of timm .*nearest: .*efficientnet_b0"),
    ("vgg19.tf_in1k", r"'vgg19.tf_in1k' is no set of weights .* of vgg19: vgg19\.tv_in1k$"),
    ("alexnet.tv_in1k", r"of alexnet: none"),
])  # fmt: skip
def test_unknown_names_suggest_others(name, message):
    with refused(message):
        create_backbone(name)


def test_arguments_of_the_backbone():
    assert backbone().eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 96)
    assert create_backbone("test_vit", size_px=64).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 64)
    assert create_backbone("test_vit", {"img_size": 96}, size_px=64).patch_embed.img_size == (96, 96)
    with refused(r"model\.backbone_kwargs: test_resnet does not take .*windows"):
        create_backbone("test_resnet", {"windows": 7})
    with refused(r"model\.backbone: timm can't build test_resnet with .*output_stride"):
        create_backbone("test_resnet", {"output_stride": 7})


def whole_network() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return timm.create_model("test_resnet", num_classes=10).state_dict()


def test_files_of_every_kind_load(tmp_path):
    """safetensors and .pth, with and without the classifier; wrapped as training scripts do; Lightning; a run.

    Networks converted from other frameworks have no num_batches_tracked.
    """
    whole = whole_network()
    alone = {name: value for name, value in whole.items() if not name.startswith("fc.")}
    torch.manual_seed(2)
    classifier = Classifier("test_resnet", {"class": Head(3)}, 32)
    classifier.backbone.load_state_dict(alone)
    run = tmp_path / "run"
    run.mkdir()
    save_file(classifier.state_dict(), run / "model.safetensors")
    save_file(whole, tmp_path / "whole.safetensors")
    save_file(alone, tmp_path / "alone.safetensors")
    torch.save({k: v for k, v in whole.items() if not k.endswith("num_batches_tracked")}, tmp_path / "whole.pth")
    torch.save({"state_dict": whole, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "wrapped.pth.tar")
    torch.save({"model": alone}, tmp_path / "model.pt")
    lightning = {f"model.{name}": value for name, value in classifier.state_dict().items()}
    torch.save({"state_dict": lightning, "hyper_parameters": {}}, tmp_path / "last.ckpt")
    sources = [file for file in tmp_path.iterdir() if file.name != "run"] + [run, run / "model.safetensors"]
    assert len(sources) == 8
    for source in sources:
        loaded = backbone(seed=3)
        load_backbone_weights(loaded, read_weights(source), str(source))
        torch.testing.assert_close(loaded.state_dict(), alone, rtol=0, atol=0)


def test_weights_of_another_network():
    loaded, start = backbone(), "model.weights: some.pth is not of this backbone: "
    with refused(rf"{start}.*\d+ of 90 tensors are missing .* no part"):
        load_backbone_weights(loaded, timm.create_model("test_efficientnet").state_dict(), "some.pth")
    shape = r"layer1\.0\.conv1\.weight: \(4, 32, 3, 3\) instead of \(32, 32, 3, 3\)"
    with refused(rf"{start}.*1 have another shape \(first: {shape}\)"):
        load_backbone_weights(loaded, whole_network() | {"layer1.0.conv1.weight": torch.zeros(4, 32, 3, 3)}, "some.pth")
    torch.testing.assert_close(loaded.state_dict(), backbone().state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_missing_and_damaged_files_and_those_without_tensors_by_name(tmp_path, suffix):
    (tmp_path / "empty_folder").mkdir()
    for name in ("absent" + suffix, "empty_folder"):
        with refused(rf"model\.weights: '.*{name}' is not pretrained, random, or a file"):
            read_weights(tmp_path / name)
    file = tmp_path / f"damaged{suffix}"
    save_file(whole_network(), file) if suffix == ".safetensors" else torch.save(whole_network(), file)
    for content in (file.read_bytes()[:10_000], b"no weights at all\n", b""):
        file.write_bytes(content)
        with refused(rf"model\.weights: .*{file.name}"):
            read_weights(file)
    if suffix == ".pth":
        torch.save({"epoch": 3}, file)
        with refused(r"damaged\.pth holds no tensors by name"):
            read_weights(file)
