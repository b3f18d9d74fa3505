"""The format of model.json, and checks of its contents, as the file may come from anyone and be wrong in any way."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, cast

import carvision
from carvision.config.schema import ALLOWED
from carvision.config.validators import (
    MAX_JSON_BYTES,
    Check,
    check_parent,
    flag,
    list_of,
    mapping,
    mapping_of,
    number,
    one_of,
    optional,
    parse_json,
    record,
    shown,
    text,
    whole,
)
from carvision.errors import InputError, one_line

if TYPE_CHECKING:  # these import Pillow, pandas and torch
    from carvision.data.images import PreprocessingDescription
    from carvision.data.table import LabelDescription
    from carvision.models.classifier import NetworkDescription

FORMAT = 3  # 1 held the input's size and the sizes and units of heads twice; 2 had no operating points


class WeightsDescription(TypedDict, total=False):
    """Where weights come from. kind: "raw" or "averaged". epoch: the one, from 0, after which the network had them."""

    file: str
    kind: str
    epoch: int | None


class OperatingPoint(TypedDict):
    """The probability from which on a share `accuracy` of the validation photos' answers is right. coverage: the share
    of the photos that have at least this probability."""

    accuracy: float
    threshold: float
    coverage: float


class ModelDescription(TypedDict):
    """The contents of model.json. config: the run's configuration; metrics: {split: {name: value}}."""

    format: int
    network: dict[str, Any]  # a NetworkDescription, without what labels and preprocessing hold: see network_of
    labels: "dict[str, LabelDescription]"
    preprocessing: "PreprocessingDescription"
    decoding: str
    crop_to_box: NotRequired[bool]
    temperature: NotRequired[dict[str, float]]
    operating_points: NotRequired[dict[str, list[OperatingPoint]]]  # of heads with classes; by rising accuracy
    weights: NotRequired[WeightsDescription]
    sha256: NotRequired[str]  # of the file of weights; a checkpoint's description has none
    metrics: NotRequired[dict[str, Any]]
    config: NotRequired[dict[str, Any]]
    versions: NotRequired[dict[str, str]]


_any_text: Check = lambda value: None if isinstance(value, str) else "a text"  # noqa: E731 - a class may have no name
_layers = {key.rpartition(".")[2]: check for key, check in ALLOWED.items() if key.startswith("model.trunk.")}
_with_layers = ("network.trunk", "network.embedding.layers", "network.embedding.difference", "network.heads.*.layers")

# Dotted keys, where "*" stands for any one name
FIELDS: dict[str, Check] = {
    "format": whole(1),
    "network": mapping,
    "network.backbone": text,
    "network.backbone_kwargs": mapping,
    "network.pool": ALLOWED["model.pool"],
    **dict.fromkeys(_with_layers, mapping),
    **{f"{part}.{key}": check for part in _with_layers for key, check in _layers.items()},
    "network.neck": mapping,
    "network.neck.blocks": ALLOWED["model.neck"],
    "network.neck.dropout": ALLOWED["model.neck_dropout"],
    "network.neck.attention_reduction": ALLOWED["model.attention_reduction"],
    "network.neck.se_reduction": ALLOWED["model.se_reduction"],
    "network.embedding": mapping,
    "network.embedding.proxies_per_class": whole(0, 100),
    "network.embedding.num_classes": whole(0),
    "network.heads": mapping_of(mapping),
    "network.heads.*": mapping,
    "labels": mapping_of(mapping),
    "labels.*": mapping,
    "labels.*.ids": list_of(text),
    "labels.*.names": list_of(_any_text),
    "labels.*.parent": optional(text),
    "labels.*.parent_codes": list_of(whole(0)),
    "labels.*.unit": _any_text,
    "labels.*.mean": number(),
    "labels.*.std": number(0, above=True),
    "preprocessing": mapping,
    "preprocessing.size_px": ALLOWED["data.image_px"],
    "preprocessing.mean": list_of(number(), 3),
    "preprocessing.std": list_of(number(0, above=True), 3),
    "preprocessing.interpolation": one_of("bilinear", "bicubic", "lanczos"),
    "preprocessing.resize": ALLOWED["data.resize"],
    "decoding": ALLOWED["model.decoding"],
    "crop_to_box": flag,
    "temperature": mapping_of(number(0, above=True)),
    "operating_points": mapping_of(
        list_of(record(accuracy=number(0, 1), threshold=number(0, 1), coverage=number(0, 1)))
    ),
    "weights": mapping,
    "weights.kind": one_of("raw", "averaged"),
    "weights.epoch": optional(whole(0)),
    "weights.file": text,
    "sha256": text,
    "metrics": mapping,
    "config": mapping,
    "versions": mapping_of(_any_text),
}
REQUIRED = {
    "": ("format", "network", "labels", "preprocessing", "decoding"),
    "network": ("backbone", "heads", "trunk"),
    "preprocessing": ("size_px", "mean", "std"),
}
# The keys of "config" and "metrics" that are read; others may come from any version of carvision
GROUPS = {"config": ("data", "model", "loss", "callbacks"), "metrics": ("train", "val", "test")}
HUGE = 1e30  # above anything that is counted or measured here, and within float32
MAX_DEPTH = 50
MAX_KWARGS = 1000  # values in network.backbone_kwargs, at any depth
MAX_NECK = 100  # blocks
# With any keys of their own
FREE = ("network.backbone_kwargs", "metrics", "config", "versions", "temperature", "operating_points")


