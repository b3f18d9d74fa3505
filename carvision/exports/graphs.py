"""Export the network as a graph that needs neither carvision nor timm: by torch.export, or as ONNX."""

import importlib.util
import json
import logging
import warnings
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from carvision.errors import InputError, one_line
from carvision.exports.shared import (
    atomic_export,
    difference_from,
    input_and_output,
    public_about,
    random_images,
    require_agreement,
)
from carvision.inference.model_file import LoadedClassifier

OPSET = 18  # December 2022, the one that torch's exporter targets; in onnxruntime since 1.14
TORCH_EXPORT_TOLERANCE, ONNX_TOLERANCE = 1e-5, 1e-4
LARGEST_FILE_MB = 2000  # protobuf's limit is 2 GiB: weights of larger networks go into a second file beside it
METADATA_KEY = "carvision"  # of the ONNX file, which holds input_and_output as JSON


def export_torch(model: LoadedClassifier, path: Path) -> str:
    """Write the .pt2 file: images (B, 3, size_px, size_px) -> {head: logits}, with model.json inside.

    Returns a summary line. Raises InputError if torch.export can't trace the network, or the file disagrees with it.
    """
    with atomic_export(path) as partial:
        about = json.dumps(public_about(model.about))
        torch.export.save(trace(model), partial, extra_files={"model.json": about})
        difference = difference_from(model, torch.export.load(partial).module())
        require_agreement(difference, TORCH_EXPORT_TOLERANCE, path.name)
    return (
        f"torch.export: {', '.join(model.labels)} from batches of any size, with torch alone; "
        f"relative difference from the run's logits: {difference:.1e}"
    )


def trace(model: LoadedClassifier) -> ExportedProgram:
    """Return the network's graph, for any batch size. Raises InputError if torch.export can't trace the network."""
    images = random_images(2, model.preprocessing.size_px)  # a batch of 1 would be taken for a constant
    try:
        with torch.no_grad():
            program = torch.export.export(model, (images,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:  # tracing raises various types
        name, text = model.description["backbone"], one_line(error, 160)
        raise InputError(f"{name} can't be exported by torch.export ({text}); use --format timm or hub") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of source files on this machine
    return program


def export_onnx(model: LoadedClassifier, path: Path) -> str:
    """Write the .onnx file: "images" float32 (B, 3, size_px, size_px), normalised -> one output per head, by its name.

    The metadata hold input_and_output as JSON under "carvision". Returns a summary line. Raises InputError
    if onnx is not installed, the network can't be expressed, or the file disagrees with it.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--format onnx: {' and '.join(missing)} is not installed; pip install 'carvision[onnx]'")
    if "images" in model.labels:
        raise InputError("--format onnx: a head is called images, as the input; use --format torch-export")
    with atomic_export(path) as partial:
        _write_onnx(model, partial)
        agreement = _check_onnx(model, partial)
    return f"ONNX, opset {OPSET}: outputs {', '.join(model.labels)} from batches of any size; {agreement}"


def _write_onnx(model: LoadedClassifier, path: Path) -> None:
    """Write the file. Raises InputError if the network can't be expressed in ONNX."""
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # silences its optimiser's messages
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                trace(model), dynamo=True, input_names=["images"], output_names=list(model.labels),
                dynamic_shapes=({0: "batch"},), opset_version=OPSET, verbose=False,
            )  # fmt: skip
            program = cast(torch.onnx.ONNXProgram, exported)  # None only where it writes a file itself
    except torch.onnx.OnnxExporterError as error:
        name, text = model.description["backbone"], one_line(error, 160)
        raise InputError(f"{name} can't be expressed in ONNX ({text}); use --format torch-export") from error
    network = program.model
    for part in (network.graph, *network.graph.all_nodes()):
        part.metadata_props.clear()  # trace information, which names source files of this machine
    network.producer_name, network.producer_version = "carvision", model.about["versions"].get("carvision", "")
    network.metadata_props[METADATA_KEY] = json.dumps(input_and_output(model))
    size_mb = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) / 1e6
    program.save(path, external_data=size_mb > LARGEST_FILE_MB)


def _check_onnx(model: LoadedClassifier, path: Path) -> str:
    """Compare the file with the network, for one image and for several; return a summary.

    Raises InputError if they disagree.
    """
    try:
        import onnxruntime
    except Exception as error:  # not installed, or not for this machine or this NumPy
        missing = getattr(error, "name", "") == "onnxruntime"
        reason = "is not installed" if missing else f"can't be imported ({one_line(error, 120)})"
        return f"not verified: onnxruntime {reason} (pip install 'carvision[onnx]')"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> dict[str, Tensor]:
        outputs = session.run(list(model.labels), {"images": images.numpy()})
        return {name: torch.from_numpy(values) for name, values in zip(model.labels, outputs, strict=True)}

    difference = difference_from(model, run)
    require_agreement(difference, ONNX_TOLERANCE, path.name)
    return f"relative difference from the run's logits, in onnxruntime: {difference:.1e}"
