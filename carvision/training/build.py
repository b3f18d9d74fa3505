"""From the configuration to objects. The plain config (see config.plain_config) goes no further than here."""

import logging
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch

from carvision.data.build import build_split, build_table, download
from carvision.data.datamodule import PhotoDataModule
from carvision.data.images import INTERPOLATIONS, Preprocessing
from carvision.data.photo_paths import nfc
from carvision.data.photos import Photos
from carvision.data.splits import without_unseen_classes
from carvision.data.table import UNKNOWN, Classes, Table
from carvision.data.transforms import Augment
from carvision.errors import InputError, nearest
from carvision.losses import create_class_weights
from carvision.metric_losses import WITH_PROXIES
from carvision.models.backbones import check_name, load_backbone_weights, read_weights
from carvision.models.blocks import Neck
from carvision.models.classifier import Classifier, Head
from carvision.models.dense import Layers
from carvision.models.embedding import Embedding
from carvision.portable import description_of
from carvision.training.build_phases import build_phases, validate_phases
from carvision.training.launch import num_sharing
from carvision.training.lit_classifier import LitClassifier

log = logging.getLogger(__name__)

BOX_LABELS = {"viewpoint"}  # labels of CompCars that lie in the files of the boxes


def build_datamodule(cfg: dict, fold: int | None) -> PhotoDataModule:
    """Set up: the table is read, and lacks what the photos of this configuration do not need."""
    data, augment = cfg["data"], cfg["augment"]

    def read() -> Table:
        annotations = data["crop_to_box"] or bool(BOX_LABELS & set(cfg["model"]["heads"]))
        table = build_split(build_table(data, annotations), data["split"], fold)
        if data["split"]["kind"] == "unseen_classes":
            table = without_unseen_classes(table)
        if data["crop_to_box"] and not table.has_boxes:
            raise InputError(f"data.crop_to_box: {table.name} under {table.root} comes without boxes")
        return table

    create_photos = partial(
        Photos,
        preprocessing=build_preprocessing(cfg),
        crop_to_box=data["crop_to_box"],
        crop_scale=tuple(augment["crop_scale"]),
        crop_ratio=tuple(augment["crop_ratio"]),
        num_draws=Augment(augment["order"], augment["steps"]).num_draws,
        seed=cfg["seed"],
    )
    datamodule = PhotoDataModule(
        read,
        create_photos,
        batch_size=data["batch_size"],
        num_workers=data["num_workers"],
        sampler=data["sampler"],
        epoch_fraction=data["epoch_fraction"],
        on_bad_image=data["on_bad_image"],
        seed=cfg["seed"],
        download=partial(download, data),
        num_sharing=num_sharing(cfg["trainer"]),
        photos_per_class=data["photos_per_class"],
        sampler_label=cfg["metric_loss"].get("label"),
    )
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def build_preprocessing(cfg: dict) -> Preprocessing:
    """What belongs to the backbone's weights, where the configuration says nothing else."""
    model, data = cfg["model"], cfg["data"]
    check_name(model["backbone"])
    described = description_of(file) if (file := weights_file(model["weights"])) else None
    if described:
        own = Preprocessing(**described["preprocessing"])
        if own.resize != data["resize"]:
            log.warning("%s was trained with data.resize=%s, and this run has %s", file, own.resize, data["resize"])
    else:
        own = timm.get_pretrained_cfg(model["backbone"], allow_unregistered=True)
    interpolation = own.interpolation if own.interpolation in INTERPOLATIONS else "bicubic"
    return Preprocessing(
        size_px=data["image_px"],
        mean=model["mean"] or own.mean,
        std=model["std"] or own.std,
        interpolation=model["interpolation"] or interpolation,
        resize=data["resize"],
    )


def weights_file(weights: str) -> Path | None:
    """The file or folder that model.weights names; None of its words pretrained and random, whatever is called so."""
    return None if weights in ("pretrained", "random") else Path(weights)


def describe_labels(cfg: dict, table: Table) -> dict[str, dict]:
    """Of each head's label what LitClassifier and model.json need, as plain values."""
    heads = list(cfg["model"]["heads"]) or list(table.heads) or list(table.labels)
    described, train = {}, table.of_split("train").rows
    for name in heads:
        label = table.labels.get(name)
        if label is None:
            raise InputError(
                f"model.heads.{name}: {table.name} has no label {name!r}{nearest(name, table.labels)}; "
                f"its labels are {', '.join(table.labels)}"
            )
        known = train[name][train[name] != UNKNOWN].dropna()
        if known.empty:
            raise InputError(f"model.heads.{name}: no training photo of {table.name} has a known {name}")
        if isinstance(label, Classes):
            parent = label.parent if label.parent in heads else None
            described[name] = {
                "ids": list(label.ids),
                "names": list(label.names),
                "parent": parent,
                "parent_codes": list(label.parent_codes) if parent else [],
            }
        else:
            described[name] = {
                "unit": label.unit,
                "mean": float(known.mean()),
                "std": float(known.std(ddof=0)) or 1.0,
            }
    largest = max((len(label["ids"]) for label in described.values() if "ids" in label), default=2)
    if largest < 2:
        raise InputError(f"{table.name}: only one class is left, so there is nothing to tell apart")
    return described


