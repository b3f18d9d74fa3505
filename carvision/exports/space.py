"""Export a folder that runs as a Hugging Face Space: a page in gradio, the model, and the carvision that reads it."""

import shutil
from pathlib import Path

from huggingface_hub import SpaceCardData

import carvision
from carvision.exports.hub import card_title, data_name, model_card
from carvision.exports.shared import atomic_export, difference_from, public_about, require_agreement
from carvision.exports.timm import TOLERANCE
from carvision.inference import model_file
from carvision.inference.model_file import LoadedClassifier

APP = Path(__file__).with_name("space_app.py")
GRADIO = "6.31.0"  # the version that was tried; gradio's releases change its interface
# What loading a model and predicting import, as pyproject.toml has them: gradio's limits do not fit the lock's versions
REQUIREMENTS = [
    "torch>=2.6", "torchvision>=0.21", "timm>=1.0.15,<2", "safetensors>=0.5", "huggingface-hub>=0.26", "numpy>=1.26",
    "pillow>=11", "simplejpeg>=1.7",
]  # fmt: skip
README = """---
{front_matter}
---

# {title}

A photo in, its classes out: a page in [gradio](https://gradio.app), written by `carvision export --format space`. The
classes, the metrics and the limits of the model are in [MODEL.md](MODEL.md).

Here, in an environment of its own:

```bash
pip install -r requirements.txt
python app.py
```

As a Space: create one for Gradio, and upload this folder into it.

```python
import huggingface_hub

huggingface_hub.upload_folder(folder_path=".", repo_id="<owner>/<name>", repo_type="space")
```

`carvision/` is the carvision, version {version}, that the model was exported with, under the license beside it. The
model's own license is to be filled in by its owner, above and in `MODEL.md`.
"""


def export_space(model: LoadedClassifier, source: Path, folder: Path) -> str:
    """Write app.py, its requirements, README.md, the model with its card MODEL.md, and a copy of carvision; return a
    summary line.

    carvision is copied, as a Space installs its requirements from the registry of packages, before it has its files.
    source: the folder that the model was loaded from.
    """
    weights = model.about.get("weights", {}).get("file", model_file.WEIGHTS)
    package = Path(carvision.__file__).parent
    title = card_title(model.about, data_name(model.about.get("config", {})))
    with atomic_export(folder) as partial:
        partial.mkdir()
        shutil.copyfile(source / weights, partial / weights)
        model_file.write_description(partial, public_about(model.about))
        shutil.copyfile(APP, partial / "app.py")
        (partial / "requirements.txt").write_text("\n".join([f"gradio=={GRADIO}", *REQUIREMENTS, ""]), encoding="utf-8")
        shutil.copytree(package, partial / "carvision", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        (partial / "carvision" / "LICENSE").write_text(license_text(package), encoding="utf-8")
        card = model_card(model, source / "splits.csv", partial / "timm" / "config.json")
        (partial / "MODEL.md").write_text(card, encoding="utf-8")
        readme = README.format(front_matter=_front_matter(title), title=title, version=carvision.__version__)
        (partial / "README.md").write_text(readme, encoding="utf-8")
        require_agreement(difference_from(model, model_file.load(partial)), TOLERANCE, folder.name)
    return f"space: app.py for gradio {GRADIO}, requirements.txt, the model, and a card whose license you fill in"


def _front_matter(title: str) -> str:
    """Return the YAML by which the hub builds the Space."""
    return SpaceCardData(
        title=title, emoji="📷", colorFrom="blue", colorTo="green", sdk="gradio", sdk_version=GRADIO,
        python_version="3.11", app_file="app.py", pinned=False, license="unknown", tags=["carvision"],
        short_description="A photo in, its classes out",
    ).to_yaml()  # fmt: skip


def license_text(package: Path) -> str:
    """Return carvision's license, which goes with every copy: of a checkout, or of what pip installed."""
    from importlib.metadata import distribution

    beside = package.parent / "LICENSE"
    if (package.parent / "pyproject.toml").is_file():
        return beside.read_text(encoding="utf-8")
    return distribution("carvision").read_text("licenses/LICENSE") or ""
