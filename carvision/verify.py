"""carvision verify RUN [overrides]: whether two photos show the same model. See --help."""

import argparse
from pathlib import Path

from carvision.config.options import whole_from
from carvision.embedding.options import METHODS, create_parser, parse
from carvision.errors import one_line_errors

HELP = """Measure how well pairs of photos of one class are distinguished from pairs of
two: accuracy, ROC, AUC, equal error rate, and the true accept rate at low false
accept rates; by cosine, L2, a linear SVM and Joint Bayesian.

  carvision verify runs/mine                               CompCars' three lists, or pairs of test photos
  carvision verify runs/mine data=folder data.root=others --split val       pairs of other photos
  carvision verify runs/mine --pairs garage.csv street.csv                  lists of your own
  carvision verify --backbone resnet50 data=compcars data.root=/data/compcars

A list has lines of path1 path2 label (1: same, 0: different). Drawn pairs have
three difficulties: easy, both from one viewpoint; medium, any; hard, different
models are of one make. What the methods learn, and the threshold of the
accuracy, come from pairs of the training photos. data=... and
data.<key>=<value> are as in training (carvision train --help).
"""


def verify(arguments: list[str] | None = None) -> None:
    """Write a verification report. arguments: default: the command line's."""
    options = options_of(arguments)
    with one_line_errors():
        # Imported here, as --help and a wrong option need no torch
        from carvision.embedding.verification import run

        folder = run(options)
    print(f"verify: {folder}")


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = create_parser("verify", HELP)
    add = parser.add_argument
    add(
        "--pairs", nargs="+", type=Path, default=[], metavar="FILE",
        help="lists of pairs, each a difficulty by its name; default: the data set's own, else drawn ones",
    )  # fmt: skip
    add(
        "--split", choices=["train", "val", "test", "all"],
        help="draw pairs of these photos (default: test), also where the data set has lists of pairs",
    )  # fmt: skip
    add(
        "--train-split", choices=["train", "val"], default="train",
        help="photos of the training pairs (default: train); the network has not been fitted to those of val",
    )  # fmt: skip
    add("--num-pairs", type=whole_from(2), default=2000, metavar="N", help="drawn of each difficulty (2000)")
    add("--label", metavar="LABEL", help="whose classes make a pair the same (default: the finest)")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all four")
    add("--seed", type=whole_from(0), default=0, help="of drawn pairs (0)")
    options = parse(parser, arguments)
    options.methods = [method for method in METHODS if method in options.methods]  # each once
    return options


if __name__ == "__main__":
    verify()
