"""Export with torch.export: a graph that torch alone runs, without carvision and timm."""

import json
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from carvision.errors import InputError
from carvision.exports.about import public_about
from carvision.exports.agreement import largest_difference, random_images, require_agreement
from carvision.exports.files import atomic_export
from carvision.models.classifier import Classifier

TOLERANCE = 1e-5


def export_torch(model: Classifier, path: Path) -> str:
    """Write the .pt2 file: images (B, 3, size_px, size_px) -> {head: logits}, with model.json inside.

    Returns a summary line. Raises InputError if torch.export can't trace the network, or the file disagrees with it.
    """
    with atomic_export(path) as partial:
        about = json.dumps(public_about(model.about))
        torch.export.save(trace(model), partial, extra_files={"model.json": about})
        loaded = torch.export.load(partial).module()
        difference = 0.0
        for num in (1, 3):
            images = random_images(num, model.preprocessing.size_px)
            with torch.no_grad():
                difference = max(difference, largest_difference(model(images), loaded(images)))
        require_agreement(difference, TOLERANCE, path.name)
    return (
        f"torch.export: {', '.join(model.labels)} from batches of any size, with torch alone; "
        f"largest difference from the run's logits: {difference:.1e} of their scale"
    )


def trace(model: Classifier) -> ExportedProgram:
    """Return the network's graph, for any batch size. Raises InputError if torch.export can't trace the network."""
    images = random_images(2, model.preprocessing.size_px)  # a batch of 1 would be taken for a constant
    try:
        with torch.no_grad():
            program = torch.export.export(model, (images,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:  # tracing raises various types
        name, text = model.description["backbone"], " ".join(str(error).split())[:160]
        raise InputError(f"{name} can't be exported by torch.export ({text}); use --format timm or hub") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of source files on this machine
    return program
