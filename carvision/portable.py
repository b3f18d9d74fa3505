"""The model that travels: model.safetensors and model.json in one folder. No Lightning, no Hydra, nothing executed."""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import carvision
from carvision.data.images import Preprocessing, to_square
from carvision.errors import InputError
from carvision.models.classifier import Classifier, classifier_from
from carvision.models.decoding import decode

FORMAT = 1
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


def save(
    model: Classifier,
    folder: Path,
    labels: dict,
    preprocessing: Preprocessing,
    decoding: str,
    metrics: dict,
    config: dict,
) -> None:
    """Write model.safetensors and model.json into the folder.

    labels: {head: {"ids", "names", "parent", "parent_codes"}} or {head: {"unit"}}, plain values.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    weights = folder / WEIGHTS
    partial_file = weights.with_suffix(".partial")
    save_file(tensors, partial_file)
    description = {
        "format": FORMAT,
        "network": model.description,
        "labels": labels,
        "preprocessing": preprocessing.as_dict(),
        "decoding": decoding,
        "metrics": metrics,
        "config": config,
        "versions": {"carvision": carvision.__version__, "torch": torch.__version__, "timm": timm.__version__},
        "sha256": _sha256(partial_file),
    }
    partial_file.replace(weights)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1))


def load(path: str | Path) -> Classifier:
    """The network of a run's folder or of its model.safetensors, as a torch.nn.Module in eval mode, with

    model(images) -> {head: logits}          images float (B, 3, H, W) as model.transform gives them
    model.transform(PIL image, box=None) -> (3, H, W)  float, preprocessed as in training; see to_input
    model.classes[head], model.class_ids[head]   names and ids, in the order of the logits
    model.decode(logits) -> {head: int64 (B,)}   the predicted classes, by the run's decoding rule

    Raises InputError for a path without a model, a newer format, and files that do not belong together.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    weights, file = folder / WEIGHTS, folder / DESCRIPTION
    for needed in (weights, file):
        if not needed.is_file():
            raise InputError(
                f"{path}: no model there ({needed} does not exist); give the folder of a run that has finished"
            )
    try:
        described = json.loads(file.read_text())
        version = described["format"]
        if version > FORMAT:
            raise InputError(
                f"{file}: format {version} is newer than {FORMAT}, the newest that carvision "
                f"{carvision.__version__} knows; update carvision"
            )
        if described["sha256"] != _sha256(weights):
            raise InputError(f"{weights}: not the weights that {file.name} describes (their sha256 differs)")
        model = classifier_from(described["network"])
        model.load_state_dict(load_file(weights))
        labels = {name: described["labels"][name] for name in model.labels}
        preprocessing = Preprocessing(**described["preprocessing"])
        parents = parents_of(labels)
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError, RuntimeError) as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: the model is damaged or was not written by carvision ({text})") from None
    model.classes = {name: label["names"] for name, label in labels.items() if "ids" in label}
    model.class_ids = {name: label["ids"] for name, label in labels.items() if "ids" in label}
    model.preprocessing = preprocessing
    model.transform = partial(to_input, preprocessing=preprocessing)
    model.decode = partial(_decode, parents=parents, rule=described["decoding"])
    return model.eval()


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
    pixels = torch.from_numpy(to_square(image, preprocessing, region)).float() / 255
    mean, std = (
        torch.from_numpy(np.float32(values))[:, None, None] for values in (preprocessing.mean, preprocessing.std)
    )
    return (pixels - mean) / std


def _decode(logits: dict[str, Tensor], parents: dict, rule: str) -> dict[str, Tensor]:
    on_device = {child: (parent, codes.to(logits[child].device)) for child, (parent, codes) in parents.items()}
    return decode({name: values for name, values in logits.items() if values.shape[1] > 1}, on_device, rule)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
