"""Export a folder in the layout of the Hugging Face hub: the model, its card README.md, and its timm form."""

import csv
import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path, PureWindowsPath
from typing import TypeGuard

import timm
import torch
import yaml
from huggingface_hub import EvalResult, ModelCardData

from carvision.errors import one_line
from carvision.exports.shared import atomic_export, largest_difference, public_about, random_images, require_agreement
from carvision.exports.timm import TOLERANCE, chosen_head, export_timm, in_timm, require_in_timm
from carvision.inference import model_file
from carvision.inference.description import ModelDescription
from carvision.inference.model_file import LoadedClassifier
from carvision.reports.tables import JOINT, code_block, escape_markdown

NUM_NAMES = 8  # class names listed per head
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
RESIZE_TEXTS = {"squash": "the whole photo scaled to a square", "crop": "the largest centred square"}
DECODING_TEXTS = {
    "independent": "each head's most probable class",
    "joint": "the most probable pair of classes that fits together",
    "marginal": "the most probable class, and the parent class whose children's probabilities have the largest sum",
}


def export_hub(model: LoadedClassifier, source: Path, folder: Path, head: str | None = None) -> str:
    """Write model.safetensors, model.json and README.md into the folder; return a summary line.

    If timm has the network, also timm/ and a config.json by which `timm.create_model("hf-hub:<owner>/<name>",
    pretrained=True)` finds it. source: the folder that the model was loaded from; its splits.csv, if any, is summarised
    in the card. head: timm's classifier, see export_timm.
    """
    chosen_head(model, head)  # refuses a wrong --head before anything is written
    if head is not None:
        require_in_timm(model)
    weights = model.about.get("weights", {}).get("file", model_file.WEIGHTS)
    with atomic_export(folder) as partial:
        partial.mkdir()
        shutil.copyfile(source / weights, partial / weights)
        model_file.write_description(partial, public_about(model.about))
        timm_part = f"no timm form: timm lacks {model.description['backbone']}"
        if in_timm(model):
            timm_part = _add_timm_form(model, partial, head)
        card = model_card(model, source / "splits.csv", partial / "timm" / "config.json")
        (partial / "README.md").write_text(card, encoding="utf-8")
        images = random_images(2, model.preprocessing.size_px)
        with torch.no_grad():
            difference = largest_difference(model(images), model_file.load(partial)(images))
        require_agreement(difference, TOLERANCE, folder.name)
    return f"hub: model.safetensors, model.json, a card whose licence you fill in; {timm_part}"


def _add_timm_form(model: LoadedClassifier, folder: Path, head: str | None) -> str:
    """Write timm/ and return its description; a failure is only reported unless a head was requested."""
    try:
        description = f"timm/: {export_timm(model, folder / 'timm', head)}"
        _point_to_timm(folder)
        return description
    except Exception as error:  # timm's networks raise various types
        if head is not None:
            raise
        return f"no timm form: {one_line(error, 200)}"


