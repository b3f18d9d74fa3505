"""Save and load models as model.safetensors and model.json in one folder, without Lightning, Hydra or running code."""

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import PIL.Image
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import carvision
from carvision.data.decode import decode_image
from carvision.data.images import Preprocessing
from carvision.errors import InputError, one_line
from carvision.files.atomic import atomic_file, write_json
from carvision.files.folders import is_run
from carvision.inference.description import (
    FORMAT,
    ModelDescription,
    check_description,
    network_of,
    read_description,
    read_json,
    stored_network,
    values_within,
)
from carvision.models.backbones import create_backbone, read_pickled, tensor_shapes
from carvision.models.classifier import Classifier, NetworkDescription, classifier_from
from carvision.models.decoding import decode, probs_of
from carvision.models.limits import Limits, WithoutValues

if TYPE_CHECKING:  # it imports pandas
    from carvision.data.table import LabelDescription

log = logging.getLogger(__name__)

PhotoInput = str | os.PathLike | PIL.Image.Image

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
SMALL_LAYER = 1_000_000  # values
LARGEST_SUM = 100_000  # of all numbers in backbone_kwargs; a large backbone's add up to a tenth of it
LARGEST_NUMBER = 10_000  # in backbone_kwargs, for any size of weights: a rotary embedding's temperature


