"""carvision retrieve RUN [overrides]: which photos are nearest, and do they show the same. See --help."""

import argparse
from pathlib import Path

from carvision.config.options import whole_from
from carvision.embedding.options import create_parser, parse
from carvision.errors import one_line_errors

HELP = """Find the nearest photos by a network's embeddings: k-NN classification,
Recall@K, MAP@R, R-precision.

  carvision retrieve runs/mine                      the run's test photos among its training photos
  carvision retrieve runs/mine --leave-one-out      each test photo among the other test photos
  carvision retrieve runs/mine --query car.jpg      the training photos that are nearest to one photo
  carvision retrieve runs/mine data=folder data.root=others --leave-one-out --split all
  carvision retrieve --backbone resnet50 data=stanford_cars data.root=cars    a backbone, without a run
  carvision retrieve runs/mine/embeddings/2026-05-01_10-00-00     what carvision embed has written

data=... and data.<key>=<value> are as in training (carvision train --help).
"""
SPLITS = ["train", "val", "test"]


def retrieve(arguments: list[str] | None = None) -> None:
    """Write a retrieval report. arguments: default: the command line's."""
    options = options_of(arguments)
    with one_line_errors():
        # Imported here, as --help and a wrong option need no torch
        from carvision.embedding.retrieval import run

        folder = run(options)
    print(f"retrieve: {folder}")


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = create_parser("retrieve", HELP)
    add = parser.add_argument
    add("--split", choices=[*SPLITS, "all"], default="test", help="the queries (default: test)")
    add("--gallery", nargs="+", choices=SPLITS, metavar="SPLIT", help="where to search (default: train)")
    add("--leave-one-out", action="store_true", help="search for each query among the other queries")
    add("--query", nargs="+", type=Path, default=[], metavar="PHOTO", help="instead of a split's photos")
    add(
        "--box", nargs=4, type=float, metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"),
        help="of the --query, in pixels: the part to use, for a network that was trained on boxes",
    )  # fmt: skip
    add("--label", help="whose classes count (default: the finest, the model of a car)")
    add(
        "--k", nargs="+", type=whole_from(1), default=[1, 2, 3, 4, 5, 10, 20],
        help="neighbours that vote (default: %(default)s)",
    )  # fmt: skip
    add(
        "--votes", choices=["uniform", "distance"], default="uniform",
        help="of neighbours: equal, or in inverse proportion to their distance (default: uniform)",
    )  # fmt: skip
    add("--recall-at", nargs="+", type=whole_from(1), default=[1, 2, 4, 8], metavar="K", help="default: %(default)s")
    add("--distance", choices=["cosine", "l2"], default="cosine", help="default: cosine")
    add("--sheet", type=int, default=12, metavar="N", help="queries on neighbours.png (12); 0: no sheet")
    options = parse(parser, arguments)
    if options.leave_one_out and options.gallery:
        parser.error("--leave-one-out: the queries are their own gallery; drop --gallery")
    if options.box and len(options.query) != 1:
        parser.error(f"--box: applies to a single --query, and {len(options.query)} are given")
    if options.query and options.leave_one_out:
        parser.error("--query: photos of your own are searched for in the gallery; drop --leave-one-out")
    return options


if __name__ == "__main__":
    retrieve()