def _point_to_timm(folder: Path) -> None:
    """Copy timm/config.json to the top, where timm looks for it, and let it name the weights in timm/."""
    config = json.loads((folder / "timm" / "config.json").read_text(encoding="utf-8"))
    config["pretrained_cfg"]["hf_hub_filename"] = "timm/model.safetensors"
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def model_card(model: LoadedClassifier, splits: Path, timm_config: Path) -> str:
    """Return the card as Markdown with YAML front matter.

    splits: the run's splits.csv, timm_config: config.json of the folder's timm form; either may be missing.
    """
    about = public_about(model.about)
    timm_form = json.loads(timm_config.read_text(encoding="utf-8")) if timm_config.is_file() else None
    metrics, config = about.get("metrics", {}), about.get("config", {})
    data = _data_name(model.about.get("config", {}))  # whose root is not public
    parts = [
        f"---\n{_front_matter(about, data, timm_form is not None)}\n---",
        f"# {_title(about, data)}",
        "An image classifier, trained with carvision.",
        _heads_section(model),
        _use_section(model, data),
        _training_section(model, about, data, splits),
        _metrics_section(metrics, model, config),
        _loading_section(model, timm_form),
        "## Licence\n\nTo be filled in by the owner: the front matter says `license: unknown`. Mind the terms of "
        "the training photos and of the weights that training began with.",
        _configuration_section(config),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(about: ModelDescription, data: str, has_timm_form: bool) -> str:
    """Return the YAML that the hub reads, with the metrics of the test split, or of validation without a test."""
    split = "test" if about.get("metrics", {}).get("test") else "val"
    results = []
    for key, value in about.get("metrics", {}).get(split, {}).items():
        head, _, metric = key.rpartition("/")
        if metric in METRICS and (head in about["labels"] or key == "joint/top1") and _is_number(value):
            results.append(
                EvalResult(
                    task_type="image-classification",
                    task_name="Image classification",
                    dataset_type=_slug(data),
                    dataset_name=data,
                    dataset_split=split,
                    metric_type=METRICS[metric][0],
                    metric_name=JOINT.get(key, key),
                    metric_value=round(float(value), 6),
                )
            )
    return ModelCardData(
        library_name="carvision",
        license="unknown",
        pipeline_tag="image-classification",
        tags=["image-classification", "carvision", *(["timm"] if has_timm_form else []), "pytorch"],
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=_title(about, data) if results else None,
        eval_results=results or None,
    ).to_yaml()


def _title(about: ModelDescription, data: str) -> str:
    return f"{_slug(data)}-{about['network']['backbone']}"


def _data_name(config: dict) -> str:
    """Return the data set's name: carvision's or, for the user's own photos, their folder's."""
    data = config.get("data", {})
    name = data.get("name") or "photos"
    folder = PureWindowsPath(str(data.get("root") or "")).name  # takes both kinds of slashes
    return " ".join((folder or name if name in ("folder", "manifest") else str(name)).split())


def _heads_section(model: LoadedClassifier) -> str:
    lines = ["## Classes", "", "| head | classes | for example |", "|---|---|---|"]
    for head, names in model.classes.items():
        more = ", ..." if len(names) > NUM_NAMES else ""
        shown = ", ".join(map(escape_markdown, names[:NUM_NAMES]))
        lines.append(f"| {escape_markdown(head)} | {len(names)} | {shown}{more} |")
    for head in model.units:
        unit = model.about["labels"][head]["unit"]
        lines.append(f"| {escape_markdown(head)} | a number | in {escape_markdown(unit) or 'its own unit'} |")
    return "\n".join([*lines, "", "All names and ids are in `model.json`."])


def _use_section(model: LoadedClassifier, data: str) -> str:
    box = (
        "It was trained on the part of each photo inside its box, so give it photos cut to the object, or the box."
        if model.crop_to_box
        else "It was trained on whole photos."
    )
    return (
        f"## Use and limits\n\nFor photos like those of {escape_markdown(data)}. It knows only the classes above and "
        "always names one of them, also for a photo of something else: look at the probability before you trust a "
        "name. Its metrics hold for photos of the kind it was tested on, and will be lower on others. "
        f"{box} It was not tested "
        "for fairness or for any use in which a wrong answer harms someone."
    )


def _training_section(model: LoadedClassifier, about: ModelDescription, data: str, splits: Path) -> str:
    reading = model.preprocessing
    lines = [f"- data: {escape_markdown(data)}{_split_counts(splits)}"]
    began = about.get("config", {}).get("model", {}).get("weights") or "not known"
    if began == "pretrained":
        known = timm.get_pretrained_cfg(model.description["backbone"])
        terms = f", license as timm notes it: {known.license}" if known and known.license else ""
        began = f"timm's pretrained weights {known.architecture}.{known.tag}{terms}" if known else began
    lines.append(f"- began with: {escape_markdown('random weights' if began == 'random' else began)}")
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    lines.append(f"- backbone: `{model.description['backbone']}`; {count:.2f} million parameters in all")
    lines.append(
        f"- input: {reading.size_px} x {reading.size_px} px, {RESIZE_TEXTS[reading.resize]}, {reading.interpolation}; "
        f"RGB in 0..1, minus {_numbers(reading.mean)}, divided by {_numbers(reading.std)}"
    )
    lines.append(f"- decoding: `{about['decoding']}`, {DECODING_TEXTS[about['decoding']]}")
    if any(value != 1 for value in model.temperature.values()):
        lines.append(
            "- temperatures of the probabilities: "
            + ", ".join(f"{escape_markdown(head)} {value:.3g}" for head, value in model.temperature.items())
        )
    kind = about.get("weights", {}).get("kind")
    lines += [f"- weights: {kind}"] if kind else []
    versions = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())
    lines.append(f"- versions: {escape_markdown(versions)}")
    return "\n".join(["## Training", "", *lines])