class LoadedClassifier(Classifier):
    """A trained Classifier, as load() returns it: also with the classes, the preprocessing and the run's description.

    classes, class_ids: {head: names and ids, in the order of the logits}; names may repeat. parents: {child: (parent,
    codes)}, where codes[i] is the parent's class of the child's class i: each model's make. temperature: {head: T}.
    crop_to_box: whether it was trained on the part of a photo inside its box. about: the contents of model.json, plain
    values; "config", "metrics" and "versions" are {} if it has none.
    """

    classes: dict[str, list[str]]
    class_ids: dict[str, list[str]]
    parents: dict[str, tuple[str, Tensor]]
    temperature: dict[str, float]
    preprocessing: Preprocessing
    crop_to_box: bool
    about: ModelDescription

    def transform(self, image: PIL.Image.Image, box: Sequence[float] | None = None) -> Tensor:
        """Convert a PIL image to the network's input, float (3, size_px, size_px), preprocessed as in training.

        box: left, top, right, bottom in pixels, the part to use, for a network that was trained on boxes. Raises
        BadImage.
        """
        region = None if box is None else np.asarray(box, np.float32)
        pixels = decode_image(image, self.preprocessing, region).float() / 255
        of_channels = (self.preprocessing.mean, self.preprocessing.std)
        mean, std = (torch.from_numpy(np.array(values, np.float32))[:, None, None] for values in of_channels)
        return (pixels - mean) / std

    def decode(self, logits: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the predicted classes, {head: int64 (B,)}, by the run's decoding rule; of heads with several."""
        parents = {name: (parent, codes.to(logits[name].device)) for name, (parent, codes) in self.parents.items()}
        several = {name: values for name, values in logits.items() if values.shape[1] > 1}
        return decode(several, parents, self.about["decoding"])

    def probs(self, logits: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return softmax(logits / temperature), {head: float32 (B, C)}, of the heads with classes."""
        return probs_of(logits, self.temperature)

    def predict(self, photos: Iterable[PhotoInput], boxes: Iterable | None = None, top: int = 1) -> list[dict]:
        """Predict the classes of photos, as plain Python values, in this thread alone: for an app or a web service.

        photos: paths or PIL images; a JPEG that Image.open has not decoded yet is decoded at the size needed, as by
        transform. boxes: for each photo left, top, right, bottom in pixels of the upright photo, or None for all of it;
        for a model that was trained on boxes. Computes where the model is: model.to("cuda") moves it to a GPU.

        Returns a dict for each photo, in order:
            {"path": "a.jpg",                    None for a PIL image
             "make": [{"id": "3", "name": "Audi", "prob": 0.97}, ...],   a list for each head with classes: the first by
                                                 the run's decoding rule, then the others by probability, `top` in all
             "speed": 182.0,                     a float, in its unit, for each head that predicts a number
             "error": None}                      why the photo can't be used; the lists are then empty, the numbers None

        Raises InputError for a wrong argument.
        """
        from carvision.inference.predictor import predict  # imports pandas

        return predict(self, photos, boxes, top)


def save(
    model: Classifier,
    folder: Path,
    labels: "dict[str, LabelDescription]",
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
    metrics: {split: {name: value}}. config: the run's configuration. crop_to_box: the photos were read inside their
    boxes. averaged: the weights are a moving average over training steps. epoch: the one, from 0, after which the
    network had these weights.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    weights = folder / WEIGHTS
    with atomic_file(weights) as part:
        save_file(tensors, part)
        sha256 = _sha256(part)
    description: ModelDescription = {
        "format": FORMAT,
        "network": stored_network(model.description),
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


def write_description(folder: Path, description: ModelDescription) -> None:
    """Write model.json atomically."""
    write_json(folder / DESCRIPTION, description)


def load(path: str | os.PathLike[str]) -> LoadedClassifier:
    """Load the network of a run's folder, or of its model.safetensors, see carvision.load.

    Nothing in the files is executed. Raises InputError, and nothing else, for a path without a model, a newer format,
    values of a wrong kind, and files that do not belong together.
    """
    folder, file = find_model(Path(path))
    described = read_description(file)
    try:
        weights = folder / described.get("weights", {}).get("file", WEIGHTS)
        if not weights.is_file():
            raise InputError(f"{path}: no model there ({weights} does not exist); give the folder of a finished run")
        if Path(path).is_file() and Path(path).name not in (weights.name, DESCRIPTION):
            raise InputError(f"{path}: {file.name} beside it describes {weights.name}, and not this file")
        shapes = tensor_shapes(weights)
        require_fitting(network_of(described), shapes)  # quick, and before anything of the described size is allocated
        if described["sha256"] != _sha256(weights):
            raise InputError(f"{weights}: not the weights that {file.name} describes (their sha256 differs)")
        return _assemble(described, load_file(weights))
    except InputError as error:
        text = str(error)
        raise InputError(text if len(text) <= 1000 else f"{text[:1000]}...") from None
    except Exception as error:  # timm's networks and torch's layers raise many kinds
        text = one_line(error, 200)
        raise InputError(f"{folder}: the model is damaged or was not written by carvision ({text})") from error


def description_of(source: Path) -> ModelDescription | None:
    """Return the description of the model that model.weights names; None for weights that are not carvision's.

    source: a run's folder, its .safetensors file, or a checkpoint, wherever it was copied to. Raises InputError if a
    run's folder holds other weights than its model.json describes, or a damaged description.
    """
    if source.is_file() and source.suffix != ".safetensors":
        return _description_in_checkpoint(source)
    weights = source / WEIGHTS if source.is_dir() else source
    file = weights.with_name(DESCRIPTION)
    if not weights.is_file():
        return None
    if not file.is_file():
        if any(name.startswith("backbone.") for name in tensor_shapes(weights)):
            raise InputError(
                f"model.weights: {weights} is of a run, and its {file.name} is missing; put that back, or give a "
                f"checkpoint, as {weights.parent / 'checkpoints' / 'best.ckpt'}"
            )
        return None
    described = read_json(file)
    if not isinstance(described, dict) or not {"network", "preprocessing", "sha256"} <= described.keys():
        return None  # written by another program
    if described["sha256"] == _sha256(weights):
        return read_description(file)
    if source.is_dir():
        raise InputError(f"model.weights: {weights} is not what {file.name} describes (their sha256 differs)")
    log.warning("%s describes other weights than %s, and is not read", file, weights.name)
    return None


def _description_in_checkpoint(file: Path) -> ModelDescription | None:
    checkpoint = read_pickled(file)
    own = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    keys = {"description": "network", "labels": "labels", "preprocessing": "preprocessing", "decoding": "decoding"}
    if not isinstance(own, dict) or not keys.keys() <= own.keys():
        return None
    described = {"format": FORMAT} | {ours: own[key] for key, ours in keys.items()}
    described["network"] = stored_network(described["network"])
    try:
        described = json.loads(json.dumps(described))  # tuples as lists, as in model.json
    except (TypeError, ValueError, RecursionError):
        return None
    check_description(described, file)
    return cast(ModelDescription, described)


def _assemble(described: ModelDescription, tensors: dict[str, Tensor]) -> LoadedClassifier:
    """Build the network as load() returns it. Raises any exception if description and weights do not fit together."""
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    network = network_of(described)
    with _limits(network, shapes):
        model = cast(LoadedClassifier, classifier_from(network, LoadedClassifier))
    _require_same({name: tuple(value.shape) for name, value in model.state_dict().items()}, shapes)
    model.load_state_dict(tensors)
    config = described.setdefault("config", {})
    described.setdefault("metrics", {})
    described.setdefault("versions", {})
    model.about = described
    labels = {name: described["labels"][name] for name in model.labels}
    model.classes = {name: label["names"] for name, label in labels.items() if "ids" in label}
    model.class_ids = {name: label["ids"] for name, label in labels.items() if "ids" in label}
    model.parents = parents_of(labels)
    model.temperature = {name: float(described.get("temperature", {}).get(name, 1.0)) for name in model.classes}
    values: dict[str, Any] = {**described["preprocessing"]}
    model.preprocessing = Preprocessing(**values)  # which makes tuples of its lists
    in_config = config.get("data", {}).get("crop_to_box", False)  # where the first release stored it
    model.crop_to_box = described.get("crop_to_box", in_config)
    return model.eval()


def find_model(path: Path) -> tuple[Path, Path]:
    """Return a model's folder and its model.json. Raises InputError if there is none."""
    try:
        folder = path if path.is_dir() else path.parent
        missing = next((each for each in (path, folder / DESCRIPTION) if not each.exists()), None)
        parts = sorted(folder.glob(f"*_*/{DESCRIPTION}")) if missing else []
        part = next((each.parent for each in parts if each.parent.name.startswith(("fold_", "seed_"))), None)
        is_other = path.is_file() and path.suffix != ".safetensors" and path.name != DESCRIPTION
    except OSError as error:  # a name that is too long, a folder without permission
        raise InputError(f"{str(path)[:400]}: can't be opened ({error.strerror}); give a run's folder") from None
    if is_other:
        run = path.absolute().parent.parent
        way = f"give its run, {run}" if (run / DESCRIPTION).is_file() else "give the folder of a finished run"
        raise InputError(
            f"{path}: not a model file; {way}, or its {WEIGHTS} (training begins from a checkpoint with model.weights=)"
        )
    if part:
        raise InputError(f"{path}: holds the {part.name[:4]}s of a run; give one of them, such as {part}")
    if missing and is_run(folder):
        raise InputError(
            f"{path}: its run is not finished; carvision train with the same words and run.dir={folder} resumes it"
        )
    if missing:
        raise InputError(f"{path}: no model there ({missing} does not exist); give the folder of a finished run")
    return folder, folder / DESCRIPTION


def require_fitting(network: NetworkDescription, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise an exception if the described network has larger layers than these weights, or another backbone.

    Takes little time and memory however large the description is. shapes: {name: shape} of the weights.
    """
    sizes = [size for shape in shapes.values() if 0 not in shape for size in shape]  # 0: it takes no byte of the file
    _require_layers(network, {shape for shape in shapes.values() if 0 not in shape}, len(shapes))
    values = values_within(network.get("backbone_kwargs", {}))
    numbers = [0, *(abs(value) for value in values if isinstance(value, int | float))]
    # The sum, as timm makes lists of as many blocks before it makes one
    if max(numbers) > max(LARGEST_NUMBER, *sizes) or sum(numbers) > max(LARGEST_SUM, *sizes):
        raise ValueError(f"backbone_kwargs hold numbers up to {max(numbers):g}, and no weights are of that size")
    limits = _limits(network, shapes)
    try:
        with torch.device("meta"), WithoutValues(), limits:  # parameters that take no memory
            backbone = create_backbone(network["backbone"], network.get("backbone_kwargs"), False, network["size_px"])
    except Exception:
        if limits.exceeded:
            raise
        log.debug("%s can't be built without memory", network["backbone"], exc_info=True)
        return  # it is built within the limits, and compared then
    own = {f"backbone.{name}": tuple(value.shape) for name, value in backbone.state_dict().items()}
    if network.get("pool", "default") != "default":  # which leaves out what comes after the feature map
        own = {name: shape for name, shape in own.items() if name in shapes}
    _require_same(own, {name: shape for name, shape in shapes.items() if name.startswith("backbone.")})


def _limits(network: NetworkDescription, shapes: dict[str, tuple[int, ...]]) -> Limits:
    """Return limits for building a network of these weights, with margins for what it creates and then replaces: a pool
    replaces the dense layers of VGG, of 120 million values."""
    num_values = sum(math.prod(shape) for shape in shapes.values())
    replaced = 10_000_000 if network.get("pool", "default") == "default" else 200_000_000
    return Limits(100 + 2 * len(shapes), replaced + 2 * num_values, 1000 + 20 * len(shapes))


def _require_layers(network: NetworkDescription, shapes: set[tuple[int, ...]], num_tensors: int) -> None:
    """Check that each large layer of trunk, heads and embedding has the shape of some of the weights; small ones are
    compared by name after they are built."""
    embedding = network.get("embedding", {})
    layers = network["trunk"], embedding.get("layers", {}), embedding.get("difference", {})
    chains = [each.get("hidden", []) for each in layers]
    chains += [[*head["layers"].get("hidden", []), head["num_outputs"]] for head in network["heads"].values()]
    num_layers = sum(map(len, chains))
    if num_layers > num_tensors:
        raise ValueError(f"{num_layers:,} layers, and weights of {num_tensors:,} tensors")
    first = {shape[0] for shape in shapes if shape}
    largest = max((size for shape in shapes for size in shape), default=1)
    for units in chains:
        missing = [outputs for inputs, outputs in pairwise(units)
                   if inputs * outputs > SMALL_LAYER and (outputs, inputs) not in shapes]  # fmt: skip
        missing += [outputs for outputs in units[:1] if outputs * largest > SMALL_LAYER and outputs not in first]
        if missing:
            raise ValueError(f"a layer of {max(missing)} units, and no weights of that size")
    num_classes, proxies = embedding.get("num_classes", 0), embedding.get("proxies_per_class", 0)
    if proxies and not any(shape[:2] == (num_classes, proxies) for shape in shapes):
        raise ValueError(f"proxies of {num_classes} classes, and no weights of that size")


def _require_same(own: dict[str, tuple[int, ...]], shapes: dict[str, tuple[int, ...]]) -> None:
    """Check that the network's tensors and those of its weights have the same names and shapes."""
    odd = sorted(own.keys() ^ shapes.keys())
    if odd:
        raise ValueError(f"{odd[0]} is {'not in its weights' if odd[0] in own else 'no part of its network'}")
    wrong = next((name for name, shape in own.items() if shapes[name] != shape), None)
    if wrong:
        raise ValueError(f"{wrong} has the shape {shapes[wrong]}, and its network {own[wrong]}")


def parents_of(labels: "dict[str, LabelDescription]") -> dict[str, tuple[str, Tensor]]:
    """Return {child: (parent, int64 codes)} for the labels whose parent is a label too, from label descriptions."""
    return {
        name: (label["parent"], torch.tensor(label["parent_codes"]))
        for name, label in labels.items()
        if label.get("parent") in labels
    }


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
