"""carvision explain RUN PHOTO...: heat maps of what a prediction rests on. See --help."""

import argparse
import logging
import sys

from carvision.config.options import (
    add_device,
    add_out_folder,
    add_photos,
    add_run,
    create_parser,
    log_to_stderr,
    whole_from,
    words_of,
)
from carvision.errors import one_line_errors

HELP = """Show which parts of a photo a prediction rests on: a picture for each photo,
with the photo beside heat maps (Grad-CAM) of its predicted class. The brighter
a part, the more it raises the score of the class; the line surrounds all that
does so at least half as much as the brightest.

  carvision explain runs/demo/2026-01-31_12-00-00 a.jpg b.jpg --out maps
  carvision explain RUN photos --top 3                    the three likeliest classes of each photo
  carvision explain RUN a.jpg --head make --class Audi    what in it looks like an Audi
  carvision explain RUN --list RUN/splits.csv --split test         photos of a list, with its boxes

DIR must be new or empty. If the command is killed, the same one with the same
--out starts over there.
"""


def explain(arguments: list[str] | None = None) -> None:
    """Draw heat maps. arguments: default: the command line's."""
    options = build_parser().parse_intermixed_args(words_of(arguments))
    log_to_stderr()
    logging.getLogger("carvision").setLevel(logging.INFO)
    with one_line_errors():
        # Imported here, as --help and a wrong option need no torch
        from carvision.explanation.explain import run

        folder, num_unusable = run(options)
    if folder is not None:
        print(f"explain: {folder}")
    sys.exit(1 if num_unusable else 0)


def build_parser() -> argparse.ArgumentParser:
    parser = create_parser("explain", HELP)
    add = parser.add_argument
    add_run(parser)
    add_photos(parser)
    add_out_folder(parser, "RUN/explanations/<time>")
    add("--head", metavar="LABEL", help="the label whose class is explained (default: the last)")
    add("--class", metavar="CLASS", dest="class_", help="explain this class, its id or its name, instead of the "
                    "predicted one")  # fmt: skip
    add("--top", type=whole_from(1), default=1, metavar="K", help="explain so many classes, the likeliest (1)")
    add_device(parser)
    return parser


if __name__ == "__main__":
    explain()
