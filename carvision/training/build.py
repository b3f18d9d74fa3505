"""Build the datamodule and the LightningModule from the plain configuration, which goes no deeper than here."""

import logging
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch

from carvision.augment.pipeline import Augment
from carvision.data.build import build_split, build_table, download
from carvision.data.images import INTERPOLATIONS, Preprocessing
from carvision.data.loading.datamodule import PhotoDataModule
from carvision.data.loading.dataset import PhotoDataset
from carvision.data.paths import nfc
from carvision.data.splits import without_unseen_classes
from carvision.data.table import UNKNOWN, Classes, LabelDescription, Table
from carvision.errors import InputError, suggest
from carvision.inference.model_file import description_of
from carvision.losses.classification import create_class_weights
from carvision.losses.metric import WITH_PROXIES
from carvision.models.backbones import check_name, load_backbone_weights, read_weights
from carvision.models.classifier import Classifier, Head
from carvision.models.parts import Embedding, Layers, Neck
from carvision.training.distributed.launch import num_sharing
from carvision.training.module import LitClassifier
from carvision.training.optim import Phase, validate_phases

log = logging.getLogger(__name__)

BOX_LABELS = {"viewpoint"}  # CompCars stores these labels in its box files


def build_datamodule(cfg: dict, fold: int | None) -> PhotoDataModule:
    """Build the datamodule, already set up: the table is read, without annotations that cfg doesn't need.

    fold: the fold that is the validation split; None without k-fold.
    """
    data, augment = cfg["data"], cfg["augment"]
    create_dataset = partial(
        PhotoDataset,
        preprocessing=build_preprocessing(cfg),
        crop_to_box=data["crop_to_box"],
        crop_scale=tuple(augment["crop_scale"]),
        crop_ratio=tuple(augment["crop_ratio"]),
        num_draws=Augment(augment["order"], augment["steps"]).num_draws,
        seed=cfg["seed"],
    )
    download(data)
    annotations = data["crop_to_box"] or bool(BOX_LABELS & set(cfg["model"]["heads"]))
    table = build_split(build_table(data, annotations), data["split"], fold)
    if data["split"]["kind"] == "unseen_classes":
        table = without_unseen_classes(table)
    if data["crop_to_box"] and not table.has_boxes:
        raise InputError(f"data.crop_to_box: {table.name} under {table.root} comes without boxes")
    keys = ("batch_size", "num_workers", "sampler", "epoch_fraction", "on_bad_image", "photos_per_class")
    return PhotoDataModule(
        table,
        create_dataset,
        **{key: data[key] for key in keys},
        seed=cfg["seed"],
        num_sharing=num_sharing(),
        sampler_label=cfg["metric_loss"].get("label"),
    )


def build_preprocessing(cfg: dict) -> Preprocessing:
    """Build the preprocessing that belongs to the backbone's weights, overridden by the configuration's own values."""
    model, data = cfg["model"], cfg["data"]
    check_name(model["backbone"])
    described = description_of(file) if (file := weights_file(model["weights"])) else None
    if described:
        own = Preprocessing(**cast(Any, described["preprocessing"]))
        if own.resize != data["resize"]:
            log.warning("%s was trained with data.resize=%s, and this run has %s", file, own.resize, data["resize"])
    else:
        own = cast(Any, timm.get_pretrained_cfg(model["backbone"], allow_unregistered=True))
    interpolation = own.interpolation if own.interpolation in INTERPOLATIONS else "bicubic"
    return Preprocessing(
        size_px=data["image_px"],
        mean=model["mean"] or own.mean,
        std=model["std"] or own.std,
        interpolation=model["interpolation"] or interpolation,
        resize=data["resize"],
    )


def weights_file(weights: str) -> Path | None:
    """Return the file or folder that model.weights names; None for "pretrained" and "random", even if a file has that
    name."""
    return None if weights in ("pretrained", "random") else Path(weights)


