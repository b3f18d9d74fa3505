"""model.json: what it may hold. A file that somebody sent is read as data that can be wrong in any way."""

import json
from pathlib import Path

import carvision
from carvision.allowed import ALLOWED
from carvision.checks import Check, list_of, mapping, mapping_of, number, one_of, optional, text, whole
from carvision.errors import InputError

FORMAT = 1

_any_text: Check = lambda value: None if isinstance(value, str) else "a text"  # noqa: E731 - a class may have no name
_flag = ALLOWED["data.crop_to_box"]
_layers = {key.rpartition(".")[2]: check for key, check in ALLOWED.items() if key.startswith("model.trunk.")}

# By dots; a "*" stands for any one name. A key that holds more than its mapping's own keys is checked by them.
FIELDS: dict[str, Check] = {
    "format": whole(1),
    "network": mapping,
    "network.backbone": text,
    "network.backbone_kwargs": mapping,
    "network.size_px": ALLOWED["data.image_px"],
    "network.pool": ALLOWED["model.pool"],
    "network.trunk": mapping,
    **{f"network.trunk.{key}": check for key, check in _layers.items()},
    "network.neck": mapping,
    "network.neck.blocks": ALLOWED["model.neck"],
    "network.neck.dropout": ALLOWED["model.neck_dropout"],
    "network.neck.attention_reduction": ALLOWED["model.attention_reduction"],
    "network.neck.se_reduction": ALLOWED["model.se_reduction"],
    "network.heads": mapping_of(mapping),
    "network.heads.*": mapping,
    "network.heads.*.num_outputs": whole(1),
    "network.heads.*.layers": mapping,
    **{f"network.heads.*.layers.{key}": check for key, check in _layers.items()},
    "network.heads.*.mean": optional(number()),
    "network.heads.*.std": optional(number()),
    "labels": mapping_of(mapping),
    "labels.*": mapping,
    "labels.*.ids": list_of(text),
    "labels.*.names": list_of(_any_text),
    "labels.*.parent": optional(text),
    "labels.*.parent_codes": list_of(whole(0)),
    "labels.*.unit": _any_text,
    "labels.*.mean": number(),
    "labels.*.std": number(),
    "preprocessing": mapping,
    "preprocessing.size_px": ALLOWED["data.image_px"],
    "preprocessing.mean": list_of(number(), 3),
    "preprocessing.std": list_of(number(0, above=True), 3),
    "preprocessing.interpolation": one_of("bilinear", "bicubic", "lanczos"),
    "preprocessing.resize": ALLOWED["data.resize"],
    "decoding": ALLOWED["model.decoding"],
    "crop_to_box": _flag,
    "temperature": mapping_of(number(0, above=True)),
    "weights": mapping,
    "weights.kind": one_of("raw", "averaged"),
    "weights.epoch": optional(whole(0)),
    "weights.file": text,
    "sha256": text,
    "metrics": mapping,
    "config": mapping,
    "versions": mapping,
}
REQUIRED = ("format", "network", "labels", "preprocessing", "decoding", "sha256")
FREE = ("network.backbone_kwargs", "metrics", "config", "versions", "temperature")  # their own keys are any


def read_description(file: Path) -> dict:
    """What model.json says, checked. Raises InputError, in one line, where it is newer, damaged or wrong in itself."""
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: can't be read as JSON ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(described, dict) or "format" not in described:
        raise InputError(f"{file}: was not written by carvision; give the folder of a run that has finished")
    version = described["format"]
    if FIELDS["format"](version) is None and version > FORMAT:
        raise InputError(
            f"{file}: format {version} is newer than {FORMAT}, the newest that carvision {carvision.__version__} "
            "knows; update carvision"
        )
    try:
        missing = [key for key in REQUIRED if key not in described]
        if missing:
            raise InputError(f"{missing[0]} is missing")
        _check_fields(described)
        for name, label in described["labels"].items():
            _check_label(name, label, described["labels"], described["network"]["heads"])
        _check_file_name(described.get("weights", {}).get("file", "model.safetensors"))
    except InputError as error:
        raise InputError(f"{file}: {error}; the model is damaged or was changed by hand") from None
    return described


def _check_fields(values: dict, prefix: str = "", pattern: str = "") -> None:
    """pattern: the prefix as FIELDS has it, with "*" for names that are free."""
    for key, value in values.items():
        place = f"{pattern}{key}" if f"{pattern}{key}" in FIELDS else f"{pattern}*"
        if place not in FIELDS:
            raise InputError(f"{prefix}{key} is no part of format {FORMAT}")
        wrong = FIELDS[place](value)
        if wrong:
            raise InputError(f"{prefix}{key}: {_brief(value)} is not {wrong}")
        if isinstance(value, dict) and place not in FREE:
            _check_fields(value, f"{prefix}{key}.", f"{place}.")


def _check_label(name: str, label: dict, labels: dict, heads: dict) -> None:
    place = f"labels.{name}"
    if name not in heads or "num_outputs" not in heads[name]:
        raise InputError(f"{place}: the network has no such head")
    if "ids" not in label:
        if heads[name]["num_outputs"] != 1 or "unit" not in label:
            raise InputError(f"{place}: holds neither classes nor the unit of a number")
        return
    ids, names, codes = label["ids"], label.get("names", []), label.get("parent_codes", [])
    if not len(ids) == len(set(ids)) == len(names) == heads[name]["num_outputs"]:
        raise InputError(
            f"{place}: {len(set(ids))} different ids and {len(names)} names for {heads[name]['num_outputs']} outputs"
        )
    parent = labels.get(label.get("parent"), {}).get("ids")
    if parent is not None and (len(codes) != len(ids) or max(codes, default=0) >= len(parent)):
        raise InputError(f"{place}.parent_codes: not a class of {label['parent']} for each of {len(ids)} classes")


def _check_file_name(name: str) -> None:
    if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
        raise InputError(f"weights.file: {name!r} is not the name of a .safetensors file in the same folder")


def _brief(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
