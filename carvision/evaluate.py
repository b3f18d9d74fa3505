"""carvision evaluate RUN [overrides]: how good a trained network is. See --help."""

import argparse

from carvision.config.options import (
    add_device,
    add_out_folder,
    add_run,
    create_parser,
    parse_with_overrides,
    run_of,
    whole_from,
)
from carvision.errors import one_line_errors

HELP = """Evaluate a trained network: all metrics with 95 % intervals, each class, which
classes are confused, and how far the probabilities can be trusted.

  carvision evaluate runs/mine                                   the test photos of the run
  carvision evaluate runs/mine data.root=/new/folder/photos      the same, if they were moved
  carvision evaluate runs/mine data=folder data.root=others --split all      other photos
  carvision evaluate runs/a --ensemble runs/b runs/c --tta flip  the average of three runs and two views
  torchrun --nproc-per-node 4 -m carvision.evaluate runs/mine              four processes share the photos

data=... and data.<key>=<value> are as in training (carvision train --help). If
the command is killed, the same one with the same --out starts over there.
"""


def evaluate(arguments: list[str] | None = None) -> None:
    """Evaluate a run. arguments: default: the command line's."""
    options = parse(arguments)
    with one_line_errors():
        # Imported here, as --help and a wrong option need no torch
        from carvision.evaluation.run import run

        folder = run(**vars(options))
    if folder is not None:  # None in all but the first of several processes
        print(f"evaluate: {folder}")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = create_parser("evaluate", HELP, "%(prog)s RUN [data=<choice>] [data.<key>=<value> ...] [options]")
    add = parser.add_argument
    add_run(parser)
    add("--split", choices=["train", "val", "test", "all"], default="test", help="default: test")
    add_out_folder(parser, "RUN/evaluations/<split>_<time>")
    add("--ensemble", nargs="+", type=run_of, default=[], metavar="RUN", help="runs to average with RUN")
    add(
        "--tta", choices=["none", "flip", "crops", "flip_crops"], default="none",
        help="average views of each photo: its mirror image, five crops, or both (12 views)",
    )  # fmt: skip
    add("--match", choices=["id", "name"], default="id", help="what identifies a class (default: id)")
    add("--label", action="append", default=[], metavar="LABEL=HEAD", help="a label of the data that a head predicts")
    add("--samples", type=whole_from(0), default=1000, metavar="N", help="of the bootstrap (1000); 0: no intervals")
    add(
        "--temperature", choices=["stored", "fit", "none"], default="stored",
        help="stored in the model, or fitted on the run's validation photos if there is none (default); fit: fit again "
        "and choose the operating points again",
    )  # fmt: skip
    add("--keras", action="store_true", help="also show precision and recall as Keras counts them (all p > 0.5)")
    add_device(parser)
    options = parse_with_overrides(parser, arguments)
    pairs = [word.partition("=") for word in options.label]
    if not all(label and head for label, _, head in pairs):
        parser.error(f"--label: {' '.join(options.label)} is not of the form <label of the data>=<head of the model>")
    options.label = {head: label for label, _, head in pairs}
    return options


if __name__ == "__main__":
    evaluate()