def read_description(file: Path) -> ModelDescription:
    """Read a model.json and check it.

    Raises InputError, in one line, if it has a newer format, is damaged, larger than any that carvision writes, or
    inconsistent.
    """
    described = read_json(file)
    if not isinstance(described, dict) or "format" not in described:
        raise InputError(f"{file}: was not written by carvision; give the folder of a run that has finished")
    version = described["format"]
    is_number = whole(1)(version) is None
    if is_number and version > FORMAT:
        raise InputError(
            f"{file}: format {shown(version)} is newer than {FORMAT}, the newest that carvision "
            f"{carvision.__version__} knows; update carvision"
        )
    if "sha256" not in described:
        raise InputError(f"{file}: sha256 is missing; the model is damaged or was changed by hand")
    if is_number and version < FORMAT:
        described |= {"format": FORMAT, "network": stored_network(described.get("network"))}
    check_description(described, file)
    return cast(ModelDescription, described)


def stored_network(network: Any) -> Any:
    """Return a Classifier's description without what labels and preprocessing hold, too, as model.json stores it."""
    if not isinstance(network, dict) or not isinstance(network.get("heads"), dict):
        return network
    heads = {
        name: {key: head[key] for key in head if key not in ("num_outputs", "mean", "std")}
        for name, head in network["heads"].items()
        if isinstance(head, dict)
    }
    return {key: value for key, value in network.items() if key != "size_px"} | {"heads": network["heads"] | heads}


def network_of(described: ModelDescription) -> "NetworkDescription":
    """Return the arguments of the Classifier that a checked description describes."""
    heads = {}
    for name, head in described["network"]["heads"].items():
        label = described["labels"][name]
        if "ids" in label:
            heads[name] = {**head, "num_outputs": len(label["ids"])}
        else:
            heads[name] = {**head, "num_outputs": 1, "mean": label["mean"], "std": label["std"]}
    size_px = described["preprocessing"]["size_px"]
    return cast("NetworkDescription", {**described["network"], "heads": heads, "size_px": size_px})


def read_json(file: Path) -> object:
    """Read a JSON file that anyone may have written. Raises InputError if it can't be read, or is too large."""
    try:
        with file.open("rb") as opened:
            return parse_json(opened.read(MAX_JSON_BYTES + 1), str(file))
    except OSError as error:
        raise InputError(f"{file}: can't be read ({error.strerror})") from None


def check_description(described: dict, file: Path) -> None:
    """Raise InputError, in one line that names the file, if this can't be the description of a model."""
    try:
        _check_numbers(described)
        _check_fields(described)
        for part, keys in REQUIRED.items():
            for key in keys:
                if key not in (described[part] if part else described):
                    raise InputError(f"{part}{'.' if part else ''}{key} is missing")
        _check_groups(described)
        _check_network(described["network"])
        _check_heads(described["network"]["heads"], described["labels"])
        _check_file_name(described.get("weights", {}).get("file", "model.safetensors"))
    except InputError as error:
        text = one_line(error, 400)
        raise InputError(f"{file}: {text}; the model is damaged or was changed by hand") from None


