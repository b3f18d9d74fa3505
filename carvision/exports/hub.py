"""Export a folder in the layout of the Hugging Face hub: the model, its card README.md, and its timm form."""

import csv
import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path, PureWindowsPath
from typing import TypeGuard

import jinja2
import timm
import yaml
from huggingface_hub import EvalResult, ModelCardData

from carvision.errors import one_line
from carvision.exports.shared import atomic_export, difference_from, public_about, require_agreement
from carvision.exports.timm import TOLERANCE, export_timm, in_timm
from carvision.inference import model_file
from carvision.inference.description import ModelDescription
from carvision.inference.model_file import LoadedClassifier
from carvision.reports.tables import JOINT, code_block, escape_markdown, has_rank

CARD = Path(__file__).with_name("card.md")
# The metrics shown, if a run has them: name in metrics.json -> (name on the hub, description)
METRICS = {
    "top1": ("accuracy", "accuracy"),
    "top3": ("top_3_accuracy", "right among the best 3"),
    "top5": ("top_5_accuracy", "right among the best 5"),
    "balanced_accuracy": ("balanced_accuracy", "mean accuracy of the classes"),
    "f1": ("f1", "F1, mean of the classes"),
    "auc": ("roc_auc", "AUC, mean of the classes"),
    "mae": ("mae", "mean error"),
    "rmse": ("rmse", "root mean squared error"),
}


def export_hub(model: LoadedClassifier, source: Path, folder: Path, head: str | None = None) -> str:
    """Write model.safetensors, model.json and README.md into the folder; return a summary line.

    If timm has the network, also timm/ and a config.json by which `timm.create_model("hf-hub:<owner>/<name>",
    pretrained=True)` finds it. source: the folder that the model was loaded from; its splits.csv, if any, is summarised
    in the card. head: timm's classifier, see export_timm.
    """
    weights = model.about.get("weights", {}).get("file", model_file.WEIGHTS)
    with atomic_export(folder) as partial:
        partial.mkdir()
        shutil.copyfile(source / weights, partial / weights)
        model_file.write_description(partial, public_about(model.about))
        timm_part = f"no timm form: timm lacks {model.description['backbone']}"
        if head is not None or in_timm(model):
            timm_part = _add_timm_form(model, partial, head)
        card = model_card(model, source / "splits.csv", partial / "timm" / "config.json")
        (partial / "README.md").write_text(card, encoding="utf-8")
        require_agreement(difference_from(model, model_file.load(partial)), TOLERANCE, folder.name)
    return f"hub: model.safetensors, model.json, a card whose licence you fill in; {timm_part}"


def _add_timm_form(model: LoadedClassifier, folder: Path, head: str | None) -> str:
    """Write timm/ and return its description; a failure is only reported unless a head was requested."""
    try:
        description = f"timm/: {export_timm(model, folder / 'timm', head)}"
    except Exception as error:  # timm's networks raise various types
        if head is not None:
            raise
        return f"no timm form: {one_line(error, 200)}"
    # At the top, where timm looks for it, and naming the weights in timm/
    config = json.loads((folder / "timm" / "config.json").read_text(encoding="utf-8"))
    config["pretrained_cfg"]["hf_hub_filename"] = "timm/model.safetensors"
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return description


def model_card(model: LoadedClassifier, splits: Path, timm_config: Path) -> str:
    """Return the card as Markdown with YAML front matter, from card.md.

    splits: the run's splits.csv, timm_config: config.json of the folder's timm form; either may be missing.
    """
    about = public_about(model.about)
    metrics, config = about.get("metrics", {}), about.get("config", {})
    data = data_name(model.about.get("config", {}))  # whose root is not public
    timm_note = ""
    if timm_config.is_file():
        notes = json.loads(timm_config.read_text(encoding="utf-8"))["pretrained_cfg"]["notes"]
        timm_note = notes[0].removeprefix("written by carvision: ")
    configuration = yaml.safe_dump(config, sort_keys=False, allow_unicode=True).rstrip()
    sides = [side for side in ("val", "test") if metrics.get(side)]
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"md": escape_markdown, "short": "{:.4g}".format}
    return environment.from_string(CARD.read_text(encoding="utf-8")).render(
        model=model, about=about, data=data, input=model.preprocessing, sides=sides, timm_note=timm_note,
        title=card_title(about, data),
        front_matter=_front_matter(about, data, bool(timm_note)),
        counts=_split_counts(splits),
        began=_first_weights(model, config),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        versions=", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items()),
        rows=_metric_rows(metrics, sides, model),
        monitor=config.get("callbacks", {}).get("monitor", "val/loss"),
        configuration=code_block(configuration, "yaml"),
    )  # fmt: skip


