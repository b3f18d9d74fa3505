"""model.weights: everything from a run's folder, file or checkpoint; only the backbone from other files."""

import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import carvision
from carvision.errors import InputError
from carvision.inference.model_file import description_of
from carvision.training.build import build_classifier, build_preprocessing
from tests.inference.tiny import LABELS, refusal, rewrite, save_tiny
from tests.small_runs import config

SPEED = {"unit": "km/h", "mean": 180.0, "std": 20.0}
LABELS = {name: label for name, label in LABELS.items() if "ids" in label} | {"speed": SPEED}
OWN = (0.5, 0.5, 0.5)  # mean of test_resnet's pretrained weights


@pytest.fixture
def run(tmp_path):
    """A run's folder, and beside it one of its checkpoints as Lightning writes it."""
    folder = save_tiny(tmp_path / "run")
    model = carvision.load(folder)
    own = {"description": model.description, "labels": LABELS, "preprocessing": model.preprocessing.as_dict()}
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {**own, "decoding": "joint"}}, tmp_path / "epoch=9.ckpt")
    return folder


def begun_from(source, labels=LABELS, **model):
    """Return network and preprocessing of a run with these weights."""
    cfg = config()
    cfg["model"] |= {"weights": str(source), **model}
    return build_classifier(cfg, labels), build_preprocessing(cfg)


@pytest.mark.parametrize("source", ["run", "run/model.safetensors", "epoch=9.ckpt"])
def test_a_run_and_its_checkpoints_give_heads_mean_and_std(run, source):
    model, preprocessing = begun_from(run.parent / source)
    earlier = carvision.load(run)
    assert preprocessing == earlier.preprocessing and preprocessing.mean == (0.5, 0.4, 0.3)
    assert model.heads_are_trained
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in earlier.state_dict().items())
    others = {**LABELS, "make": {**LABELS["make"], "ids": ["3", "8"]}}
    model, preprocessing = begun_from(run.parent / source, others)
    assert not model.heads_are_trained and preprocessing == earlier.preprocessing
    names = [name for name in earlier.state_dict() if name.startswith("backbone.")]
    assert all(torch.equal(model.state_dict()[name], earlier.state_dict()[name]) for name in names)


def test_pretrained_and_random_are_never_files(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    for weights in ("pretrained", "random"):
        shutil.copytree(run, run.parent / weights)
        cfg = config()
        cfg["model"]["weights"] = weights
        assert build_preprocessing(cfg).mean == OWN and begun_from(f"./{weights}")[1].mean == (0.5, 0.4, 0.3)


def test_a_description_of_another_program_is_not_read(run, tmp_path):
    others = tmp_path / "others"
    others.mkdir()
    tensors = load_file(run / "model.safetensors")
    backbone = {k.removeprefix("backbone."): v for k, v in tensors.items() if k.startswith("backbone.")}
    save_file(backbone, others / "model.safetensors")
    (others / "model.json").write_text('{"format": "layers-model", "weightsManifest": []}')
    model, preprocessing = begun_from(others)
    assert preprocessing.mean == OWN and not model.heads_are_trained
    (others / "model.json").write_text("{")  # may have been this model's
    with pytest.raises(InputError, match=r"model.json: can't be read as JSON"):
        begun_from(others)


def test_a_description_of_other_weights_is_not_read(run, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("carvision"), "propagate", True)
    shutil.copyfile(run / "model.safetensors", run / "other.safetensors")
    assert description_of(run / "other.safetensors")["labels"]["make"]["ids"] == ["3", "7"]  # the same bytes
    tensors = load_file(run / "model.safetensors")
    save_file({name: value + 1 for name, value in tensors.items()}, run / "other.safetensors")
    assert description_of(run / "other.safetensors") is None
    assert "describes other weights than other.safetensors" in caplog.text
    rewrite(run, sha256="0" * 64)
    with pytest.raises(InputError, match=r"model.weights: .* is not what .*model.json describes"):
        description_of(run)


def test_a_checkpoint_that_was_changed_is_refused_and_others_have_no_description(run):
    file = run.parent / "epoch=9.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    for key, value in (("preprocessing", {"size_px": -1}), ("description", 7)):
        torch.save({**checkpoint, "hyper_parameters": {**checkpoint["hyper_parameters"], key: value}}, file)
        with pytest.raises(InputError, match=f"^.*{file.name}.*$"):
            description_of(file)
    torch.save({**checkpoint, "hyper_parameters": {"lr": 0.1}}, file)
    assert description_of(file) is None
    torch.save(checkpoint["state_dict"], file, _use_new_zipfile_serialization=False)
    assert description_of(file) is None and begun_from(file)[1].mean == OWN


def test_a_checkpoint_instead_of_a_run_is_refused_with_the_fix(run):
    (run / "checkpoints").mkdir()
    shutil.copyfile(run.parent / "epoch=9.ckpt", run / "checkpoints" / "best.ckpt")
    line = refusal(run / "checkpoints" / "best.ckpt")
    assert f"not a model file; give its run, {run}, or its model.safetensors" in line
    (run / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has not finished: model.weights=.*best.ckpt"):
        begun_from(run)
