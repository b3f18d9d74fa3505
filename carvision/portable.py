"""The model that travels: model.safetensors and model.json in one folder. No Lightning, no Hydra, nothing executed."""

import hashlib
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import carvision
from carvision.data.images import Preprocessing
from carvision.data.squares import square_of
from carvision.description import FORMAT, read_description
from carvision.errors import InputError
from carvision.models.classifier import Classifier, classifier_from
from carvision.models.decoding import decode
from carvision.whole_files import write_json, written_whole

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


def save(
    model: Classifier,
    folder: Path,
    labels: dict,
    preprocessing: Preprocessing,
    decoding: str,
    metrics: dict,
    config: dict,
    crop_to_box: bool = False,
    averaged: bool = False,
    epoch: int | None = None,
) -> None:
    """Write model.safetensors and model.json into the folder.

    labels: {head: {"ids", "names", "parent", "parent_codes"}} or {head: {"unit", "mean", "std"}}, plain values.
    crop_to_box: the photos were read inside their boxes. averaged: the weights are a moving average of those of the
    steps. epoch: the one, from 0, after which the network had these weights.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    weights = folder / WEIGHTS
    with written_whole(weights) as place:
        save_file(tensors, place)
        sha256 = _sha256(place)
    description = {
        "format": FORMAT,
        "network": model.description,
        "labels": labels,
        "preprocessing": preprocessing.as_dict(),
        "crop_to_box": crop_to_box,
        "decoding": decoding,
        "weights": {"file": WEIGHTS, "kind": "averaged" if averaged else "raw", "epoch": epoch},
        "sha256": sha256,
        "metrics": metrics,
        "config": config,
        "versions": {"carvision": carvision.__version__, "torch": torch.__version__, "timm": version("timm")},
    }
    write_description(folder, description)


def write_description(folder: Path, description: dict) -> None:
    """model.json, which is there whole or as it was."""
    write_json(folder / DESCRIPTION, description)


def load(path: str | Path) -> Classifier:
    """The network of a run's folder or of its model.safetensors, as a torch.nn.Module in eval mode, with

    model(images) -> {head: logits}          images float (B, 3, H, W) as model.transform gives them
    model.transform(PIL image, box=None) -> (3, H, W)  float, preprocessed as in training; see to_input
    model.classes[head], model.class_ids[head]   names and ids, in the order of the logits
    model.decode(logits) -> {head: int64 (B,)}   the predicted classes, by the run's decoding rule
    model.probs(logits) -> {head: float32 (B, C)}   probabilities: softmax(logits / model.temperature[head])
    model.parents {child: (parent, codes)}   the make of each model: of each of the child's classes its parent's code
    model.crop_to_box   whether it was trained on the part of a photo inside its box
    model.about   all that model.json says, as plain values; "config", "metrics" and "versions" are {} where it has none

    Nothing in the files is executed. Raises InputError for a path without a model, a newer format, values of a wrong
    kind and files that do not belong together; whatever model.json holds, nothing else.
    """
    folder, file = find_model(Path(path))
    described = read_description(file)
    try:
        weights = folder / described.get("weights", {}).get("file", WEIGHTS)
        if not weights.is_file():
            raise InputError(f"{path}: no model there ({weights} does not exist); give the folder of a finished run")
        if Path(path).is_file() and Path(path).name not in (weights.name, DESCRIPTION):
            raise InputError(f"{path}: {file.name} beside it describes {weights.name}, and not this file")
        if described["sha256"] != _sha256(weights):
            raise InputError(f"{weights}: not the weights that {file.name} describes (their sha256 differs)")
        return _assemble(described, load_file(weights))
    except InputError as error:
        text = str(error)
        raise InputError(" ".join(text.split()) if "\n" in text else text) from None  # a name may hold a line's end
    except Exception as error:  # timm's networks and torch's layers each stumble in their own way
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{folder}: the model is damaged or was not written by carvision ({text})") from error


def _assemble(described: dict, tensors: dict[str, Tensor]) -> Classifier:
    """The network as load() gives it. Raises anything where the description and the weights make none."""
    _check_sizes(described["network"], tensors)
    model = classifier_from(described["network"])
    _check_shapes(model, tensors)
    model.load_state_dict(tensors)
    for key in ("config", "metrics", "versions"):
        described.setdefault(key, {})
    preprocessing = Preprocessing(**described["preprocessing"])
    labels = {name: described["labels"][name] for name in model.labels}
    model.classes = {name: label["names"] for name, label in labels.items() if "ids" in label}
    model.class_ids = {name: label["ids"] for name, label in labels.items() if "ids" in label}
    model.parents = parents_of(labels)
    model.temperature = {name: float(described.get("temperature", {}).get(name, 1.0)) for name in model.classes}
    model.preprocessing = preprocessing
    of_config = described["config"].get("data", {}).get("crop_to_box", False)  # where the first release told it
    model.crop_to_box = described.get("crop_to_box", of_config)
    model.about = described
    model.transform = partial(to_input, preprocessing=preprocessing)
    model.decode = partial(decode_on_device, parents=model.parents, rule=described["decoding"])
    model.probs = partial(probs_of, temperature=model.temperature)
    return model.eval()


def find_model(path: Path) -> tuple[Path, Path]:
    """The folder of a model and its model.json. Raises InputError where there is none."""
    try:
        return _find_model(path)
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise InputError(f"{str(path)[:400]}: can't be opened ({error.strerror}); give a run's folder") from None


def _find_model(path: Path) -> tuple[Path, Path]:
    if path.is_file() and path.suffix != ".safetensors" and path.name != DESCRIPTION:
        raise InputError(
            f"{path}: not a model file; give a run's folder or its {WEIGHTS} (a checkpoint opens with torch.load)"
        )
    folder = path if path.is_dir() else path.parent
    file = folder / DESCRIPTION
    if not file.is_file():
        for what in ("fold", "seed"):
            part = next((each.parent for each in sorted(folder.glob(f"{what}_*/{DESCRIPTION}"))), None)
            if part:
                raise InputError(f"{path}: holds the {what}s of a run; give one of them, such as {part}")
    if not path.exists() or not file.is_file():
        needed = path if not path.exists() else file
        raise InputError(f"{path}: no model there ({needed} does not exist); give the folder of a finished run")
    return folder, file


def _check_sizes(network: dict, tensors: dict[str, Tensor]) -> None:
    """Before memory is taken for it: a layer that has more units than any of the weights is described wrongly."""
    largest = max((size for value in tensors.values() for size in value.shape), default=0)
    embedding = network.get("embedding", {})
    parts = [network["trunk"], *(head["layers"] for head in network["heads"].values())]
    parts += [embedding[key] for key in ("layers", "difference") if key in embedding]
    units = [unit for part in parts for unit in part.get("hidden", [])]
    units += [head["num_outputs"] for head in network["heads"].values()] + [embedding.get("num_classes", 0)]
    if max(units) > largest:
        raise ValueError(f"a layer of {max(units)} units, and no weights of that size")


def _check_shapes(model: Classifier, tensors: dict[str, Tensor]) -> None:
    own = {name: value.shape for name, value in model.state_dict().items()}
    odd = sorted(own.keys() ^ tensors.keys())
    if odd:
        raise ValueError(f"{odd[0]} is {'not in its weights' if odd[0] in own else 'no part of its network'}")
    wrong = next((name for name, shape in own.items() if tensors[name].shape != shape), None)
    if wrong:
        raise ValueError(f"{wrong} has the shape {tuple(tensors[wrong].shape)}, and its network {tuple(own[wrong])}")


def parents_of(labels: dict) -> dict[str, tuple[str, Tensor]]:
    """{child: (parent, codes)} of the heads that have both, from plain label descriptions."""
    return {
        name: (label["parent"], torch.tensor(label["parent_codes"]))
        for name, label in labels.items()
        if label.get("parent") in labels
    }


def to_input(image: PIL.Image.Image, box: Sequence[float] | None = None, *, preprocessing: Preprocessing) -> Tensor:
    """A PIL image as the network takes it: float (3, size_px, size_px), normalised. Raises BadImage.

    box: left, top, right, bottom in pixels, the part to look at; for a network that was trained on boxes.
    """
    region = None if box is None else np.asarray(box, np.float32)
    pixels = square_of(image, preprocessing, region).float() / 255
    mean, std = (
        torch.from_numpy(np.float32(values))[:, None, None] for values in (preprocessing.mean, preprocessing.std)
    )
    return (pixels - mean) / std


def decode_on_device(logits: dict[str, Tensor], parents: dict, rule: str) -> dict[str, Tensor]:
    """decode() of the heads with classes, on the device of the logits."""
    on_device = {child: (parent, codes.to(logits[child].device)) for child, (parent, codes) in parents.items()}
    return decode({name: values for name, values in logits.items() if values.shape[1] > 1}, on_device, rule)


def probs_of(logits: dict[str, Tensor], temperature: dict[str, float]) -> dict[str, Tensor]:
    """Of each head with classes float32 (B, C): softmax(logits / temperature), Guo et al. 2017, equation 9."""
    return {name: (logits[name].float() / value).softmax(dim=1) for name, value in temperature.items()}


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