def build_lit_classifier(cfg: dict, datamodule: PhotoDataModule, phases: list[Phase]) -> LitClassifier:
    """Build the LightningModule for the photos of `datamodule`. phases: of cfg."""
    table = datamodule.table
    assert table is not None  # build_datamodule has set it up
    labels = describe_labels(cfg, table)
    metric_loss, embedding = build_metric_loss(cfg, table)
    classifier = build_classifier(cfg, labels, embedding)
    validate_phases(phases, classifier)
    loss = dict(cfg["loss"])
    class_weights = {}
    weighting = loss.pop("class_weights")
    for name, label in labels.items() if weighting != "none" else ():
        if "ids" in label:
            codes = table.of_split("train").rows[name].to_numpy()
            counts = np.bincount(codes[codes != UNKNOWN], minlength=len(label["ids"]))
            class_weights[name] = create_class_weights(weighting, torch.from_numpy(counts)).tolist()
    given = loss["head_weights"]
    for name in given if isinstance(given, dict) else ():
        if name not in labels:
            raise InputError(f"loss.head_weights: {name!r} is not one of the heads {', '.join(labels)}")
    augment = {key: value for key, value in cfg["augment"].items() if not key.startswith("crop_")}
    preprocessing = datamodule.datasets["train"].preprocessing.as_dict()
    return LitClassifier(
        classifier.description, labels, preprocessing, loss, phases, augment, class_weights,
        cfg["model"]["decoding"], cfg["seed"], metric_loss, model=classifier,
    )  # fmt: skip


def describe_labels(cfg: dict, table: Table) -> dict[str, LabelDescription]:
    """Return {head: description} as plain values, as LitClassifier and model.json need it: classes with "ids", "names",
    "parent", "parent_codes"; numbers with "unit", "mean", "std" of the training photos.

    Raises InputError for an unknown label, one without a known training value, or a table with a single class.
    """
    heads = list(cfg["model"]["heads"]) or list(table.heads) or list(table.labels)
    described: dict[str, LabelDescription] = {}
    train = table.of_split("train").rows
    for name in heads:
        label = table.labels.get(name)
        if label is None:
            raise InputError(
                f"model.heads.{name}: {table.name} has no label {name!r}{suggest(name, table.labels)}; "
                f"its labels are {', '.join(table.labels)}"
            )
        known = train[name][train[name] != UNKNOWN].dropna()
        if known.empty:
            raise InputError(f"model.heads.{name}: no training photo of {table.name} has a known {name}")
        if isinstance(label, Classes):
            parent = label.parent if label.parent in heads else None
            described[name] = {
                "ids": list(label.ids), "names": list(label.names),
                "parent": parent, "parent_codes": list(label.parent_codes) if parent else [],
            }  # fmt: skip
        else:
            mean, std = float(known.mean()), float(known.std(ddof=0)) or 1.0
            described[name] = {"unit": label.unit, "mean": mean, "std": std}
    if max((len(label["ids"]) for label in described.values() if "ids" in label), default=2) < 2:
        raise InputError(f"{table.name}: only one class is left, so there is nothing to classify")
    return described


def build_metric_loss(cfg: dict, table: Table) -> tuple[dict | None, Embedding]:
    """Return LitClassifier's metric_loss argument (None without a metric loss) and the embedding that the loss
    trains."""
    values = {key: value for key, value in cfg["metric_loss"].items() if key not in ("heads", "sub_centres")}
    layers = [key for key in ("embedding", "difference") if cfg["model"][key]["hidden"]]
    if values["name"] == "none":
        if layers:
            raise InputError(
                f"model.{layers[0]}.hidden: nothing would train these layers; choose a metric_loss, such as "
                "metric_loss=triplet, or leave them out"
            )
        return None, build_embedding(cfg)
    mixing = next((key for key in ("mixup", "cutmix") if cfg["augment"]["mix_p"] and cfg["augment"][key]), None)
    if mixing:
        raise InputError(
            f"augment.{mixing}: metric losses need one class per photo, mixed photos have two; set it to 0"
        )
    if layers == ["difference"]:
        raise InputError(
            "model.difference.hidden: joins the trunk in model.embedding; give model.embedding.hidden, too"
        )
    if cfg["data"]["batch_size"] == "auto":
        raise InputError("data.batch_size: auto does not know the batches that a metric_loss needs; give a number")
    label = table.class_label(values["label"], "metric_loss.label")
    for key in ("monitor", "stop_monitor"):
        _require_neighbours(f"callbacks.{key}", cfg["callbacks"][key] or "", table.of_split("val"), label)
    classes = table.labels[label]
    assert isinstance(classes, Classes)  # class_label gives no other
    num_classes = len(classes) if values["name"] in WITH_PROXIES else 0
    return {**values, "label": label}, build_embedding(cfg, num_classes)


