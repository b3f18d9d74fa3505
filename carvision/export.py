"""python -m carvision.export RUN --format ...: a trained network for others' code. See --help."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from carvision.config.options import add_run, create_parser, log_to_stderr, words_of
from carvision.errors import InputError, one_line, one_line_errors
from carvision.files.atomic import refuse_link_out

HELP = """Write a trained network for other code to load, and measure that what was written agrees with the run.

  onnx          one file for onnxruntime and others, names of classes and preprocessing in its metadata
  torch-export  one .pt2 file that torch runs without carvision and timm
  timm          a folder for timm.create_model("local-dir:<folder>", pretrained=True): the backbone and, as
                classifier, a head that is one linear layer on the pooled features
  hub           a folder for the Hugging Face hub: the model, its card, and its timm form

If one of several formats can't be written, the others are, and the exit status is 1.

examples:
  python -m carvision.export runs/demo/2026-01-31_12-00-00 --format onnx
  python -m carvision.export runs/mine --format timm --head make --out mine_timm
  python -m carvision.export runs/mine/model.safetensors --format onnx torch-export hub
"""
NAMES = {"onnx": "model.onnx", "torch-export": "model.pt2", "timm": "timm", "hub": "hub"}  # default, in RUN/export


def export(arguments: list[str] | None = None) -> None:
    """Export a run. arguments: default: the command line's."""
    parser = build_parser()
    options = parser.parse_args(words_of(arguments))
    formats = list(dict.fromkeys(options.format))
    if options.out and len(formats) > 1:
        parser.error("--out names one file or folder: give one --format with it")
    if options.head and not {"timm", "hub"} & set(formats):
        parser.error("--head belongs to --format timm and hub; the others hold all heads")
    log_to_stderr()
    with one_line_errors():
        problems = write(options.run, dict.fromkeys(formats, options.out), options.head)
    if problems:
        sys.exit("\n".join(f"error: {problem}" for problem in problems))


def write(run: Path, outs: dict[str, Path | None], head: str | None) -> list[str]:
    """Write each format to its path (None: the default), and print what it is and where.

    Returns a line for each format that could not be written; the others are written all the same.
    """
    folder = run if run.is_dir() else run.parent
    if None in outs.values():
        refuse_link_out(folder / "export")
    outs = {name: out or folder / "export" / NAMES[name] for name, out in outs.items()}
    problems = {name: problem for name, out in outs.items() if (problem := problem_of(check_out, name, out))}
    good = {name: out for name, out in outs.items() if name not in problems}
    if good:
        from carvision.inference import model_file  # imported here, as --help and a wrong option need no torch

        model = model_file.load(run)
        for name, out in good.items():
            if problem := problem_of(write_one, name, model, folder, out, head):
                problems[name] = problem
    return [problems[name] for name in outs if name in problems]


def problem_of(step: Callable, name: str, *arguments) -> str | None:
    """Call step(name, *arguments), and return the error that it ends with as one line; None if it succeeds."""
    try:
        step(name, *arguments)
    except InputError as error:
        text = str(error)
        return text if text.startswith("--") else f"--format {name}: {text}"
    except Exception as error:  # torch, onnx, timm and the hub's client raise many types
        if os.environ.get("CARVISION_DEBUG"):
            raise
        return f"--format {name}: it failed ({type(error).__name__}: {one_line(error, 300)})"
    return None


def check_out(name: str, out: Path) -> None:
    """Raise InputError for a path that the format can't be written to."""
    from carvision.exports.shared import require_absent

    suffix = Path(NAMES[name]).suffix
    if out.suffix != suffix and suffix:  # torch.export.load takes no other name
        raise InputError(f"--out: {out} is the name of a file for --format {name}; it must end in {suffix}")
    require_absent(out)


def write_one(name: str, model, folder: Path, out: Path, head: str | None) -> None:
    """Write a format, and print what was written, and where."""
    if name == "onnx":
        from carvision.exports.graphs import export_onnx

        what = export_onnx(model, out)
    elif name == "torch-export":
        from carvision.exports.graphs import export_torch

        what = export_torch(model, out)
    elif name == "timm":
        from carvision.exports.timm import export_timm

        what = export_timm(model, out, head)
    else:
        from carvision.exports.hub import export_hub

        what = export_hub(model, folder, out, head)
    print(what)
    print(f"export: {out}")


def build_parser() -> argparse.ArgumentParser:
    usage = "%(prog)s RUN --format FORMAT... [--out PATH] [--head HEAD]"  # after --format, RUN would be taken for one
    parser = create_parser("export", HELP, usage)
    add = parser.add_argument
    add_run(parser)
    add("--format", nargs="+", required=True, choices=list(NAMES), help="one or several; RUN comes first")
    add("--out", type=Path, metavar="PATH", help="the file or folder (default: in RUN/export)")
    add("--head", metavar="HEAD", help="the head that is timm's classifier (default: with most classes)")
    return parser


if __name__ == "__main__":
    export()