def _check_numbers(described: dict) -> None:
    """Check that every number is finite and below HUGE; only metrics and the configuration may hold NaN or inf."""
    waiting = [(key, value, 1) for key, value in described.items()]
    while waiting:
        path, value, depth = waiting.pop()
        path = path[:100]  # it is copied for each value within
        if depth > MAX_DEPTH:
            raise InputError(f"{path.partition('.')[0]}: nested more than {MAX_DEPTH} deep")
        if isinstance(value, dict):
            waiting += [(f"{path}.{key[:60]}", inner, depth + 1) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(path, inner, depth + 1) for inner in value]
        elif isinstance(value, int | float) and not abs(value) < HUGE:
            measured = path.partition(".")[0] in GROUPS and not isinstance(value, int)
            if not measured or math.isfinite(value):
                raise InputError(f"{path}: {shown(value)} is not a number below {HUGE:g}")


def _check_fields(values: dict, prefix: str = "", pattern: str = "") -> None:
    """Check all values below the dotted `prefix` by FIELDS. pattern: the prefix with "*" for names that may be any."""
    for key, value in values.items():
        field = f"{pattern}{key}" if f"{pattern}{key}" in FIELDS else f"{pattern}*"
        if field not in FIELDS:
            raise InputError(f"{prefix}{key[:60]} is no part of format {FORMAT}")
        wrong = FIELDS[field](value)
        if wrong:
            raise InputError(f"{prefix}{key}: {shown(value)} is not {wrong}")
        if isinstance(value, dict) and field not in FREE:
            _check_fields(value, f"{prefix}{key}.", f"{field}.")


def _check_groups(described: dict) -> None:
    for part, groups in GROUPS.items():
        for group in groups:
            value = described.get(part, {}).get(group, {})
            if mapping(value):
                raise InputError(f"{part}.{group}: {shown(value)} is not {mapping(value)}")
    cropped = described.get("config", {}).get("data", {}).get("crop_to_box", False)
    if flag(cropped):
        raise InputError(f"config.data.crop_to_box: {shown(cropped)} is not {flag(cropped)}")


def _check_network(network: dict) -> None:
    """Check the sizes of what would be built before anything can be compared with the weights."""
    num_blocks = len(network.get("neck", {}).get("blocks", []))
    if num_blocks > MAX_NECK:
        raise InputError(f"network.neck.blocks: {num_blocks:,} blocks are more than the {MAX_NECK} allowed")
    if len(values_within(network.get("backbone_kwargs", {}))) > MAX_KWARGS:
        raise InputError(f"network.backbone_kwargs: holds more than the {MAX_KWARGS:,} values allowed")


def values_within(value: object) -> list:
    """Return all values in nested mappings and lists, at any depth."""
    found, waiting = [], [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, dict):
            waiting += inner.values()
        elif isinstance(inner, list):
            waiting += inner
        else:
            found.append(inner)
    return found


def _check_heads(heads: dict, labels: dict) -> None:
    if not heads:
        raise InputError("network.heads: holds no head")
    for odd in sorted(heads.keys() ^ labels.keys()):
        raise InputError(
            f"labels.{odd}: the network has no such head" if odd in labels else f"network.heads.{odd}: has no label"
        )
    for name, label in labels.items():
        if "layers" not in heads[name]:
            raise InputError(f"network.heads.{name}: layers is missing")
        if "ids" in label:
            ids, names = label["ids"], label.get("names", [])
            if not 0 < len(ids) == len(set(ids)) == len(names):
                raise InputError(f"labels.{name}: {len(set(ids))} different ids and {len(names)} names")
            check_parent(name, label, labels)
        elif not {"unit", "mean", "std"} <= label.keys() or label.get("parent") is not None:
            raise InputError(
                f"labels.{name}: holds neither classes nor unit, mean and std of a number, without a parent"
            )


def _check_file_name(name: str) -> None:
    if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
        raise InputError(f"weights.file: {name!r} is not the name of a .safetensors file in the same folder")
