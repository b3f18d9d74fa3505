"""python -m carvision.export RUN --format ...: a trained network for others' code. See --help."""

import argparse
import logging
import sys
from pathlib import Path

from carvision.errors import InputError, one_line_errors
from carvision.overrides import expand_options

HELP = """Write a trained network as others' code takes it, and measure that what was written agrees with the run.

  onnx          one file for onnxruntime and others, names of classes and preprocessing in its metadata
  torch-export  one .pt2 file that torch runs alone, without carvision and timm
  timm          a folder for timm.create_model("local-dir:<folder>", pretrained=True): the backbone, and as classifier
                a head that is one linear layer on the pooled features
  hub           a folder for the Hugging Face hub: the model, its card, and its timm form

examples:
  python -m carvision.export runs/demo/2026-01-31_12-00-00 --format onnx
  python -m carvision.export runs/mine --format timm --head make --out mine_timm
  python -m carvision.export runs/mine/model.safetensors --format onnx torch-export hub
"""
NAMES = {"onnx": "model.onnx", "torch-export": "model.pt2", "timm": "timm", "hub": "hub"}  # in RUN/export


def export(arguments: list[str] | None = None) -> None:
    it = parser()
    options = it.parse_args(expand_options(sys.argv[1:] if arguments is None else arguments))
    formats = list(dict.fromkeys(options.format))
    if options.out and len(formats) > 1:
        it.error("--out names one file or folder: give one --format with it")
    if options.head and not {"timm", "hub"} & set(formats):
        it.error("--head belongs to --format timm and hub; the others hold all heads")
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    with one_line_errors():
        write(options.run, dict.fromkeys(formats, options.out), options.head)


def write(run: Path, outs: dict[str, Path | None], head: str | None) -> None:
    """Write each format to its place (None: the default one), and print what it is and where."""
    # Only now: --help and a wrong option do not wait for torch.
    from carvision import portable
    from carvision.exports.files import refuse_existing

    folder = run if run.is_dir() else run.parent
    outs = {name: out or folder / "export" / NAMES[name] for name, out in outs.items()}
    for name, out in outs.items():
        suffix = Path(NAMES[name]).suffix
        if out.suffix != suffix and suffix:  # torch.export.load takes no other name
            raise InputError(f"--out: {out} is the name of a file for --format {name}; it must end in {suffix}")
        refuse_existing(out)
    model = portable.load(run)
    for name, out in outs.items():
        print(write_one(name, model, folder, out, head))
        print(f"export: {out}")


def write_one(name: str, model, folder: Path, out: Path, head: str | None) -> str:
    if name == "onnx":
        from carvision.exports.to_onnx import export_onnx

        return export_onnx(model, out)
    if name == "torch-export":
        from carvision.exports.to_torch_export import export_torch

        return export_torch(model, out)
    if name == "timm":
        from carvision.exports.to_timm import export_timm

        return export_timm(model, out, head)
    from carvision.exports.to_hub import export_hub

    return export_hub(model, folder, out, head)


def parser() -> argparse.ArgumentParser:
    it = argparse.ArgumentParser(
        "python -m carvision.export",
        usage="%(prog)s RUN --format FORMAT... [--out PATH] [--head HEAD]",  # after --format RUN would be taken for one
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    it.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or its model.safetensors")
    it.add_argument("--format", nargs="+", required=True, choices=list(NAMES), help="one or several; RUN comes first")
    it.add_argument("--out", type=Path, metavar="PATH", help="the file or folder (default: in RUN/export)")
    it.add_argument("--head", metavar="HEAD", help="the head that is timm's classifier (default: with most classes)")
    return it


if __name__ == "__main__":
    export()