def _front_matter(about: ModelDescription, data: str, has_timm_form: bool) -> str:
    """Return the YAML that the hub reads, with the metrics of the test split, or of validation without a test."""
    split = "test" if about.get("metrics", {}).get("test") else "val"
    results = []
    for key, value in about.get("metrics", {}).get(split, {}).items():
        head, _, metric = key.rpartition("/")
        if metric in METRICS and (head in about["labels"] or key == "joint/top1") and _is_number(value):
            result = EvalResult(
                task_type="image-classification", task_name="Image classification", dataset_type=_slug(data),
                dataset_name=data, dataset_split=split, metric_type=METRICS[metric][0],
                metric_name=JOINT.get(key, key), metric_value=round(float(value), 6),
            )  # fmt: skip
            results.append(result)
    return ModelCardData(
        library_name="carvision",
        license="unknown",
        pipeline_tag="image-classification",
        tags=["image-classification", "carvision", *(["timm"] if has_timm_form else []), "pytorch"],
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=card_title(about, data) if results else None,
        eval_results=results or None,
    ).to_yaml()


def card_title(about: ModelDescription, data: str) -> str:
    """Return the name of a model for its card: of its data and its backbone."""
    return f"{_slug(data)}-{about['network']['backbone']}"


def data_name(config: dict) -> str:
    """Return the data set's name: carvision's or, for the user's own photos, their folder's."""
    data = config.get("data", {})
    name = data.get("name") or "photos"
    folder = PureWindowsPath(str(data.get("root") or "")).name  # takes both kinds of slashes
    return " ".join((folder or name if name in ("folder", "manifest") else str(name)).split())


def _first_weights(model: LoadedClassifier, config: dict) -> str:
    """Return what the training began with, with the terms of timm's weights."""
    began = config.get("model", {}).get("weights") or "not known"
    known = timm.get_pretrained_cfg(model.description["backbone"]) if began == "pretrained" else None
    if known:
        terms = f", license as timm notes it: {known.license}" if known.license else ""
        return f"timm's pretrained weights {known.architecture}.{known.tag}{terms}"
    return "random weights" if began == "random" else began


def _split_counts(splits: Path) -> dict[str, int]:
    """Return the number of photos of each split that has any; {} without the file."""
    if not splits.is_file():
        return {}
    with splits.open(newline="", encoding="utf-8") as file:
        counts = Counter(row.get("split") for row in csv.DictReader(file))
    return {name: counts[name] for name in ("train", "val", "test") if counts[name]}


def _metric_rows(metrics: dict, sides: list[str], model: LoadedClassifier) -> list[list[str]]:
    """Return the rows of the table: head, metric, its value on each side; those of classes are fractions of 1."""
    rows = []
    for head, metric in ((head, metric) for head in (*model.labels, "joint") for metric in METRICS):
        values = [metrics[side].get(f"{head}/{metric}") for side in sides]
        num_classes = len(model.classes[head]) if head in model.classes else 0
        if any(_is_number(value) for value in values) and has_rank(metric, num_classes):
            name = JOINT["joint/top1"] if head == "joint" and "joint" not in model.labels else escape_markdown(head)
            rows.append([name, METRICS[metric][1], *(f"{value:.4g}" if _is_number(value) else "" for value in values)])
    return rows


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "photos"


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