def _split_counts(splits: Path) -> str:
    """Return the number of photos of each split; "" without the file."""
    if not splits.is_file():
        return ""
    with splits.open(newline="", encoding="utf-8") as file:
        counts = Counter(row.get("split") for row in csv.DictReader(file))
    return ", " + ", ".join(f"{counts[name]:,} photos {name}" for name in ("train", "val", "test") if counts[name])


def _metrics_section(metrics: dict, model: LoadedClassifier, config: dict) -> str:
    """Return a table of the metrics; those of classes are fractions of 1."""
    sides = [side for side in ("val", "test") if metrics.get(side)]
    if not sides:
        return "## Metrics\n\nmodel.json has none."
    lines = ["## Metrics", "", f"| head | metric | {' | '.join(sides)} |", f"|---|---|{'---:|' * len(sides)}"]
    keys = [(head, metric) for head in (*model.labels, "joint") for metric in METRICS]
    for head, metric in keys:
        values = [metrics[side].get(f"{head}/{metric}") for side in sides]
        if any(_is_number(value) for value in values):
            shown = " | ".join(f"{value:.4g}" if _is_number(value) else "" for value in values)
            name = JOINT["joint/top1"] if head == "joint" and "joint" not in model.labels else escape_markdown(head)
            lines.append(f"| {name} | {METRICS[metric][1]} | {shown} |")
    monitor = config.get("callbacks", {}).get("monitor", "val/loss")
    chosen = f"The epoch was chosen by {escape_markdown(monitor)}; the test photos were not used in "
    return "\n".join([*lines, "", f"{chosen}training or in any choice."])


def _loading_section(model: LoadedClassifier, timm_form: dict | None) -> str:
    box = ", box=(10, 5, 60, 45)" if model.crop_to_box else ""
    comment = "  # the object's left, top, right, bottom in pixels" if box else ""
    lines = [
        "## Load it", "", "```python", "import carvision", "import torch", "from PIL import Image", "",
        'model = carvision.load(".")  # this folder',
        f'images = model.transform(Image.open("a.jpg"){box})[None]{comment}',
        "with torch.no_grad():", "    logits = model(images)",
        "probs = model.probs(logits)",
        "for head, codes in model.decode(logits).items():",
        "    print(head, model.classes[head][codes.item()], probs[head][0, codes.item()].item())", "```",
    ]  # fmt: skip
    if timm_form:
        note = timm_form["pretrained_cfg"]["notes"][0].removeprefix("written by carvision: ")
        lines += [
            "", f"timm alone opens the sub-folder `timm`: {escape_markdown(note)}.", "", "```python", "import timm", "",
            'network = timm.create_model("local-dir:timm", pretrained=True).eval()',
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))", "```",
        ]  # fmt: skip
    return "\n".join(lines)


def _configuration_section(config: dict) -> str:
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True).rstrip()
    return f"<details>\n<summary>Configuration of the training</summary>\n\n{code_block(text, 'yaml')}\n\n</details>"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "photos"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
