"""Command-line options shared by embed, retrieve and verify. Imports no torch, so that --help answers at once."""

import argparse

from carvision.config import options as shared

LAYERS = ("auto", "pooled", "trunk", "embedding")
METHODS = ("cosine", "l2", "svm", "joint_bayes")  # that verify compares


def create_parser(command: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the options for network, layer, photos and device."""
    usage = "%(prog)s (RUN | --backbone NAME) [data=<choice>] [data.<key>=<value> ...] [options]"
    parser = shared.create_parser(command, description, usage)
    shared.add_run(parser, nargs="?")
    add = parser.add_argument
    add("--backbone", metavar="NAME", help="any backbone of timm, instead of a run; model.<key>=... beside it")
    add("--weights", default="pretrained", metavar="FILE",
        help="for --backbone: pretrained (default), random, or a file")  # fmt: skip
    add(
        "--layer", choices=LAYERS, default="auto",
        help="pooled: the backbone's features; trunk: what the heads read; embedding: what a metric loss has shaped; "
        "auto (default): the last of them that has layers of its own",
    )  # fmt: skip
    add("--raw", action="store_true", help="leave embeddings as they are; else each has the length 1")
    shared.add_device(parser)
    shared.add_out_folder(parser, "beside the model, by time")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options, with `overrides` of data and, without a run, of the model."""
    options = shared.parse_with_overrides(parser, arguments, ("data", "model"))
    if (options.run is None) == (options.backbone is None):
        both = "not both" if options.run else "as in: runs/mine, or --backbone resnet50"
        parser.error(f"RUN or --backbone: give one of them, {both}")
    if options.run and options.weights != "pretrained":
        parser.error(f"--weights: {options.weights} belongs to --backbone; a run has its own weights")
    return options
