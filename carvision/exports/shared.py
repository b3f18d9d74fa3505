"""The parts that all exports share: public metadata, atomic files, and the check against the run's network."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from carvision.errors import InputError, one_line
from carvision.files.atomic import PARTIAL
from carvision.files.folders import shorten
from carvision.inference.description import ModelDescription
from carvision.inference.model_file import LoadedClassifier

# Keys of the configuration whose values are files or folders
PATHS = ("data.root", "data.cache", "data.file", "data.names", "data.split.file", "run.dir", "model.weights")


def public_about(about: ModelDescription) -> ModelDescription:
    """Return model.json's content with every path in its configuration reduced to its last component.

    The full folders reveal who trained and how their disks are laid out, and help no one else. data.root becomes null:
    whoever evaluates must say where their copy is.
    """
    config = {name: _public(value, name) for name, value in about.get("config", {}).items()}
    if isinstance(config.get("data"), dict) and "root" in config["data"]:
        config["data"]["root"] = None
    return {**about, "config": config}


def _public(value: Any, key: str) -> Any:
    """Return the value of a key with the paths in it reduced to their last components."""
    if isinstance(value, dict):
        return {name: _public(inner, f"{key}.{name}") for name, inner in value.items()}
    if isinstance(value, list):
        return [_public(inner, key) for inner in value]
    if isinstance(value, str) and (key in PATHS or _is_absolute(value)):
        return PureWindowsPath(value).name  # takes both kinds of slashes
    return value


def _is_absolute(text: str) -> bool:
    return PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or text.startswith(("~", "file:"))


def input_and_output(model: LoadedClassifier) -> dict:
    """Return the values needed to prepare photos for the network and to interpret its logits, as plain Python.

    parents: {child: [parent, parent class of each child class]}. units: of heads that predict a number.
    """
    labels = model.about["labels"]
    return {
        **model.preprocessing.as_dict(),
        "crop_to_box": model.crop_to_box,
        "classes": model.classes,
        "class_ids": model.class_ids,
        "parents": {child: [parent, codes.tolist()] for child, (parent, codes) in model.parents.items()},
        "decoding": model.about["decoding"],
        "temperature": model.temperature,
        "units": {name: labels[name]["unit"] for name in model.units},
    }


def require_absent(path: Path) -> None:
    """Raise InputError if the path exists or can't be checked."""
    try:
        path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(
            f"{shorten(str(path))} can't be written ({error.strerror}); give another path with --out"
        ) from None
    raise InputError(f"{path} exists already; give another path with --out")


@contextmanager
def atomic_export(path: Path) -> Iterator[Path]:
    """Yield a temporary path, in a hidden folder beside `path`, for the file or folder to write.

    On success it is renamed to `path`, together with any other files written beside it (the weights of a large ONNX
    file); on failure nothing is left. Raises InputError if `path` already exists or can't be written.
    """
    require_absent(path)
    hidden = path.parent / f".{path.name}.{os.getpid()}{PARTIAL}"
    try:
        hidden.mkdir(parents=True)
        try:
            yield hidden / path.name
            others = [file for file in hidden.iterdir() if file.name != path.name]
            for file in [*others, hidden / path.name]:  # last, as it refers to the others
                require_absent(path.parent / file.name)
                file.rename(path.parent / file.name)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise InputError(f"{path} can't be written ({reason}); give another path with --out") from None


def random_images(num: int, size_px: int) -> Tensor:
    """Return standard normal (num, 3, size_px, size_px), as normalised photos are; always the same ones."""
    return torch.randn(num, 3, size_px, size_px, generator=torch.Generator().manual_seed(num))


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Return the largest |ours - theirs| over all names, as a fraction of the largest |ours| of that name.

    inf if shapes differ, or a value is inf or NaN.
    """
    largest = 0.0
    for name, values in ours.items():
        if values.shape != theirs[name].shape or not (values.isfinite() & theirs[name].isfinite()).all():
            return float("inf")
        scale = values.abs().max().clamp(min=1e-6)
        largest = max(largest, ((values - theirs[name]).abs().max() / scale).item())
    return largest


@torch.no_grad()
def difference_from(model: LoadedClassifier, run: Callable[[Tensor], dict[str, Tensor]]) -> float:
    """Return the largest_difference between the logits of the model and those of `run`, for one image and for three."""
    batches = (random_images(num, model.preprocessing.size_px) for num in (1, 3))
    return max(largest_difference(model(images), run(images)) for images in batches)


def require_agreement(difference: float, allowed: float, what: str) -> None:
    """Raise InputError if the difference is more than allowed, or NaN."""
    if not difference <= allowed:
        raise InputError(
            f"{what} differs from the run's network by {difference:.1e} of its largest value, more than {allowed:.0e}: "
            "it was not kept. Choose another --format, and report the network's name"
        )
