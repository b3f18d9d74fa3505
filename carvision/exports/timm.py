"""Export a folder that timm.create_model("local-dir:<folder>", pretrained=True) opens, without carvision."""

import json
import logging
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors.torch import save
from torch import nn

from carvision.errors import InputError
from carvision.exports.shared import atomic_export, largest_difference, random_images, require_agreement
from carvision.inference.model_file import LoadedClassifier
from carvision.models.classifier import head_module
from carvision.models.report_networks import IN_TIMM

log = logging.getLogger(__name__)

TOLERANCE = 1e-5
CROP_MODES = {"squash": "squash", "crop": "center"}  # Preprocessing.resize -> timm's name


def export_timm(model: LoadedClassifier, folder: Path, head: str | None = None) -> str:
    """Write config.json and model.safetensors into the folder; return a summary line.

    The classifier is the given head, or the one with most classes among those that are a single linear layer on the
    pooled features; without such a head only the backbone is written. Raises InputError for a network that only
    carvision has, a head that can't be the classifier, and if the folder disagrees with the run.
    """
    found = in_timm(model)
    if found is None:
        name = model.description["backbone"]
        raise InputError(f"--format timm: timm lacks the network {name}; use --format onnx or torch-export")
    architecture, arguments = found
    head = chosen_head(model, head)
    network = _with_classifier(model, architecture, arguments, head) if head else None
    if network is None:
        head, network = None, _without_classifier(model, architecture, arguments)
    what = _content_line(model, head)
    with atomic_export(folder) as partial:
        partial.mkdir()
        # Each tensor in memory of its own, as safetensors requires
        tensors = {name: value.detach().clone().contiguous() for name, value in network.state_dict().items()}
        (partial / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
        config = _config(model, network, architecture, arguments, head, what)
        (partial / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        difference = _difference(model, timm.create_model(f"local-dir:{partial}", pretrained=True).eval(), head)
        require_agreement(difference, TOLERANCE, folder.name)
    others = [name for name in linear_heads(model) if name != head]
    more = f" (--head chooses another: {', '.join(others)})" if head and others else ""
    return f"timm, {architecture}: {what}{more}; relative difference from the run's outputs: {difference:.1e}"


def in_timm(model: LoadedClassifier) -> tuple[str, dict] | None:
    """Return the architecture's name in timm, and its arguments; None if only carvision has it."""
    name = model.description["backbone"]
    arguments = dict(model.description["backbone_kwargs"])
    known = timm.get_pretrained_cfg(name)
    if known and known.fixed_input_size:  # as in create_backbone
        arguments = {"img_size": model.description["size_px"], **arguments}
    name = name.partition(".")[0]  # the tag identifies weights, not the network
    if name in IN_TIMM:
        architecture, defaults = IN_TIMM[name]
        return architecture, {**defaults, **arguments}
    if not timm.models.model_entrypoint(name).__module__.startswith("timm."):
        return None
    return name, arguments


def linear_heads(model: LoadedClassifier) -> list[str]:
    """Return the heads that are one linear layer on the backbone's own pooled features, most classes first."""
    network = model.description
    if network["pool"] != "default" or network["neck"]["blocks"] or network["trunk"]["hidden"]:
        return []
    names = [name for name in model.classes if not network["heads"][name]["layers"]["hidden"]]
    return sorted(names, key=lambda name: -len(model.classes[name]))


def chosen_head(model: LoadedClassifier, wanted: str | None) -> str | None:
    """Return the head that becomes timm's classifier: the one wanted, else the one with most classes, None if none can.

    Raises InputError for a head that doesn't exist or can't be the classifier.
    """
    possible = linear_heads(model)
    if wanted is None:
        return possible[0] if possible else None
    if wanted not in model.labels:
        raise InputError(f"--head: {wanted!r} is not a head of this run; it has {', '.join(model.labels)}")
    if wanted not in possible:
        why = "estimates a number" if wanted in model.units else "is more than one linear layer on the pooled features"
        fix = f"give {' or '.join(possible)}" if possible else "without --head the backbone alone is written"
        raise InputError(f"--head: {wanted} {why}, which timm's classifier can't be; {fix}")
    return wanted


def _with_classifier(model: LoadedClassifier, architecture: str, arguments: dict, head: str) -> nn.Module | None:
    """Return timm's network with the head as its classifier; None if timm's classifier is more complex."""
    output = cast(nn.Linear, model.get_submodule(f"{head_module(head)}.output"))
    network = timm.create_model(architecture, num_classes=output.out_features, **arguments).eval()
    tensors = model.backbone.state_dict()
    names = cast(dict, network.pretrained_cfg)["classifier"]
    try:
        for name in (names,) if isinstance(names, str) else names:
            classifier = cast(nn.Linear, network.get_submodule(name))  # or a convolution of 1 x 1
            tensors[f"{name}.weight"] = output.weight.detach().reshape(classifier.weight.shape)
            tensors[f"{name}.bias"] = output.bias.detach()
        network.load_state_dict(tensors)
        difference = _difference(model, network, head)
    except (AttributeError, TypeError, RuntimeError) as error:
        log.debug("%s: %s", architecture, error)
        difference = float("inf")
    if difference <= TOLERANCE:
        return network
    log.warning("%s: timm's classifier is more than a linear layer; the backbone alone is written", architecture)
    return None


def _without_classifier(model: LoadedClassifier, architecture: str, arguments: dict) -> nn.Module:
    """Return timm's network without classifier.

    Layers that model.pool left out get timm's initial values, with a fixed seed.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        network = timm.create_model(architecture, num_classes=0, **arguments).eval()
    missing, unexpected = network.load_state_dict(model.backbone.state_dict(), strict=False)
    left_out = tuple(f"{name}." for name in getattr(model.backbone, "left_out", ()))
    differing = [*unexpected, *(name for name in missing if not name.startswith(left_out))]
    if differing:
        raise InputError(
            f"--format timm: {differing[0]} is not the same in timm's {architecture}; use --format torch-export"
        )
    return network


def _features_are_the_runs(model: LoadedClassifier) -> bool:
    """Return whether timm's pooled features equal the run's; else only its feature map does."""
    return model.description["pool"] == "default" and not model.description["neck"]["blocks"]


@torch.no_grad()
def _difference(model: LoadedClassifier, network: Any, head: str | None) -> float:
    """Return the largest_difference between the run's network and timm's, over the outputs that both share."""
    images = random_images(2, model.preprocessing.size_px)
    if head is not None:
        return largest_difference({"out": model(images)[head]}, {"out": network(images)})
    if _features_are_the_runs(model):
        return largest_difference({"out": model.features(images)}, {"out": network(images)})
    ours, theirs = model.backbone.forward_features(images), network.forward_features(images)
    return largest_difference({"out": ours}, {"out": theirs})


def _content_line(model: LoadedClassifier, head: str | None) -> str:
    """Describe in one line what of the run the folder holds."""
    if head is not None:
        return f"the backbone, and {head} as its classifier with {len(model.classes[head])} classes"
    if _features_are_the_runs(model):
        return "the backbone alone, whose pooled features are the run's"
    left_out = getattr(model.backbone, "left_out", ())
    untrained = (
        f"; the weights of {', '.join(left_out)} are random, the run did not use these layers" if left_out else ""
    )
    return f"the backbone alone, of which forward_features(images) is the run's and what follows is not{untrained}"


def _config(
    model: LoadedClassifier, network: nn.Module, architecture: str, arguments: dict, head: str | None, what: str
) -> dict:
    """Return config.json as timm's save_config_for_hf writes it (timm/models/_hub.py), readable by all its versions."""
    known = model.backbone.pretrained_cfg  # the new network's config could name another first convolution
    size_px, reading = model.preprocessing.size_px, model.preprocessing
    same_size = tuple(known["input_size"]) == (3, size_px, size_px)
    config = {
        "architecture": architecture,
        "num_classes": network.num_classes,
        "num_features": network.num_features,
        **({"global_pool": pool} if (pool := _global_pool(network)) else {}),
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": {
            "tag": "carvision",
            "custom_load": False,
            "input_size": [3, size_px, size_px],
            "fixed_input_size": known.get("fixed_input_size", False),
            "interpolation": reading.interpolation,
            "crop_pct": 1.0,
            "crop_mode": CROP_MODES[reading.resize],
            "mean": list(reading.mean),
            "std": list(reading.std),
            "num_classes": network.num_classes,
            "pool_size": known.get("pool_size") if same_size else None,
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
            "notes": [f"written by carvision: {what}"],
        },
    }
    return {**config, **(_label_names(model, head) if head else {})}


def _global_pool(network: nn.Module) -> str | None:
    """Return the name of the network's pooling, which config.json states for information."""
    for owner in (getattr(network, "head", None), network):
        pool = getattr(owner, "global_pool", None)
        pool = getattr(pool, "pool_type", pool)
        if isinstance(pool, str) and pool:
            return pool
    return None


def _label_names(model: LoadedClassifier, head: str) -> dict:
    """Return the label names and descriptions. timm needs unique names: the ids, if two classes share a name."""
    names, ids = model.classes[head], model.class_ids[head]
    keys = names if len(set(names)) == len(names) else ids
    described = names
    if head in model.parents:
        parent, codes = model.parents[head]
        described = [
            f"{name} ({model.classes[parent][code]})" for name, code in zip(names, codes.tolist(), strict=True)
        ]
    return {"label_names": keys, "label_descriptions": dict(zip(keys, described, strict=True))}
