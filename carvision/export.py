"""carvision export RUN --format ...: a trained network for others' code. See --help."""

import argparse
import sys
from pathlib import Path

from carvision.config.options import add_run, create_parser, log_to_stderr, words_of
from carvision.errors import one_line_errors
from carvision.exports.write import NAMES, write

HELP = """Write a trained network for other code to load, and measure that what was
written agrees with the run.

  onnx          one file for onnxruntime and others, names of classes and preprocessing in its metadata
  torch-export  one .pt2 file that torch runs without carvision and timm
  timm          a folder for timm.create_model("local-dir:<folder>", pretrained=True): the backbone and, as
                classifier, a head that is one linear layer on the pooled features
  hub           a folder for the Hugging Face hub: the model, its card, and its timm form
  space         a folder that runs as a Hugging Face Space: a page in gradio that takes photos, and the model

If one of several formats can't be written, the others are, and the exit status
is 1.

examples:
  carvision export runs/demo/2026-01-31_12-00-00 --format onnx
  carvision export runs/mine --format timm --head make --out mine_timm
  carvision export runs/mine/model.safetensors --format onnx torch-export hub
"""


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
