"""Export a folder in the layout of the Hugging Face hub: the model, its card, and its timm form."""

import json
import shutil
from pathlib import Path

import torch

from carvision import portable
from carvision.exports.about import public_about
from carvision.exports.agreement import largest_difference, random_images, require_agreement
from carvision.exports.files import atomic_export
from carvision.exports.model_card import model_card
from carvision.exports.to_timm import TOLERANCE, chosen_head, export_timm, in_timm, require_in_timm
from carvision.models.classifier import Classifier


def export_hub(model: Classifier, source: Path, folder: Path, head: str | None = None) -> str:
    """Write model.safetensors, model.json and README.md into the folder; return a summary line.

    If timm has the network, also timm/ and a config.json by which `timm.create_model("hf-hub:<owner>/<name>",
    pretrained=True)` finds it. source: the folder that the model was loaded from; its splits.csv, if any, is summarised
    in the card. head: timm's classifier, see export_timm.
    """
    chosen_head(model, head)  # refuses a wrong --head before anything is written
    if head is not None:
        require_in_timm(model)
    weights = model.about.get("weights", {}).get("file", portable.WEIGHTS)
    with atomic_export(folder) as partial:
        partial.mkdir()
        shutil.copyfile(source / weights, partial / weights)
        portable.write_description(partial, public_about(model.about))
        timm_part = f"no timm form: timm lacks {model.description['backbone']}"
        if in_timm(model):
            timm_part = _add_timm_form(model, partial, head)
        card = model_card(model, source / "splits.csv", partial / "timm" / "config.json")
        (partial / "README.md").write_text(card, encoding="utf-8")
        images = random_images(2, model.preprocessing.size_px)
        with torch.no_grad():
            difference = largest_difference(model(images), portable.load(partial)(images))
        require_agreement(difference, TOLERANCE, folder.name)
    return f"hub: model.safetensors, model.json, a card whose licence you fill in; {timm_part}"


def _add_timm_form(model: Classifier, folder: Path, head: str | None) -> str:
    """Write timm/ and return its description; a failure is only reported unless a head was requested."""
    try:
        description = f"timm/: {export_timm(model, folder / 'timm', head)}"
        _point_to_timm(folder)
        return description
    except Exception as error:  # timm's networks raise various types
        if head is not None:
            raise
        return f"no timm form: {' '.join(str(error).split())[:200]}"


def _point_to_timm(folder: Path) -> None:
    """Copy timm/config.json to the top, where timm looks for it, and let it name the weights in timm/."""
    config = json.loads((folder / "timm" / "config.json").read_text(encoding="utf-8"))
    config["pretrained_cfg"]["hf_hub_filename"] = "timm/model.safetensors"
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
