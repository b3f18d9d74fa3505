"""Backbones by name, and weights from files: good ones, those of others, damaged and malicious ones."""

import pickle
from contextlib import contextmanager

import pytest
import timm
import torch
from safetensors.torch import save_file

from carvision.errors import InputError
from carvision.models import backbones
from carvision.models.backbones import create_backbone, load_backbone_weights, read_weights
from carvision.models.classifier import Classifier, Head


def backbone(seed: int = 1):
    torch.manual_seed(seed)
    return create_backbone("test_resnet")


@contextmanager
def refused(message: str):
    """An InputError of one line that matches."""
    with pytest.raises(InputError, match=message) as raised:
        yield raised
    assert "\n" not in str(raised.value)


def assert_same_weights(one, other) -> None:
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=0, atol=0)


def test_backbone_gives_features():
    assert backbone().eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 96)
    wide = create_backbone("test_resnet", {"in_chans": 1})
    assert wide.eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 96)


@pytest.mark.parametrize(
    ("name", "suggested"),
    [("efficentnet_b0", "efficientnet_b0"), ("ResNet50", "resnet50"), ("mobilenet_v2_100", "mobilenetv2_100")],
)
def test_unknown_name_suggests_the_nearest(name, suggested):
    with refused(rf"model.backbone: '{name}' is no model of timm .*nearest: .*{suggested}"):
        create_backbone(name)


def test_unknown_weights_of_a_known_network_list_those_that_there_are():
    with refused(r"'vgg19.tf_in1k' is no set of weights .* of vgg19: vgg19\.tv_in1k$"):
        create_backbone("vgg19.tf_in1k")
    with pytest.raises(InputError, match=r"of alexnet: none"):
        create_backbone("alexnet.tv_in1k")


def test_arguments_that_the_backbone_does_not_take():
    with refused(r"model\.backbone_kwargs: test_resnet does not take .*windows"):
        create_backbone("test_resnet", {"windows": 7})
    with refused(r"model\.backbone: timm can't build test_resnet with .*output_stride"):
        create_backbone("test_resnet", {"output_stride": 7})


def test_a_vision_transformer_is_built_for_the_size_of_the_images():
    vit = create_backbone("test_vit", size_px=64)
    assert vit.patch_embed.img_size == (64, 64)
    assert vit.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 64)
    assert create_backbone("test_vit", {"img_size": 96}, size_px=64).patch_embed.img_size == (96, 96)


@pytest.mark.parametrize("error", [OSError("Disk is\nfull"), RuntimeError(""), ValueError("x" * 1000)])
def test_whatever_fails_while_pretrained_weights_load_is_one_short_line(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(backbones, "find_pretrained", lambda name: {})
    monkeypatch.setattr(timm, "create_model", fail)
    with refused(r"model\.weights=random") as raised:
        create_backbone("test_resnet", pretrained=True)
    assert len(str(raised.value)) < 500


def whole_network(**changes) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return timm.create_model("test_resnet", num_classes=10).state_dict() | changes


def test_files_of_every_kind_load(tmp_path):
    """safetensors and .pth, with and without the classifier; wrapped as training scripts do; Lightning; a run."""
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
    torch.save(whole, tmp_path / "whole.pth")
    torch.save({"state_dict": whole, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "wrapped.pth.tar")
    torch.save({"model": alone}, tmp_path / "model.pt")
    lightning = {f"model.{name}": value for name, value in classifier.state_dict().items()}
    torch.save({"state_dict": lightning, "hyper_parameters": {}}, tmp_path / "last.ckpt")
    sources = [file for file in tmp_path.iterdir() if file.name != "run"] + [run, run / "model.safetensors"]
    assert len(sources) == 8
    for source in sources:
        loaded = backbone(seed=3)
        load_backbone_weights(loaded, read_weights(source), str(source))
        assert_same_weights(loaded, classifier.backbone)


def test_running_statistics_may_lack_their_count():
    """Networks converted from other frameworks have no num_batches_tracked."""
    tensors = {name: value for name, value in whole_network().items() if not name.endswith("num_batches_tracked")}
    loaded = backbone()
    load_backbone_weights(loaded, tensors, "file")
    torch.testing.assert_close(loaded.conv1[0].weight, tensors["conv1.0.weight"])


def without(name: str) -> dict[str, torch.Tensor]:
    tensors = whole_network()
    del tensors[name]
    return tensors


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            lambda: timm.create_model("test_efficientnet").state_dict(),
            r"\d+ of 90 tensors are missing .*belong to no part",
        ),
        (lambda: without("layer3.0.conv1.weight"), r"1 of \d+ tensors are missing \(first: layer3\.0\.conv1\.weight\)"),
        (
            lambda: whole_network(**{"layer1.0.conv1.weight": torch.zeros(4, 32, 3, 3)}),
            r"1 have another shape \(first: layer1\.0\.conv1\.weight: \(4, 32, 3, 3\) instead of \(32, 32, 3, 3\)\)",
        ),
        (lambda: whole_network(**{"fcx.weight": torch.zeros(2)}), r"1 belong to no part of it \(first: fcx\.weight\)"),
    ],
)
def test_weights_of_another_network(tensors, message):
    loaded = backbone()
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    with refused(rf"model\.weights: some\.pth is not of this backbone: .*{message}"):
        load_backbone_weights(loaded, tensors(), "some.pth")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("name", ["absent.pth", "absent.safetensors", "empty_folder"])
def test_a_file_that_does_not_exist(tmp_path, name):
    (tmp_path / "empty_folder").mkdir()
    with refused(rf"model\.weights: '.*{name}' is not pretrained, random, or a file"):
        read_weights(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["cut.safetensors", "cut.pth", "text.safetensors", "text.pth", "nothing.safetensors", "nothing.pth"]
)
def test_damaged_files(tmp_path, name):
    file = tmp_path / name
    if name.startswith("cut"):
        save_file(whole_network(), file) if file.suffix == ".safetensors" else torch.save(whole_network(), file)
        file.write_bytes(file.read_bytes()[:10_000])
    else:
        file.write_text("no weights at all\n" if name.startswith("text") else "")
    with refused(rf"model\.weights: .*{name}"):
        read_weights(file)


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))  # would create the file


@pytest.mark.parametrize("write", [torch.save, lambda content, file: file.write_bytes(pickle.dumps(content, 2))])
def test_code_in_a_pickle_does_not_run(tmp_path, write):
    file, target = tmp_path / "weights.pth", tmp_path / "code_ran"
    write({"state_dict": whole_network(), "extra": Malicious(target)}, file)
    with refused(r"weights\.pth is no file of weights alone"):
        read_weights(file)
    assert not target.exists()
    pickle.loads(pickle.dumps(Malicious(target))).close()
    assert target.exists()  # it would have run


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"epoch": 3}, torch.zeros(2), {}])
def test_files_without_tensors_by_name(tmp_path, content):
    torch.save(content, tmp_path / "some.pth")
    with pytest.raises(InputError, match=r"some\.pth holds no tensors by name"):
        read_weights(tmp_path / "some.pth")