def _require_neighbours(key: str, monitor: str, val: Table, label: str) -> None:
    """Raise InputError if `monitor` is a nearest-neighbour metric and no validation photo has a neighbour of its
    class."""
    codes = val.rows[label].to_numpy()
    if monitor.startswith("val/embedding/") and np.bincount(codes[codes != UNKNOWN], minlength=1).max() < 2:
        raise InputError(
            f"{key}: {monitor} is not defined, as no {label} has two validation photos; raise "
            f"data.split.val_fraction, or take {key}=val/loss {key.replace('monitor', 'mode')}=min"
        )


def build_embedding(cfg: dict, num_classes: int = 0) -> Embedding:
    """Build the embedding above the trunk. num_classes: of the label for whose classes a metric loss has proxies; 0 for
    a loss without."""
    model = cfg["model"]
    return Embedding(
        build_layers(model["embedding"], "model.embedding"),
        build_layers(model["difference"], "model.difference"),
        cfg["metric_loss"].get("sub_centres", 1) if num_classes else 0,
        num_classes,
    )


def build_classifier(cfg: dict, labels: dict[str, LabelDescription], embedding: Embedding | None = None) -> Classifier:
    """Build the network with its initial weights; random ones depend on the seed alone. embedding: None builds the
    configuration's, without class weights."""
    model = cfg["model"]
    torch.manual_seed(cfg["seed"])
    heads = {}
    for name, label in labels.items():
        layers = build_layers(model["heads"].get(name, {}), f"model.heads.{name}")
        of_classes = "ids" in label
        heads[name] = Head(len(label["ids"]), layers) if of_classes else Head(1, layers, label["mean"], label["std"])
    classifier = Classifier(
        model["backbone"],
        heads,
        cfg["data"]["image_px"],
        model["backbone_kwargs"],
        model["pool"],
        build_layers(model["trunk"], "model.trunk"),
        pretrained=model["weights"] == "pretrained",
        neck=Neck(model["neck"], model["neck_dropout"], model["attention_reduction"], model["se_reduction"]),
        embedding=embedding or build_embedding(cfg),
    )
    if file := weights_file(model["weights"]):
        load_weights(classifier, file, labels)
    classifier.freeze_statistics = model["freeze_statistics"]
    classifier.heads_are_probes = cfg["metric_loss"].get("heads") == "probe"
    return classifier


def build_layers(values: dict, key: str) -> Layers:
    """Build dense layers. key: of the configuration, for errors."""
    try:
        return Layers(**values)
    except InputError as error:
        raise InputError(f"{key}.{error}") from None


def load_weights(classifier: Classifier, source: Path, labels: dict[str, LabelDescription]) -> None:
    """Load the backbone's weights from a file, checkpoint or run, and those above it if its trunk, heads and classes
    are the same."""
    tensors = read_weights(source)
    load_backbone_weights(classifier.backbone, tensors, str(source))
    shapes = {name: t.shape for name, t in classifier.state_dict().items() if not name.startswith("backbone.")}
    above = {name: tensors[name] for name in shapes if name in tensors}
    described = description_of(source) if above else None
    if not described:
        return

    def ids(of: dict[str, LabelDescription], name: str) -> list[str]:
        return [nfc(each) for each in of[name].get("ids", ())] if name in of else []

    changed = [name for name in labels if ids(described["labels"], name) != ids(labels, name)]
    if changed or {name: t.shape for name, t in above.items()} != shapes:
        reason = f"its classes of {changed[0]} differ" if changed else "its trunk or heads differ"
        log.info("weights: backbone from %s; trunk and heads start from random weights, as %s", source, reason)
        return
    classifier.load_state_dict(above, strict=False)
    classifier.heads_are_trained = True
    log.info("weights: backbone, trunk and heads from %s", source)
