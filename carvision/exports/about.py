"""Metadata of an exported network, without private information of the owner's machine."""

from pathlib import PurePosixPath, PureWindowsPath

from carvision.models.classifier import Classifier

# Keys of the configuration whose values are files or folders.
PATHS = ("data.root", "data.cache", "data.file", "data.names", "data.split.file", "run.dir", "model.weights")


def public_about(about: dict) -> dict:
    """Return model.json's content with every path in its configuration reduced to its last component.

    The full folders reveal who trained and how their disks are laid out, and help no one else. data.root becomes null:
    whoever evaluates must say where their copy is.
    """
    config = _public(about.get("config", {}))
    if isinstance(config.get("data"), dict) and "root" in config["data"]:
        config["data"]["root"] = None
    return {**about, "config": config}


def _public(value: object, key: str = "") -> object:
    if isinstance(value, dict):
        return {name: _public(inner, f"{key}.{name}" if key else str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [_public(inner, key) for inner in value]
    if isinstance(value, str) and (key in PATHS or _is_absolute(value)):
        return PureWindowsPath(value).name  # takes both kinds of slashes
    return value


def _is_absolute(text: str) -> bool:
    return PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or text.startswith(("~", "file:"))


def document(model: Classifier) -> dict:
    """Return everything needed to prepare photos for the network and to interpret its logits, as plain values.

    parents: {child: [parent, parent class of each child class]}. units: of heads that predict a number.
    """
    labels = model.about["labels"]
    return {
        **model.preprocessing.as_dict(),
        "crop_to_box": bool(model.crop_to_box),
        "classes": model.classes,
        "class_ids": model.class_ids,
        "parents": {child: [parent, codes.tolist()] for child, (parent, codes) in model.parents.items()},
        "decoding": model.about["decoding"],
        "temperature": model.temperature,
        "units": {name: labels[name]["unit"] for name in model.units},
    }