def build_classifier(cfg: dict, labels: dict[str, dict], embedding: Embedding | None = None) -> Classifier:
    """The network with its first weights, random ones from the seed. embedding: None: as the configuration has it,
    without class weights."""
    model = cfg["model"]
    torch.manual_seed(cfg["seed"])
    heads = {}
    for name, label in labels.items():
        layers = build_layers(model["heads"].get(name, {}), f"model.heads.{name}")
        heads[name] = (
            Head(len(label["ids"]), layers) if "ids" in label else Head(1, layers, label["mean"], label["std"])
        )
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
    validate_phases(build_phases(cfg), classifier)
    return classifier


def build_layers(values: dict, key: str) -> Layers:
    try:
        return Layers(**values)
    except InputError as error:
        raise InputError(f"{key}.{error}") from None


def load_weights(classifier: Classifier, source: Path, labels: dict[str, dict]) -> None:
    """The backbone's weights from a file, checkpoint or run; where that has the same trunk and classes, also those
    above it."""
    tensors = read_weights(source)
    load_backbone_weights(classifier.backbone, tensors, str(source))
    own = classifier.state_dict()
    above = {name: value for name, value in tensors.items() if name in own and not name.startswith("backbone.")}
    described = description_of(source) if above else None
    if not described:
        return
    theirs = described["labels"]
    ids = [{name: [*map(nfc, label.get("ids", ()))] for name, label in each.items()} for each in (theirs, labels)]
    changed = [name for name in labels if ids[0].get(name, []) != ids[1][name]]
    fitting = all(value.shape == own[name].shape for name, value in above.items())
    if changed or not fitting or len(above) != sum(not name.startswith("backbone.") for name in own):
        why = f"its classes of {changed[0]} are others" if changed else "its trunk or heads are built otherwise"
        log.info("weights: backbone from %s; trunk and heads begin from random weights, as %s", source, why)
        return
    classifier.load_state_dict(above, strict=False)
    classifier.heads_are_trained = True
    log.info("weights: backbone, trunk and heads from %s", source)


def build_embedding(cfg: dict, num_classes: int = 0) -> Embedding:
    """num_classes: of the label whose classes a metric loss has weights for; 0 where it has none."""
    model = cfg["model"]
    return Embedding(
        build_layers(model["embedding"], "model.embedding"),
        build_layers(model["difference"], "model.difference"),
        cfg["metric_loss"].get("sub_centres", 1) if num_classes else 0,
        num_classes,
    )


def build_metric_loss(cfg: dict, table: Table) -> tuple[dict | None, Embedding]:
    """What LitClassifier's metric_loss takes, None where there is none, and the embedding that it shapes."""
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
        raise InputError(f"augment.{mixing}: a photo made of two has no class that a metric loss could take; use 0")
    if layers == ["difference"]:
        raise InputError(
            "model.difference.hidden: joins the trunk in model.embedding; give model.embedding.hidden, too"
        )
    if cfg["data"]["batch_size"] == "auto":
        raise InputError("data.batch_size: auto does not know the batches that a metric_loss needs; give a number")
    label = table.class_label(values["label"], "metric_loss.label")
    for key in ("monitor", "stop_monitor"):
        _require_neighbours(f"callbacks.{key}", cfg["callbacks"][key] or "", table.of_split("val"), label)
    num_classes = len(table.labels[label]) if values["name"] in WITH_PROXIES else 0
    return {**values, "label": label}, build_embedding(cfg, num_classes)


def _require_neighbours(key: str, monitor: str, val: Table, label: str) -> None:
    """Raises InputError where the epochs are to be judged by neighbours, and no validation photo has one."""
    codes = val.rows[label].to_numpy()
    if monitor.startswith("val/embedding/") and np.bincount(codes[codes != UNKNOWN], minlength=1).max() < 2:
        raise InputError(
            f"{key}: {monitor} is not defined, as no {label} has two validation photos; raise "
            f"data.split.val_fraction, or take {key}=val/loss {key.replace('monitor', 'mode')}=min"
        )


def build_lit_classifier(cfg: dict, table: Table) -> LitClassifier:
    labels = describe_labels(cfg, table)
    metric_loss, embedding = build_metric_loss(cfg, table)
    classifier = build_classifier(cfg, labels, embedding)
    loss = dict(cfg["loss"])
    class_weights = {}
    weighting = loss.pop("class_weights")
    if weighting != "none":
        train = table.of_split("train").rows
        for name in (name for name, label in labels.items() if "ids" in label):
            codes = train[name].to_numpy()
            counts = np.bincount(codes[codes != UNKNOWN], minlength=len(labels[name]["ids"]))
            class_weights[name] = create_class_weights(weighting, torch.from_numpy(counts)).tolist()
    given = loss["head_weights"] or {}
    unknown = set() if given == "learned" else set(given) - set(labels)
    if unknown:
        raise InputError(f"loss.head_weights: {sorted(unknown)[0]!r} is not one of the heads {', '.join(labels)}")
    augment = {key: value for key, value in cfg["augment"].items() if not key.startswith("crop_")}
    return LitClassifier(
        classifier.description,
        labels,
        build_preprocessing(cfg).as_dict(),
        loss,
        build_phases(cfg),
        augment,
        class_weights,
        cfg["model"]["decoding"],
        cfg["seed"],
        metric_loss,
        model=classifier,
    )
